"""Writes that wait for their commit, in `session.info`, each with the transaction or savepoint that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from relay.outbox.commits import Reader
from relay.outbox.orm import versions
from relay.outbox.orm.listeners import plain

KEY = "relay.commits"


@dataclass(slots=True)
class Waiting:
    """What a session has to tell."""

    follower: Reader | None = None
    """Who is told of all tracked writes. One: a session that lives on from request to request would collect them."""
    writes: list[tuple[SessionTransaction, Reader, tuple[str, Any, int]]] = field(default_factory=list)


def wrote_on_commit(database: Any, reader: Reader, *write: Any) -> None:
    """Notes one write, or a reader for all tracked ones."""
    session = plain(database)
    waiting: Waiting | None = session.info.get(KEY)
    if waiting is None:
        waiting = session.info[KEY] = Waiting()
        event.listen(session, "after_commit", _after_commit)
        event.listen(session, "after_soft_rollback", _after_soft_rollback)
    if not write:
        waiting.follower = reader
        return
    transaction = session.get_nested_transaction() or session.get_transaction()
    if transaction is not None:
        entity, id_, version = write
        waiting.writes.append((transaction, reader, (entity, id_, version)))


def _after_commit(session: Session) -> None:
    """Also called when a savepoint is released: nothing is decided then."""
    if session.in_nested_transaction():
        return
    waiting: Waiting = session.info[KEY]
    writes, waiting.writes = waiting.writes, []
    committed = session.get_transaction()
    for transaction, reader, write in writes:
        # A session that was closed instead of rolled back leaves writes behind that never came to be.
        if committed is not None and versions.is_within(transaction, committed):
            reader.wrote(*write)
    if waiting.follower is not None:
        for write in versions.written(session):
            waiting.follower.wrote(*write)


def _after_soft_rollback(session: Session, transaction: SessionTransaction) -> None:
    waiting: Waiting = session.info[KEY]
    waiting.writes = [write for write in waiting.writes if not versions.is_within(write[0], transaction)]
