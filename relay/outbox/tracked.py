"""`track`: the unit of work writes the events. SQLAlchemy is loaded by the first call, not by the import."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar, overload

from relay.errors import EventError
from relay.outbox.events import Json
from relay.outbox.sessions import AnyAsyncSession, AnySession

T = TypeVar("T")


class Attribute(Protocol):
    """For type checkers: a mapped attribute as the class has it, `User.email`."""

    @property
    def key(self) -> str:
        """Its name."""


@overload
def track(
    cls: type[T],
    /,
    *,
    entity: str | None = None,
    topic: str | None = None,
    columns: Iterable[str | Attribute] | None = None,
    ignore: Iterable[str | Attribute] = (),
    payload: Callable[[T], Json] | None = None,
    deleted: str | Attribute | Callable[[T], bool] | None = None,
) -> None: ...
@overload
def track(
    *classes: type[Any],
    topic: str | None = None,
    columns: Iterable[str | Attribute] | None = None,
    ignore: Iterable[str | Attribute] = (),
    payload: Callable[[Any], Json] | None = None,
    deleted: str | Attribute | Callable[[Any], bool] | None = None,
) -> None: ...
def track(
    *classes: type[Any],
    entity: str | None = None,
    topic: str | None = None,
    columns: Iterable[str | Attribute] | None = None,
    ignore: Iterable[str | Attribute] = (),
    payload: Callable[[Any], Json] | None = None,
    deleted: str | Attribute | Callable[[Any], bool] | None = None,
) -> None:
    """Every insert, update and delete of these mapped classes writes its `touch`, in the same flush and transaction.

    Called once where the models are defined; called again with the same options it does nothing. One flush makes one
    more round trip, whatever it has changed: after its own statements, the entities are locked in sorted order and each
    changed object has one event. An object that two flushes of a transaction change has two versions and two events:
    the first one's version may have been read already, and only a commit knows which flush was the last.

    The id is the primary key as text; the parts of a composite one are joined with ":". A changed primary key is the
    deletion of the old id and a change of the new one. Subclasses are tracked with their base and share its name,
    except concrete ones, which have keys of their own. The nearest tracked class has the say.

    Captured are also `session.execute()` of ORM `insert`, `update` and `delete` on these classes, in one more round
    trip (two, with `payload` or `deleted`); an upsert is "updated". What passes the unit of work by in another way,
    such as `bulk_save_objects` or a Core statement on the table, is refused with RLY-131, and what ON DELETE CASCADE
    would change unseen with RLY-132. The execution option `relay="skip"`, on a statement, connection or engine, turns
    tracking and refusals off. Statements that are plain text are not seen: for those there are capture triggers. Where
    a table has one, the trigger writes the events, and tracking is silent.

    Args:
        entity: the entity's name; else the class's, in the form `order_line`. Only with a single class.
        topic: `relay.changes` unless you name another.
        columns: mapped attributes that matter. An UPDATE of others only is no change. All matter unless you say so.
            A column that sets itself, as with `onupdate`, is no change either.
        ignore: those that do not, instead.
        payload: called with each object that was created or updated, at the end of the flush. What it reads should be
            loaded: each attribute that is not costs a query.
        deleted: how a soft deletion is told: a mapped column that is neither NULL nor false then, or a function of the
            object. The action of such an object is "deleted", and there is no payload.

    Raises:
        EventError: RLY-130 for classes and options that do not fit; RLY-101 and 102 for names. At the flush: as
            `touch`, RLY-131 and RLY-132. The flush fails.

    Source: GUARANTEES, order per key.
    """
    from relay.outbox.orm import listeners
    from relay.outbox.orm.plans import Options

    if entity is not None and len(classes) > 1:
        raise EventError("RLY-130", "several classes cannot be one entity", "track each under a name of its own")
    options = Options(
        entity,
        topic,
        None if columns is None else frozenset(map(_name, columns)),
        frozenset(map(_name, ignore)),
        payload,
        deleted if deleted is None or (callable(deleted) and not hasattr(deleted, "key")) else _name(deleted),
    )
    listeners.track(classes, options)


def untrack(*classes: type[Any]) -> None:
    """Tracks these classes no longer: for tests, and for a script that takes care itself of what it changes."""
    from relay.outbox.orm import listeners

    listeners.untrack(classes)


def version_of(session: AnySession | AnyAsyncSession, instance: object) -> int | None:
    """The object's version as this session has flushed it, for reading one's own writes; kept until it writes again.

    Returns:
        None where the transaction that wrote last has not changed the object, or a capture trigger has done it.

    Raises:
        EventError: RLY-130: its class is not tracked.
    """
    from relay.outbox.orm import listeners

    return listeners.version_of(session, instance)


def _name(attribute: object) -> str:
    name = attribute if isinstance(attribute, str) else getattr(attribute, "key", None)
    if not isinstance(name, str):
        raise EventError("RLY-130", f"{type(attribute).__name__} is no attribute", "pass its name, or User.email")
    return name
