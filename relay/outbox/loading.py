"""Rows for caches: with the version that they have in the same snapshot, and whether a cache may keep them.

A cache must not keep a row under a version that was read before or after it, nor one that only this transaction can
see. SQLAlchemy is loaded by the first call, not by the import. Without SQLAlchemy it is one statement:

    SELECT coalesce(v.version, 0) AS version,
           NOT pg_is_in_recovery() AND pg_current_xact_id_if_assigned() IS NULL
               AND current_setting('transaction_isolation') = 'read committed' AS cacheable,
           u.*
    FROM (VALUES ('user', %(id)s::text)) AS wanted (entity, id)
    LEFT JOIN relay.entity_version AS v ON v.entity = wanted.entity AND v.id = wanted.id
    LEFT JOIN users AS u ON u.id = %(id)s

It gives a row for an entity that is not there as well: absent, as of the version of its deletion.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, overload

from relay.outbox.sessions import AnyAsyncSession, AnySession

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

T = TypeVar("T")


class VersionedRow(NamedTuple, Generic[T]):
    """A row, or None for one that is not there, as of `version`."""

    value: T | None
    version: int
    """0: nothing has ever announced a change of it."""
    cacheable: bool
    """False: read from a replica, in a transaction that has written, or of a snapshot that is kept. Serve it to whoever
    asked; do not keep it."""


def current_version(entity: str, id: object) -> ColumnElement[int]:  # noqa: A002
    """An SQL expression for the entity's committed version, 0 if it has none; true of the statement that it stands in.

        select(User, current_version("user", User.id)).where(User.id.in_(ids))

    What an ORM loads by a second statement, as `selectinload` does, may be newer than the version says: join it.

    Args:
        id: a column or another SQL expression, which is cast to text, or a value as `touch` takes it.

    Raises:
        EventError: RLY-102 or 103 for names that `touch` would refuse as well.
    """
    from relay.outbox.orm import loading

    return loading.current_version(entity, id)


@overload
def get_versioned(session: AnySession, cls: type[T], key: Any, *, entity: str | None = None) -> VersionedRow[T]: ...
@overload
def get_versioned(
    session: AnyAsyncSession, cls: type[T], key: Any, *, entity: str | None = None
) -> Awaitable[VersionedRow[T]]: ...
def get_versioned(
    session: AnySession | AnyAsyncSession, cls: type[T], key: Any, *, entity: str | None = None
) -> VersionedRow[T] | Awaitable[VersionedRow[T]]:
    """The object with this primary key as it is in the database now, with its version, in one statement.

    As `session.get`, except that it always asks the database and refreshes what the session has of the object.

    Args:
        key: the primary key; of a composite one, a tuple in the order of the mapper.
        entity: the entity's name, where the class is not tracked.

    Raises:
        EventError: RLY-111: not a session of the ORM. RLY-130: the class is not mapped, or not tracked and no entity
            is named. RLY-103: a key that has no text.
    """
    from relay.outbox.orm import loading

    got: VersionedRow[T] | Awaitable[VersionedRow[T]] = loading.get_versioned(session, cls, key, entity)
    return got
