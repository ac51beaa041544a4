"""The statements behind `current_version` and `get_versioned`."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    MetaData,
    Table,
    Text,
    and_,
    cast,
    func,
    inspect,
    literal,
    not_,
    select,
)
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.sql.elements import SQLCoreOperations

from relay.errors import EventError
from relay.outbox.events import entity_change
from relay.outbox.loading import VersionedRow
from relay.outbox.orm.kinds import is_async, unscoped
from relay.outbox.orm.plans import entity_id, plan_of

T = TypeVar("T")

ENTITY_VERSION = Table(
    "entity_version",
    MetaData(),  # of its own: it is no table of the application, and its migrations must not see it
    Column("entity", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
    schema="relay",
)


def current_version(entity: str, id: object) -> ColumnElement[int]:  # noqa: A002
    """A scalar subquery, by the primary key of entity_version."""
    wanted: Any
    if isinstance(id, SQLCoreOperations):
        names = entity_change(entity, "column", "read", None)
        wanted = cast(id, Text)
    else:
        names = entity_change(entity, id, "read", None)  # type: ignore[arg-type]  # it says what it cannot take
        wanted = literal(names["id"], Text)
    v = ENTITY_VERSION.alias()
    found = select(v.c.version).where(v.c.entity == names["entity"], v.c.id == wanted).scalar_subquery()
    return func.coalesce(found, literal(0, BigInteger), type_=BigInteger)


def may_be_kept() -> ColumnElement[bool]:
    """Whether a cache may keep what this statement reads: of the primary, committed, and of a snapshot taken now.

    A transaction has an id once it has written; what it reads then may be its own, which may never commit. One that
    keeps its snapshot reads the past, and a past version may enter a cache from which its successor has been evicted.
    """
    return and_(
        not_(func.pg_catalog.pg_is_in_recovery(type_=Boolean)),
        func.pg_catalog.pg_current_xact_id_if_assigned().is_(None),
        func.pg_catalog.current_setting("transaction_isolation", type_=Text) == "read committed",
    )


def get_versioned(session: Any, cls: type[T], key: Any, entity: str | None) -> Any:
    """The row with its version: a `VersionedRow`, or an awaitable of one."""
    session = unscoped(session)
    if is_async(session):
        return session.run_sync(_get, cls, key, entity)
    if isinstance(session, Session):
        return _get(session, cls, key, entity)
    raise EventError("RLY-111", f"a {type(session).__name__} loads no objects", "pass a session of the ORM")


def _get(session: Session, cls: type[T], key: Any, entity: str | None) -> VersionedRow[T]:
    mapper = inspect(cls, raiseerr=False)
    if not isinstance(mapper, Mapper):
        raise EventError("RLY-130", f"{getattr(cls, '__name__', cls)!s} is no mapped class", "pass a mapped class")
    if entity is None:
        plan = plan_of(mapper)
        if plan is None:
            raise EventError("RLY-130", f"the class {cls.__name__} is not tracked", "name the entity")
        entity = plan.entity
    parts = key if isinstance(key, tuple) else (key,)
    # An outer join from one row: of what is not there, the version of the deletion is wanted all the same.
    one = select(literal(1).label("one")).subquery()
    is_wanted = and_(*(column == part for column, part in zip(mapper.primary_key, parts, strict=True)))
    statement = (
        select(current_version(entity, entity_id(parts)), may_be_kept(), cls)
        .select_from(one)
        .outerjoin(cls, is_wanted)
        # An object that the session has already would keep its old attributes, under the new version.
        .execution_options(populate_existing=True)
    )
    version, cacheable, value = session.execute(statement).unique().one()
    return VersionedRow(value, version, cacheable)
