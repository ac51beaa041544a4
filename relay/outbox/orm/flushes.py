"""One call of the database at the end of each flush, with what the unit of work has changed.

    before_insert, before_update, before_delete     of each object: what changes, on which connection
                 │
                 ▼
        the unit of work's own statements           rows are locked
                 │
                 ▼
            after_flush                             one call: sorted locks, versions, ids, events

After the entity's own statements, never between them: an event's id that is drawn before its row is locked may be
lower than that of a writer who changes the row first. What changes is read before the statements, since SQLAlchemy
forgets the old values of some attributes as soon as they are sent.

A version is locked by a transaction that has locked the entity's row before, for whoever updates or deletes it. So
tracked writers wait for a version only where they have waited for the row: it adds no deadlock that rows did not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection
from sqlalchemy.orm import InstanceState, Mapper, Session, SessionTransaction, UOWTransaction

from relay.outbox.events import Json
from relay.outbox.orm import cascades, versions
from relay.outbox.orm.plans import NOT_LOADED, Plan, entity_id, is_changed, keys_of, plan_of
from relay.outbox.orm.touches import Touches, is_skipped, read_column, says_deleted
from relay.outbox.sessions import refuse_unfit

State = InstanceState[Any]
KEY = "relay.batches"
CREATED, UPDATED, DELETED = "created", "updated", "deleted"
PLAIN: dict[str, tuple[str, Json]] = {action: (action, None) for action in (CREATED, UPDATED, DELETED)}
"""Actions without a payload, made once: 10,000 small objects more may start a collection of all garbage."""


@dataclass(slots=True)
class Batch:
    """What one flush changes through one connection."""

    skips: bool
    is_fit: bool = False
    """Whether the connection was looked at, and can carry events."""
    changes: dict[Plan, dict[State, str]] = field(default_factory=dict)
    moved: dict[State, tuple[Any, ...]] = field(default_factory=dict)
    """Objects whose primary key changes, with their old one."""


_open: WeakKeyDictionary[Connection, Batch] = WeakKeyDictionary()


def is_flushing(connection: Connection) -> bool:
    """Whether a flush is under way on this connection."""
    return connection in _open


def before_insert(mapper: Mapper[Any], connection: Connection, state: State) -> None:
    """Notes a new object; its key is known after the flush."""
    batch = _open.get(connection) or _begin(connection, state)
    if (plan := plan_of(mapper)) is not None:
        _note(batch, connection, state, plan, CREATED)


def before_update(mapper: Mapper[Any], connection: Connection, state: State) -> None:
    """Notes a changed object. Also called where relationships alone have changed: no UPDATE then, and no event."""
    batch = _open.get(connection) or _begin(connection, state)
    plan = plan_of(mapper)
    if plan is not None and is_changed(plan.compare, state.committed_state, state.dict):
        _note(batch, connection, state, plan, UPDATED)
    keys = keys_of(mapper)
    if not keys.keys().isdisjoint(state.committed_state) and is_changed(keys, state.committed_state, state.dict):
        if not batch.skips:
            cascades.refuse_lost(mapper, "update", by_statement=False)
        if plan is not None and state.key is not None:
            batch.moved[state] = state.key[1]


def after_update(mapper: Mapper[Any], connection: Connection, state: State) -> None:
    """Once more, for what the application's own before_update has changed after ours had looked."""
    plan = plan_of(mapper)
    if plan is None or (batch := _open.get(connection)) is None:
        return
    noted = batch.changes.get(plan)
    if (noted is None or state not in noted) and is_changed(plan.compare, state.committed_state, state.dict):
        _note(batch, connection, state, plan, UPDATED)


def before_delete(mapper: Mapper[Any], connection: Connection, state: State) -> None:
    """Notes a deletion, once it is sure that no tracked rows vanish with it unseen."""
    batch = _open.get(connection) or _begin(connection, state)
    if not batch.skips:
        cascades.refuse_lost(mapper, "delete", by_statement=False)
    if (plan := plan_of(mapper)) is not None:
        _note(batch, connection, state, plan, DELETED)


def after_flush(session: Session, context: UOWTransaction) -> None:
    """Writes the events of all that was noted, one call for each connection, which usually is one."""
    _note_post_updates(context)
    batches: dict[Connection, Batch] = session.info.pop(KEY, {})
    for connection in batches:
        _open.pop(connection, None)
    for connection, batch in batches.items():
        if not batch.skips:
            _write(session, connection, batch)


def after_soft_rollback(session: Session, transaction: SessionTransaction) -> None:
    """Forgets a flush that failed, and versions that are gone."""
    for connection in session.info.pop(KEY, ()):
        _open.pop(connection, None)
    versions.rolled_back(session, transaction)


def _begin(connection: Connection, state: State) -> Batch:
    batch = _open[connection] = Batch(is_skipped(connection))
    if (session := state.session) is not None:  # only objects of a session are flushed
        session.info.setdefault(KEY, {})[connection] = batch
    return batch


def _note(batch: Batch, connection: Connection, state: State, plan: Plan, action: str) -> None:
    # Before the first statement: in autocommit the change would stay if its event were refused afterwards.
    if not batch.is_fit and not batch.skips:
        refuse_unfit(connection)
        batch.is_fit = True
    changes = batch.changes.get(plan)
    if changes is None:
        changes = batch.changes[plan] = {}
    changes[state] = action


def _note_post_updates(context: UOWTransaction) -> None:
    """Foreign keys that are set by an UPDATE of their own, after all others, which no event of the mapper tells of."""
    for base, (states, columns) in context.post_update_states.items():
        for state in states:
            plan = plan_of(state.mapper)
            if plan is None:
                continue
            names = {state.mapper.get_property_by_column(c).key for c in columns if c in state.mapper.columns.values()}
            connection = context.transaction.connection(base)
            batch = _open.get(connection) or _begin(connection, state)
            if names & plan.compare.keys() and state not in batch.changes.get(plan, ()):
                _note(batch, connection, state, plan, UPDATED)


def _write(session: Session, connection: Connection, batch: Batch) -> None:
    touches = Touches()
    for plan, changes in batch.changes.items():
        # Deletions first: where a row takes the place of another in one flush, what is there now holds.
        gone = [state.key[1] for state, action in changes.items() if action is DELETED and state.key is not None]
        gone += [batch.moved[state] for state in changes if state in batch.moved] if batch.moved else []
        touches.add(plan, [(entity_id(key), PLAIN[DELETED]) for key in gone])
        there = ((state, action) for state, action in changes.items() if action is not DELETED)
        if plan.deleted is None and plan.payload is None:
            touches.add(plan, ((_id(plan, state, batch), PLAIN[action]) for state, action in there))
        else:
            touches.add(plan, _described(connection, plan, [(s, _key(plan, s, batch), action) for s, action in there]))
    touches.write(session, connection)


def _key(plan: Plan, state: State, batch: Batch) -> tuple[Any, ...]:
    if state.key is None or state in batch.moved:
        return plan.key_of(state)
    known: tuple[Any, ...] = state.key[1]
    return known


def _id(plan: Plan, state: State, batch: Batch) -> str:
    """The id of an object that is there. Most have one integer, for which no tuple is made."""
    if len(plan.keys) == 1 and type(value := state.dict.get(plan.keys[0])) is int:
        return str(value)
    return entity_id(_key(plan, state, batch))


def _described(
    connection: Connection, plan: Plan, there: list[tuple[State, tuple[Any, ...], str]]
) -> Iterator[tuple[str, tuple[str, Json]]]:
    """Ids with action and payload, by the rule of a soft deletion and with what the application says of its objects."""
    unloaded: dict[tuple[Any, ...], Any] = {}
    if isinstance(name := plan.deleted, str):
        unloaded = dict(read_column(connection, plan.mapper, name, [k for s, k, _ in there if name not in s.dict]))
    for state, key, action in there:
        if plan.deleted is not None and _is_deleted(plan, state, unloaded.get(key, NOT_LOADED)):
            yield entity_id(key), PLAIN[DELETED]
        else:
            yield entity_id(key), (action, plan.payload(state.obj()) if plan.payload else None)


def _is_deleted(plan: Plan, state: State, unloaded: Any) -> bool:
    """What the rule of a soft deletion says."""
    if isinstance(plan.deleted, str):
        return says_deleted(state.dict.get(plan.deleted, unloaded))
    return bool(plan.deleted and plan.deleted(state.obj()))
