"""Which kinds of session carry an event, and how each runs our one statement.

Nothing is imported for it. Whoever holds an SQLAlchemy or psycopg object has imported its library, so the classes are
found among the loaded modules, and an application that has only one of the two libraries needs only that one.

        Session ──flush──┐
 AsyncSession ─run_sync──┤
                         ├─▶ Connection ──▶ SELECT relay.…
AsyncConnection ─run_sync┘

psycopg.Connection, .Cursor ──▶ a cursor of our own ──▶ SELECT relay.…
"""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

from relay.errors import EventError
from relay.outbox.refusals import translated

T = TypeVar("T")

ACCEPTED = (
    "an SQLAlchemy Session, scoped_session, Connection, AsyncSession or AsyncConnection, "
    "or a psycopg Connection, Cursor, AsyncConnection or AsyncCursor"
)
_IDLE = 0
"""libpq's transaction status outside of any transaction."""


class _Rows(Protocol):
    def fetchone(self) -> Any: ...


class AnySession(Protocol):
    """For type checkers: a session that runs statements at once.

    A shape and no union of classes: a class whose library is not installed counts as Any, Any matches every
    session, and then `await emit(async_session, ...)` would be an error in the application's own type check.
    """

    def execute(self, statement: Any, /) -> _Rows: ...


class AnyAsyncSession(Protocol):
    """For type checkers: a session whose statements are awaited."""

    def execute(self, statement: Any, /) -> Awaitable[Any]: ...


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """One statement that gives back one value. Parameters are named `:name` in the statement."""

    statement: str
    parameters: Mapping[str, Any] = field(repr=False)
    read: Callable[[Any], T]


def run(session: AnySession | AnyAsyncSession, request: Request[T]) -> T | Awaitable[T]:
    """Runs the request in the session's transaction; asynchronous sessions get an awaitable of the value.

    Raises:
        EventError: RLY-111 for an unknown kind of session, RLY-112 for one without a transaction, RLY-1xx for an
            event that the database refused. The caller's transaction cannot go on then.
        SchemaError, GrantError: the functions are missing, or not for this role.
    """
    for module, name, runner in _KINDS:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(session, kind):
            ran: T | Awaitable[T] = runner(session, request)
            return ran
    found = f"{type(session).__module__}.{type(session).__qualname__}"
    raise EventError("RLY-111", f"a session of type {found} cannot carry events", f"pass {ACCEPTED}")


def _run_session(session: Any, request: Request[T]) -> T:
    connection = session.connection()
    refuse_unfit(connection)
    # Before the event, never after it, and in no_autoflush blocks too: the flush takes the lock of the entity's row,
    # and only then may the event's id be drawn. The other way round, a second writer could draw its id later and yet
    # change the row earlier: the last event would tell of a state that is no longer the row's. Two writers could also
    # take the row's lock and the key's lock in opposite order, and deadlock.
    session.flush()
    return _run_connection(connection, request)


def _run_scoped_session(scope: Any, request: Request[T]) -> T:
    return _run_session(scope(), request)


def _run_connection(connection: Any, request: Request[T]) -> T:
    refuse_unfit(connection)
    try:
        value = connection.execute(_text(request.statement), request.parameters).scalar_one()
    except Exception as error:
        failure = translated(error)
    else:
        return request.read(value)
    # Outside of the handler: an error raised inside would keep the driver's, with the payload, as its context.
    raise failure


def _run_async_session(session: Any, request: Request[T]) -> Awaitable[T]:
    ran: Awaitable[T] = session.run_sync(_run_session, request)
    return ran


def _run_async_scoped_session(scope: Any, request: Request[T]) -> Awaitable[T]:
    return _run_async_session(scope(), request)


def _run_async_connection(connection: Any, request: Request[T]) -> Awaitable[T]:
    ran: Awaitable[T] = connection.run_sync(_run_connection, request)
    return ran


def _run_psycopg(connection: Any, request: Request[T]) -> T:
    _refuse_idle(connection.autocommit, connection)
    try:
        with _cursor("Cursor", connection) as cursor:
            cursor.execute(_percent(request.statement), request.parameters)
            (value,) = cursor.fetchone()
    except Exception as error:
        failure = translated(error)
    else:
        return request.read(value)
    raise failure


async def _run_async_psycopg(connection: Any, request: Request[T]) -> T:
    _refuse_idle(connection.autocommit, connection)
    try:
        async with _cursor("AsyncCursor", connection) as cursor:
            await cursor.execute(_percent(request.statement), request.parameters)
            (value,) = await cursor.fetchone()
    except Exception as error:
        failure = translated(error)
    else:
        return request.read(value)
    raise failure


def _run_psycopg_cursor(cursor: Any, request: Request[T]) -> T:
    return _run_psycopg(cursor.connection, request)


def _run_async_psycopg_cursor(cursor: Any, request: Request[T]) -> Awaitable[T]:
    return _run_async_psycopg(cursor.connection, request)


def _cursor(kind: str, connection: Any) -> Any:
    """A cursor of our own: the caller's holds rows that it is still reading, and has factories of its own."""
    row_factory = sys.modules["psycopg.rows"].tuple_row
    return getattr(sys.modules["psycopg"], kind)(connection, row_factory=row_factory)


def refuse_unfit(connection: Any) -> None:
    """As `_refuse_idle`, for SQLAlchemy, whose own `in_transaction()` is true in AUTOCOMMIT as well.

    `autocommit` is asked of the DBAPI's face, on which SQLAlchemy sets it, and the state of the transaction of the
    driver's connection behind it. Neither needs a round trip.
    """
    if connection.dialect.name != "postgresql":
        raise EventError("RLY-111", f"a session on {connection.dialect.name} cannot carry events", "use Postgres")
    proxied = connection.connection
    _refuse_idle(proxied.dbapi_connection.autocommit, proxied.driver_connection)


def _refuse_idle(autocommit: bool, driver_connection: Any) -> None:
    """Refuses a session in which the event would commit alone, before or without the change that it tells of.

    Only autocommit with no transaction open is that: without autocommit the statement opens the caller's transaction,
    and in autocommit the caller may have opened one, with psycopg's `transaction()` or a BEGIN of its own.
    """
    if autocommit and not _in_transaction(driver_connection):
        raise EventError(
            "RLY-112",
            "the session has no transaction: it is in autocommit and none was begun",
            "begin a transaction that holds your change and its event",
        )


def _in_transaction(driver_connection: Any) -> bool:
    info = getattr(driver_connection, "info", None)
    if info is not None:  # psycopg and psycopg2
        return bool(info.transaction_status != _IDLE)
    ask = getattr(driver_connection, "is_in_transaction", None)  # asyncpg; of other drivers nothing is known
    return bool(ask and ask())


@cache
def _text(statement: str) -> Any:
    return sys.modules["sqlalchemy"].text(statement)


@cache
def _percent(statement: str) -> str:
    """The statement with psycopg's placeholders."""
    return re.sub(r":(\w+)", r"%(\1)s", statement)


_KINDS: tuple[tuple[str, str, Callable[[Any, Request[Any]], Any]], ...] = (
    ("sqlalchemy.orm", "Session", _run_session),
    ("sqlalchemy.orm", "scoped_session", _run_scoped_session),
    ("sqlalchemy.engine", "Connection", _run_connection),
    ("sqlalchemy.ext.asyncio", "AsyncSession", _run_async_session),
    ("sqlalchemy.ext.asyncio", "async_scoped_session", _run_async_scoped_session),
    ("sqlalchemy.ext.asyncio", "AsyncConnection", _run_async_connection),
    ("psycopg", "Connection", _run_psycopg),
    ("psycopg", "Cursor", _run_psycopg_cursor),
    ("psycopg", "AsyncConnection", _run_async_psycopg),
    ("psycopg", "AsyncCursor", _run_async_psycopg_cursor),
)
