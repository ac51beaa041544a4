"""The write side on real Postgres: whoever holds a session can write events, and they share its transaction's fate."""

from __future__ import annotations

import asyncio
import inspect
import json
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from relay.errors import EventError, GrantError, RelayError, SchemaError
from relay.outbox import Event, emit, emit_many, touch
from relay.schema import grants
from tests.support import postgres
from tests.support.relay_process import eventually

SECRET = "4929-1111"


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]


@dataclass
class Opened:
    """A session of some kind, and how the caller changes a row, commits and rolls back with it."""

    session: Any
    execute: Callable[[Any], Any]
    commit: Callable[[], Any]
    rollback: Callable[[], Any]


async def done(result: Any) -> Any:
    """The result, awaited where the session is asynchronous: one test reads the same for both."""
    return await result if inspect.isawaitable(result) else result


def url(dsn: str, driver: str) -> str:
    return dsn.replace("postgresql://", f"postgresql+{driver}://")


@contextmanager
def engine(dsn: str, driver: str = "psycopg", **options: Any) -> Iterator[sa.Engine]:
    made = sa.create_engine(url(dsn, driver), **options)
    try:
        yield made
    finally:
        made.dispose()


@asynccontextmanager
async def async_engine(dsn: str, driver: str = "asyncpg", **options: Any) -> AsyncIterator[Any]:
    made = create_async_engine(url(dsn, driver), **options)
    try:
        yield made
    finally:
        await made.dispose()


def sqlalchemy_kind(make: Callable[[sa.Engine], Any]):
    @asynccontextmanager
    async def opened(dsn: str) -> AsyncIterator[Opened]:
        with engine(dsn) as on:
            session = make(on)
            try:
                yield Opened(session, lambda query: session.execute(sa.text(query)), session.commit, session.rollback)
            finally:
                session.close()

    return opened


def async_sqlalchemy_kind(driver: str, make: Callable[[Any], Any]):
    @asynccontextmanager
    async def opened(dsn: str) -> AsyncIterator[Opened]:
        async with async_engine(dsn, driver) as on:
            session = await done(make(on))
            try:
                yield Opened(session, lambda query: session.execute(sa.text(query)), session.commit, session.rollback)
            finally:
                await session.close()

    return opened


def psycopg_kind(pick: Callable[[Any], Any], **options: Any):
    @asynccontextmanager
    async def opened(dsn: str) -> AsyncIterator[Opened]:
        with psycopg.connect(dsn, **options) as connection:
            if connection.autocommit:
                connection.execute("BEGIN")
            yield Opened(pick(connection), connection.execute, connection.commit, connection.rollback)

    return opened


def async_psycopg_kind(pick: Callable[[Any], Any]):
    @asynccontextmanager
    async def opened(dsn: str) -> AsyncIterator[Opened]:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            yield Opened(pick(connection), connection.execute, connection.commit, connection.rollback)

    return opened


KINDS = {
    "Session": sqlalchemy_kind(Session),
    "scoped_session": sqlalchemy_kind(lambda on: scoped_session(sessionmaker(on))),
    "Connection": sqlalchemy_kind(lambda on: on.connect()),
    "AsyncSession-asyncpg": async_sqlalchemy_kind("asyncpg", AsyncSession),
    "AsyncSession-psycopg": async_sqlalchemy_kind("psycopg_async", AsyncSession),
    "async_scoped_session": async_sqlalchemy_kind(
        "asyncpg", lambda on: async_scoped_session(async_sessionmaker(on), asyncio.current_task)
    ),
    "AsyncConnection-asyncpg": async_sqlalchemy_kind("asyncpg", lambda on: on.connect()),
    "AsyncConnection-psycopg": async_sqlalchemy_kind("psycopg_async", lambda on: on.connect()),
    "psycopg-Connection": psycopg_kind(lambda connection: connection),
    "psycopg-Connection-of-dicts": psycopg_kind(lambda connection: connection, row_factory=dict_row),
    "psycopg-Connection-of-raw-cursors": psycopg_kind(lambda connection: connection, cursor_factory=psycopg.RawCursor),
    "psycopg-Connection-with-its-own-BEGIN": psycopg_kind(lambda connection: connection, autocommit=True),
    "psycopg-Cursor": psycopg_kind(lambda connection: connection.cursor()),
    "psycopg-AsyncConnection": async_psycopg_kind(lambda connection: connection),
    "psycopg-AsyncCursor": async_psycopg_kind(lambda connection: connection.cursor()),
}
DRIVERS = ["psycopg-Connection", "psycopg-AsyncConnection", "Session", "AsyncSession-psycopg", "AsyncSession-asyncpg"]


def query(dsn: str, statement: str, *parameters: Any) -> list[Any]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(statement, parameters).fetchall()


def execute(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


def outbox(dsn: str) -> list[dict[str, Any]]:
    """The events in the order of their ids, with headers as pairs."""
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        rows = connection.execute("SELECT * FROM relay.outbox ORDER BY id").fetchall()
    for row in rows:
        parts = row["headers"].split("\x1f")[:-1]
        row["headers"] = dict(zip(parts[::2], parts[1::2], strict=True))
    return rows


def payloads(dsn: str) -> list[Any]:
    return [json.loads(row["payload"]) for row in outbox(dsn)]


def someone_waits(dsn: str) -> bool:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(query(dsn, waiting))


@pytest.fixture
def accounts(database) -> str:
    execute(database, "CREATE TABLE account (id int PRIMARY KEY, balance int); INSERT INTO account VALUES (1, 0)")
    return database


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


# The caller's transaction


@pytest.mark.parametrize("kind", KINDS)
def test_events_share_the_fate_of_the_callers_change(accounts, kind):
    """Through any kind of session, what is committed has its events, and what is rolled back has none."""

    async def scenario() -> tuple[UUID, int, list[UUID]]:
        async with KINDS[kind](accounts) as opened:
            await done(opened.execute("INSERT INTO account VALUES (2, 2)"))
            await done(emit(opened.session, "t", key="gone", payload=None))
            await done(touch(opened.session, "gone", 1))
            await done(emit_many(opened.session, [Event("t", "gone", b"")]))
            await done(opened.rollback())
        async with KINDS[kind](accounts) as opened:
            await done(opened.execute("INSERT INTO account VALUES (3, 3)"))
            one = await done(emit(opened.session, "t", key="k", payload={"a": "ä"}, headers={"h": "ü"}))
            version = await done(touch(opened.session, "user", 7, payload={"b": None}, headers={"h": "v"}))
            many = await done(emit_many(opened.session, [Event("t", None, b"\x00\xff"), Event("u", "k", None)]))
            assert await done(emit_many(opened.session, [])) == []
            assert query(accounts, "SELECT count(*) FROM relay.outbox") == [(0,)]
            await done(opened.commit())
        return one, version, many

    one, version, many = asyncio.run(scenario())
    assert query(accounts, "SELECT id FROM account ORDER BY id") == [(1,), (3,)]
    events = outbox(accounts)
    assert [(e["topic"], e["key"]) for e in events] == [
        ("t", "k"),
        ("relay.changes", "user:7"),
        ("t", None),
        ("u", "k"),
    ]
    assert [events[0]["event_id"], events[2]["event_id"], events[3]["event_id"]] == [one, *many]
    assert version == 1
    assert events[0]["payload"] == '{"a":"ä"}'.encode()
    assert events[0]["headers"] == {"h": "ü", "content-type": "application/json"}
    assert json.loads(events[1]["payload"])["payload"] == {"b": None}
    assert events[1]["headers"]["h"] == "v"
    assert (events[2]["payload"], events[2]["headers"]) == (b"\x00\xff", {"content-type": "application/octet-stream"})
    assert (events[3]["payload"], events[3]["headers"]) == (None, {})


def test_a_change_of_an_entity_has_its_version_and_says_so(any_database):
    """The key, the value and the headers of a touch are those that consumers rely on, and versions count on."""
    with psycopg.connect(any_database) as connection:
        assert touch(connection, "user", "a:7") == 1
        assert touch(connection, "user", "a:7", "deleted") == 2
        assert touch(connection, "user", 8, topic="other", headers={"content-type": "application/x"}) == 1
    first, second, third = outbox(any_database)
    value = json.loads(first["payload"])
    assert list(value) == ["entity", "id", "action", "version", "ts"]
    assert value | {"ts": ""} == {"entity": "user", "id": "a:7", "action": "updated", "version": 1, "ts": ""}
    assert (first["topic"], first["key"]) == ("relay.changes", "user:a:7")
    assert first["headers"] == {**{k: str(v) for k, v in value.items()}, "content-type": "application/json"}
    assert (second["headers"]["action"], second["headers"]["version"]) == ("deleted", "2")
    assert (third["topic"], third["key"], third["headers"]["content-type"]) == ("other", "user:8", "application/x")
    assert query(any_database, "SELECT entity, id, version FROM relay.entity_version ORDER BY id") == [
        ("user", "8", 1),
        ("user", "a:7", 2),
    ]


def test_a_savepoint_takes_its_events_with_it(database):
    """What a savepoint rolls back is not published, and the versions go back as well."""
    with engine(database) as on, Session(on) as session, session.begin():
        assert touch(session, "user", 1) == 1
        inner = session.begin_nested()
        assert touch(session, "user", 1) == 2
        emit(session, "t", key="inner", payload=None)
        inner.rollback()
        assert touch(session, "user", 1) == 2
    assert [(e["key"], e["headers"].get("version")) for e in outbox(database)] == [("user:1", "1"), ("user:1", "2")]


def test_a_cursors_rows_stay_with_the_caller_and_pipelines_work(database):
    """Our statement takes no result from the cursor that it is handed."""
    with psycopg.connect(database) as connection:
        cursor = connection.execute("SELECT generate_series(1, 3)")
        cursor.fetchone()
        emit(cursor, "t", key="k", payload=None)
        assert cursor.fetchall() == [(2,), (3,)]
        with connection.pipeline():
            emit(connection, "t", key="k", payload=None)
    assert len(outbox(database)) == 2


# Without a transaction


def refused(code: str, call: Callable[[], Any]) -> RelayError:
    """The error, after a look that it names a fix and that nothing it prints or chains holds the payload."""
    with pytest.raises(RelayError) as caught:
        asyncio.run(_awaited(call))
    error = caught.value
    assert error.code == code
    assert error.fix
    printed = "".join(traceback.format_exception(error))
    assert SECRET not in printed + repr(error) + str(error)
    assert error.__context__ is None
    assert error.__cause__ is None
    return error


async def _awaited(call: Callable[[], Any]) -> Any:
    return await done(call())


def test_psycopg_in_autocommit_needs_a_transaction_that_was_begun(database):
    """An event that would commit alone is refused; transaction() and BEGIN make it welcome."""
    with psycopg.connect(database, autocommit=True) as connection:
        for session in (connection, connection.cursor()):
            refused("RLY-112", lambda session=session: emit(session, "t", key="k", payload=SECRET))
            refused("RLY-112", lambda session=session: touch(session, "user", 1))
        with connection.transaction():
            emit(connection, "t", key="k", payload=None)
    assert len(outbox(database)) == 1


def test_async_psycopg_in_autocommit_needs_one_too(database):
    async def scenario() -> None:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            for session in (connection, connection.cursor()):
                with pytest.raises(EventError, match="RLY-112"):
                    await emit(session, "t", key="k", payload=None)
            async with connection.transaction():
                await emit(connection, "t", key="k", payload=None)

    asyncio.run(scenario())
    assert len(outbox(database)) == 1


def test_sqlalchemy_in_autocommit_is_refused_before_anything_is_flushed(accounts):
    """Flushing first would commit the change and then refuse its event."""
    with engine(accounts, isolation_level="AUTOCOMMIT") as on:
        with Session(on) as session:
            session.add(Account(id=2, balance=0))
            with pytest.raises(EventError, match="RLY-112"):
                touch(session, "account", 2)
        with on.connect() as connection:
            with pytest.raises(EventError, match="RLY-112"):
                touch(connection, "account", 2)
            connection.execute(sa.text("BEGIN"))
            touch(connection, "account", 2)
            connection.execute(sa.text("COMMIT"))
    assert query(accounts, "SELECT id FROM account") == [(1,)]
    assert len(outbox(accounts)) == 1


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
def test_async_sqlalchemy_in_autocommit_is_refused(database, driver):
    async def scenario() -> None:
        async with async_engine(database, driver) as on:
            async with AsyncSession(on.execution_options(isolation_level="AUTOCOMMIT")) as session:
                with pytest.raises(EventError, match="RLY-112"):
                    await touch(session, "user", 1)
            async with on.connect() as connection:
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                with pytest.raises(EventError, match="RLY-112"):
                    await emit(connection, "t", key="k", payload=None)
                await connection.execute(sa.text("BEGIN"))
                await emit(connection, "t", key="k", payload=None)
                await connection.execute(sa.text("COMMIT"))

    asyncio.run(scenario())
    assert len(outbox(database)) == 1


# Order


@contextmanager
def two_sessions(dsn: str, **options: Any) -> Iterator[tuple[Session, Session]]:
    with engine(dsn, **options) as on, Session(on) as first, Session(on) as second:
        yield first, second


def settled(dsn: str, second: Future[Any]) -> None:
    """Until the second writer either waits for the first or has gone past it."""
    eventually(lambda: second.done() or someone_waits(dsn), what="the second writer to wait or to be done")


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("form", ["emit", "emit_many"])
def test_ids_of_a_key_are_drawn_in_the_order_of_commits(any_database, thread, isolation, form):
    """The second writer of a key waits for the first one's commit, whatever its snapshot; another key does not.

    It waits without an id: what the first one writes meanwhile still comes before it.
    """

    def write(session: Session, key: str, number: int) -> None:
        if form == "emit":
            emit(session, "t", key=key, payload=[number])
        else:
            emit_many(session, [Event("t", key, [number])])

    def second_writes(session: Session) -> None:
        session.execute(sa.text("SELECT 1"))
        write(session, "other", 2)
        write(session, "k", 4)
        session.commit()

    with two_sessions(any_database, isolation_level=isolation) as (first, second):
        write(first, "k", 1)
        writing = thread.submit(second_writes, second)
        settled(any_database, writing)
        assert not writing.done()
        write(first, "k", 3)
        first.commit()
        writing.result(60)
    assert payloads(any_database) == [[1], [2], [3], [4]]


def test_versions_follow_the_order_of_commits(any_database, thread):
    """The second touch of an entity waits, and has the higher version and the later event."""
    with two_sessions(any_database) as (first, second):
        assert touch(first, "user", 1) == 1

        def second_touches() -> int:
            version = touch(second, "user", 1)
            second.commit()
            return version

        writing = thread.submit(second_touches)
        settled(any_database, writing)
        assert not writing.done()
        assert touch(first, "user", 1) == 2
        first.commit()
        assert writing.result(60) == 3
    assert [value["version"] for value in payloads(any_database)] == [1, 2, 3]


def test_a_serialization_failure_of_a_touch_is_the_applications_to_retry(database, thread):
    """Errors that are not about the event rise as the driver's own, so that retry decorators know them."""
    with two_sessions(database, isolation_level="REPEATABLE READ") as (first, second):
        second.execute(sa.text("SELECT 1"))
        touch(first, "user", 1)
        writing = thread.submit(touch, second, "user", 1)
        settled(database, writing)
        first.commit()
        with pytest.raises(sa.exc.OperationalError) as caught:
            writing.result(60)
        assert caught.value.orig.sqlstate == "40001"
        second.rollback()
        assert touch(second, "user", 1) == 2


@pytest.mark.parametrize("autoflush", [True, False])
def test_the_last_event_of_a_row_tells_its_last_state(accounts, thread, autoflush):
    """The row's lock is taken before the event's id is drawn: the flush comes first, autoflush or not.

    With lock_keys=False the row's lock is all there is. Without the flush, the second writer overtakes the first
    between the first one's event and its UPDATE, and the last event tells of a balance that the row no longer has.
    """

    def change(session: Session, balance: int) -> None:
        session.get_one(Account, 1).balance = balance
        emit_many(session, [Event("t", "account:1", {"balance": balance})], lock_keys=False)

    def second_changes(session: Session) -> None:
        change(session, 20)
        session.commit()

    with two_sessions(accounts) as (first, second):
        first.autoflush = second.autoflush = autoflush
        change(first, 10)
        writing = thread.submit(second_changes, second)
        settled(accounts, writing)
        first.commit()
        writing.result(60)
    assert query(accounts, "SELECT balance FROM account") == [(payloads(accounts)[-1]["balance"],)]


def test_an_async_session_is_flushed_before_the_event(accounts):
    """As for the synchronous one: while the event is open, the row that it tells of is locked."""

    async def scenario() -> None:
        async with async_engine(accounts) as on, AsyncSession(on, autoflush=False) as session:
            (await session.get_one(Account, 1)).balance = 10
            await touch(session, "account", 1)
            with pytest.raises(psycopg.errors.LockNotAvailable):
                query(accounts, "SELECT 1 FROM account FOR UPDATE NOWAIT")

    asyncio.run(scenario())


def test_keys_in_opposite_order_do_not_deadlock(any_database, thread):
    """emit_many locks its keys sorted. A third writer holds the middle key, so that both callers are under way."""

    def write(keys: str) -> None:
        with psycopg.connect(any_database) as connection:
            emit_many(connection, [Event("t", key, None) for key in keys])

    with psycopg.connect(any_database) as gate:
        emit(gate, "t", key="m", payload=None)
        writers = [thread.submit(write, "amz"), thread.submit(write, "zma")]
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        eventually(lambda: query(any_database, waiting) == [(2,)], what="both to wait")
        gate.rollback()
        for writer in writers:
            writer.result(60)
    assert [e["key"] for e in outbox(any_database)] in (list("amzzma"), list("zmaamz"))


# Many


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_thousands_of_events_take_one_round_trip_and_keep_their_order(any_database, driver):
    events = [Event("t", f"key-{number % 400}", {"number": number}) for number in range(5000)]
    statements: list[str] = []

    async def scenario() -> list[UUID]:
        name = "asyncpg" if driver == "asyncpg" else "psycopg_async"
        async with async_engine(any_database, name) as on, AsyncSession(on) as session:
            await session.connection()
            sa.event.listen(on.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
            ids = await emit_many(session, events)
            await session.commit()
            return ids

    ids = asyncio.run(scenario())
    written = outbox(any_database)
    assert len(statements) == 1
    assert [e["event_id"] for e in written] == ids
    assert [json.loads(e["payload"])["number"] for e in written] == list(range(5000))
    assert [e["key"] for e in written] == [event.key for event in events]


def test_ten_thousand_entities_can_be_touched_in_one_transaction(database):
    """A touch locks a row and no slot of the shared table of locks."""
    with psycopg.connect(database) as connection:
        for number in range(10_000):
            touch(connection, "user", number)
        held = query(database, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1")
        assert held[0][0] <= 1
    assert query(database, "SELECT count(*), count(DISTINCT key) FROM relay.outbox") == [(10_000, 10_000)]


# What is refused


REFUSALS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "topic": ("RLY-101", lambda s: emit(s, "a topic", key=SECRET, payload=SECRET, headers={"a": SECRET})),
    "entity": ("RLY-102", lambda s: touch(s, "us er", SECRET, payload=SECRET)),
    "empty-id": ("RLY-103", lambda s: touch(s, "user", "", payload=SECRET)),
    "id": ("RLY-103", lambda s: touch(s, "user", SECRET + "\n", payload=SECRET)),
    "size": ("RLY-104", lambda s: emit(s, "t", key=SECRET, payload=SECRET * 200_000)),
    "size-of-many": ("RLY-104", lambda s: emit_many(s, [Event("t", SECRET, SECRET * 200_000)])),
    "size-of-touch": ("RLY-104", lambda s: touch(s, "user", SECRET, payload=SECRET * 200_000)),
    "action": ("RLY-105", lambda s: touch(s, "user", SECRET, "did it", payload=SECRET)),
    "header": ("RLY-106", lambda s: emit(s, "t", key="k", payload=SECRET, headers={SECRET + "!": SECRET})),
    "reserved": ("RLY-106", lambda s: touch(s, "user", SECRET, headers={"version": SECRET})),
    "value": ("RLY-107", lambda s: emit(s, "t", key="k", payload=SECRET, headers={"a": SECRET + "\n"})),
    "key": ("RLY-109", lambda s: emit(s, "t", key=4929, payload=SECRET)),
    "payload": ("RLY-110", lambda s: emit(s, "t", key="k", payload={SECRET})),
    "json": ("RLY-110", lambda s: touch(s, "user", SECRET, payload={"a": SECRET + "\x00"})),
}


@pytest.mark.parametrize("kind", DRIVERS)
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refused_event_has_a_code_and_a_fix_and_repeats_nothing(database, kind, refusal):
    """Whichever driver carried it; and the session is as good as new after a rollback."""
    code, call = REFUSALS[refusal]

    async def scenario() -> None:
        async with KINDS[kind](database) as opened:
            try:
                await done(call(opened.session))
            except EventError as error:
                caught = error
            await done(opened.rollback())
            await done(emit(opened.session, "t", key="k", payload=None))
            await done(opened.commit())
        raise caught

    error = refused(code, scenario)
    assert not error.message.startswith("RLY")
    assert len(outbox(database)) == 1


def test_a_refusal_fails_the_callers_transaction_and_nothing_else(accounts):
    """The change does not go out without its event; a neighbour's transaction does not notice."""
    with two_sessions(accounts) as (first, second):
        touch(second, "account", 1)

        def change() -> None:
            with first.begin():
                first.get_one(Account, 1).balance = 10
                touch(first, "no such name", 1)

        with pytest.raises(EventError):
            change()
        second.commit()
    assert query(accounts, "SELECT balance FROM account") == [(0,)]
    assert len(outbox(accounts)) == 1


@pytest.mark.parametrize("session", [object(), None, "postgresql://", sa.create_engine("sqlite://")])
def test_an_unknown_session_is_named_with_what_is_accepted(session):
    error = refused("RLY-111", lambda: emit(session, "t", key="k", payload=SECRET))
    assert type(session).__name__ in error.message
    assert "Session" in error.fix
    assert "psycopg Connection" in error.fix


def test_another_database_is_named():
    with Session(sa.create_engine("sqlite://")) as session:
        assert "sqlite" in refused("RLY-111", lambda: emit(session, "t", key="k", payload=SECRET)).message


@pytest.mark.parametrize("kind", DRIVERS)
def test_a_database_without_the_schema_is_told_from_a_role_without_rights(pg, kind):
    """3F000 and 42883 need an upgrade, 42501 a grant; each says which."""

    async def write(dsn: str) -> None:
        async with KINDS[kind](dsn) as opened:
            await done(emit(opened.session, "t", key="k", payload=SECRET))

    bare = postgres.bare_database(pg)
    try:
        assert isinstance(refused("RLY-401", lambda: write(bare)), SchemaError)
        execute(bare, "CREATE SCHEMA relay")
        assert "upgrade" in refused("RLY-401", lambda: write(bare)).fix
        with role(bare) as (_, as_role):
            assert isinstance(refused("RLY-501", lambda: write(as_role)), GrantError)
    finally:
        postgres.drop_database(pg, bare)


# Rights


@contextmanager
def role(dsn: str, rights: str = "") -> Iterator[tuple[str, str]]:
    """A role of one's own with these rights (`{role}` in them), and a DSN that logs in as it."""
    name = f"writer_{uuid4().hex[:12]}"
    execute(dsn, f"CREATE ROLE {name} LOGIN; " + rights.replace("{role}", name))
    try:
        yield name, dsn.replace("//postgres@", f"//{name}@")
    finally:
        execute(dsn, f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


WRITER = grants.SCHEMA + grants.WRITER
TABLES = ("outbox", "lane", "entity_version", "parked", "schema_version", "alembic_history")


def write_each_way(session: Any) -> None:
    emit(session, "t", key="k", payload={"a": 1}, headers={"a": "b"})
    emit_many(session, [Event("t", "k", b"x", {"a": "b"}), Event("t", None, "x")])
    assert touch(session, "user", 1, payload={"a": 1}, headers={"a": "b"}) == 1


def test_a_role_that_may_only_call_the_functions_can_write_and_nothing_else(any_database):
    """Neither read nor forge nor remove events, and not call what only operators and the functions themselves call."""
    forbidden = [
        *(f"SELECT FROM relay.{table}" for table in TABLES),
        *(f"DELETE FROM relay.{table}" for table in TABLES),
        "INSERT INTO relay.outbox (lane, topic) VALUES (1, 't')",
        "UPDATE relay.outbox SET topic = 't'",
        "UPDATE relay.entity_version SET version = 0",
        "UPDATE relay.lane SET parked = 0",
        "TRUNCATE relay.outbox",
        "LOCK relay.outbox",
        "SELECT nextval('relay.outbox_id_seq')",
        "SELECT relay.count_locks(0, 0)",
        "SELECT relay.escalate()",
        "SELECT relay.lock_by_row(1)",
        "SELECT relay.forget_published()",
        "SELECT relay.unpark(1, false)",
        "SELECT relay.pack_headers('{}')",
        "SELECT relay.event_bytes_max()",
        "CREATE TABLE relay.mine ()",
        "CREATE OR REPLACE FUNCTION relay.event_bytes_max() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    ]
    with role(any_database, WRITER) as (_, as_role):
        with psycopg.connect(as_role) as connection:
            write_each_way(connection)
        assert len(outbox(any_database)) == 4
        with psycopg.connect(as_role, autocommit=True) as connection:
            for statement in forbidden:
                with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                    connection.execute(statement)


DECOYS = {
    "functions": [
        "hashtextextended(text, bigint)",
        "octet_length(text)",
        "octet_length(bytea)",
        "current_setting(text, boolean)",
        "set_config(text, text, boolean)",
        "convert_to(text, name)",
        "to_json(text)",
        "clock_timestamp()",
        "random()",
        "lpad(text, integer, text)",
        "to_hex(bigint)",
        "pg_backend_pid()",
        "date_part(text, timestamptz)",
        "pg_advisory_xact_lock(bigint)",
        "pg_try_advisory_xact_lock_shared(bigint)",
        "pg_notify(text, text)",
        "jsonb_each(jsonb)",
        "jsonb_typeof(jsonb)",
        "event_bytes_max()",
        "pack_headers(jsonb)",
        "lane_of(text)",
        "new_event_id()",
        "count_locks(integer, integer)",
        "lock_by_row(bigint)",
        "wake()",
        "is_readable(text)",
        "getdatabaseencoding()",
        "pg_try_advisory_lock(bigint)",
        "pg_advisory_unlock(bigint)",
        "json_array_elements_text(json)",
        "string_to_array(text, text, text)",
        "string_to_array(text, text)",
        "chr(integer)",
    ],
    "operators": [
        ("||", "text", "text"),
        ("~", "text", "text"),
        ("!~", "text", "text"),
        ("=", "text", "text"),
        ("=", "jsonb", "jsonb"),
        ("<>", "text", "text"),
        (">", "integer", "integer"),
        ("+", "integer", "integer"),
        ("+", "bigint", "integer"),
        ("&", "bigint", "integer"),
        ("?", "jsonb", "text"),
        ("#>>", "jsonb", "text[]"),
    ],
    "relations": ["outbox", "entity_version", "lane", "parked"],
    "types": ["text", "jsonb", "bytea", "uuid", "bool", "int4", "int8"],
}


def lay_decoys(connection: psycopg.Connection, schema: str) -> None:
    """A namesake of whatever the functions use, each of which would say as whom it ran, and fail."""
    body = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'decoy ran as %', current_user; END $$"
    for function in DECOYS["functions"]:
        connection.execute(f"CREATE FUNCTION {schema}.{function} RETURNS pg_catalog.text {body}")
    for number, (operator, left, right) in enumerate(DECOYS["operators"]):
        connection.execute(f"CREATE FUNCTION {schema}.decoy_{number}({left}, {right}) RETURNS boolean {body}")
        connection.execute(
            f"CREATE OPERATOR {schema}.{operator} "
            f"(FUNCTION = {schema}.decoy_{number}, LEFTARG = {left}, RIGHTARG = {right})"
        )
    for relation in DECOYS["relations"]:
        connection.execute(f"CREATE TABLE {schema}.{relation} ()")
    for name in DECOYS["types"]:
        connection.execute(f"CREATE DOMAIN {schema}.{name} AS pg_catalog.varchar CHECK (false)")


@pytest.mark.parametrize("schema", ["pg_temp", "decoys"])
def test_namesakes_in_the_callers_search_path_gain_nothing(any_database, schema):
    """The functions run with their owner's rights, and so only what they mean, whatever the path finds first."""
    rights = WRITER + "CREATE SCHEMA decoys AUTHORIZATION {role};"
    with role(any_database, rights) as (name, as_role):
        with psycopg.connect(as_role) as connection:
            lay_decoys(connection, schema)
            connection.execute(sql.SQL("SET LOCAL search_path = {}, pg_catalog").format(sql.Identifier(schema)))
            if schema == "decoys":
                with (
                    pytest.raises(psycopg.errors.RaiseException, match=f"decoy ran as {name}"),
                    connection.transaction(),
                ):
                    connection.execute("SELECT clock_timestamp()")
            write_each_way(connection)
    assert len(outbox(any_database)) == 4
    assert query(any_database, "SELECT entity, id, version FROM relay.entity_version") == [("user", "1", 1)]


def test_ids_of_events_differ_even_if_sessions_draw_the_same_random_numbers(any_database):
    """An application may call setseed(); what consumers take for a repeat must be one all the same."""
    ids: list[UUID] = []
    for _ in range(3):
        with psycopg.connect(any_database) as connection:
            connection.execute("SELECT setseed(0.5)")
            ids += emit_many(connection, [Event("t", "k", "x")] * 500)
    assert len(set(ids)) == 1500
    assert {id_.version for id_ in ids} == {8}
