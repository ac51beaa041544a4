"""What the write side does for caches: rows with their versions from one snapshot, and writes told once committed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from relay.daemon.verification.sources import VERSIONS
from relay.errors import EventError
from relay.outbox import (
    VersionedRow,
    current_version,
    get_versioned,
    loading,
    touch,
    track,
    untrack,
    wrote_on_commit,
)
from tests.integration.test_outbox import async_engine, engine, query
from tests.support import postgres


class Base(DeclarativeBase):
    pass


class Reader(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Seat(Base):
    __tablename__ = "seats"
    row: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)


class Badge(Base):
    __tablename__ = "badges"
    id: Mapped[UUID] = mapped_column(primary_key=True)


class Told:
    """Whoever wants to know what was written."""

    def __init__(self) -> None:
        self.writes: list[tuple[str, object, int]] = []

    def wrote(self, entity: str, id: object, version: int, /) -> None:  # noqa: A002
        self.writes.append((entity, id, version))


@pytest.fixture(scope="module")
def dsn(pg) -> Iterator[str]:
    fresh = postgres.fresh_database(pg)
    with engine(fresh) as on:
        Base.metadata.create_all(on)
    yield fresh
    postgres.drop_database(pg, fresh)


@pytest.fixture
def on(dsn) -> Iterator[sa.Engine]:
    with engine(dsn) as made:
        with made.begin() as connection:
            connection.execute(sa.text("TRUNCATE users, seats, badges, relay.entity_version, relay.outbox"))
        yield made


@pytest.fixture
def tracked() -> Iterator[None]:
    track(Reader, entity="user")
    yield
    untrack(Reader)


def add(on: sa.Engine, *objects: object) -> None:
    with Session(on) as session, session.begin():
        session.add_all(objects)


def test_a_row_comes_with_its_version(on, tracked):
    """Of a tracked class by its entity's name; counted on by every change."""
    add(on, Reader(id=1, name="Ann"))
    with Session(on) as session:
        got = get_versioned(session, Reader, 1)
        assert (got.value.name, got.version, got.cacheable) == ("Ann", 1, True)
    with Session(on) as session, session.begin():
        session.get(Reader, 1).name = "Anna"
    with Session(on) as session:
        got = get_versioned(session, Reader, 1)
        assert (got.value.name, got.version) == ("Anna", 2)


def test_what_is_not_there_has_the_version_of_its_deletion(on, tracked):
    """And 0 if nobody has ever touched it."""
    add(on, Reader(id=1, name="Ann"))
    with Session(on) as session, session.begin():
        session.delete(session.get(Reader, 1))
    with Session(on) as session:
        assert get_versioned(session, Reader, 1) == VersionedRow(None, 2, True)
        assert get_versioned(session, Reader, 2) == VersionedRow(None, 0, True)


def test_an_object_that_the_session_knows_is_read_anew(on, tracked):
    """Old attributes under a new version would stay in a cache."""
    add(on, Reader(id=1, name="Ann"))
    with Session(on, expire_on_commit=False) as session:
        ann = session.get(Reader, 1)
        session.commit()
        with Session(on) as other, other.begin():
            other.get(Reader, 1).name = "Anna"
        got = get_versioned(session, Reader, 1)
        assert (got.value is ann, ann.name, got.version) == (True, "Anna", 2)


def test_a_row_of_a_transaction_that_has_written_is_not_for_a_cache(on, tracked):
    """It may never be committed. Nor is one of a snapshot that was taken earlier."""
    add(on, Reader(id=1, name="Ann"))
    with Session(on) as session:
        session.get(Reader, 1).name = "never"
        got = get_versioned(session, Reader, 1)
        assert (got.value.name, got.version, got.cacheable) == ("never", 2, False)
        session.rollback()
        assert get_versioned(session, Reader, 1).cacheable
    with (
        on.connect().execution_options(isolation_level="REPEATABLE READ") as connection,
        Session(connection) as session,
    ):
        assert not get_versioned(session, Reader, 1).cacheable


def test_the_plain_statement_of_the_documentation_says_the_same(on, dsn, tracked):
    """Without SQLAlchemy it is one statement; it stands in the docstring, and runs."""
    add(on, Reader(id=1, name="Ann"))
    statement = loading.__doc__.split("statement:\n")[1].split("\n\nIt gives")[0]
    statement = statement.replace("%(id)s::text", "'{0}'").replace("%(id)s", "{0}")
    assert query(dsn, statement.format(1)) == [(1, True, 1, "Ann")]
    assert query(dsn, statement.format(2)) == [(0, True, None, None)]


def test_keys_are_named_as_touch_names_them(on):
    """Composite and UUID keys: one entity has one name, whoever writes it."""
    badge = uuid4()
    track(Seat, Badge)
    try:
        add(on, Seat(row="a:b", number=7), Badge(id=badge))
        with Session(on) as session:
            assert get_versioned(session, Seat, ("a:b", 7))[1:] == (1, True)
            assert get_versioned(session, Badge, badge)[1:] == (1, True)
            of_column = sa.select(Badge.id, current_version("badge", Badge.id))
            assert session.execute(of_column).all() == [(badge, 1)]
    finally:
        untrack(Seat, Badge)


def test_many_rows_have_their_versions_in_one_statement(on):
    """As an expression beside the row; of columns, and of values."""
    with Session(on) as session, session.begin():
        session.add_all([Reader(id=1, name="Ann"), Reader(id=2, name="Bob")])
        touch(session, "user", 2)
        touch(session, "user", 2)
    with Session(on) as session:
        both = sa.select(Reader.id, current_version("user", Reader.id)).order_by(Reader.id)
        assert session.execute(both).all() == [(1, 0), (2, 2)]
        assert session.scalar(sa.select(current_version("user", 2))) == 2
        assert session.scalar(sa.select(current_version("user", "3"))) == 0


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
def test_asynchronous_sessions_load_and_tell_as_well(dsn, on, tracked, driver):
    """Through their own drivers."""
    told = Told()

    async def scene() -> VersionedRow[Reader]:
        async with async_engine(dsn, driver) as made, AsyncSession(made) as session:
            async with session.begin():
                wrote_on_commit(session, told)
                session.add(Reader(id=1, name="Ann"))
            async with session.begin():
                wrote_on_commit(session, told, "user", 1, await touch(session, "user", 1))
            return await get_versioned(session, Reader, 1)

    got = asyncio.run(scene())
    assert (got.version, got.cacheable) == (2, True)
    assert told.writes == [("user", "1", 1), ("user", 1, 2)]


def test_a_write_is_told_after_the_commit_and_not_before(on):
    """A reader that waits for a version which is rolled back would wait for ever."""
    told = Told()
    with Session(on) as session:
        wrote_on_commit(session, told, "user", 1, touch(session, "user", 1))
        assert told.writes == []
        session.rollback()
        session.execute(sa.text("SELECT 1"))
        session.commit()
        assert told.writes == []
        wrote_on_commit(session, told, "user", 1, touch(session, "user", 1))
        session.commit()
        assert told.writes == [("user", 1, 1)]
        touch(session, "user", 1)
        session.commit()
        assert told.writes == [("user", 1, 1)]


def test_a_savepoint_takes_its_writes_with_it(on, tracked):
    """Released ones wait for the whole; those that were rolled back are not told, explicit or tracked."""
    told = Told()
    with Session(on) as session:
        wrote_on_commit(session, told)
        with session.begin_nested():
            wrote_on_commit(session, told, "order", 1, 5)
            session.add(Reader(id=1, name="Ann"))
        inner = session.begin_nested()
        wrote_on_commit(session, told, "order", 2, 5)
        session.add(Reader(id=2, name="Bob"))
        session.flush()
        inner.rollback()
        assert told.writes == []
        session.commit()
        assert told.writes == [("order", 1, 5), ("user", "1", 1)]


def test_a_session_that_is_closed_in_between_tells_nothing_of_it(on):
    """Closing is no commit, and the next transaction is another one."""
    told = Told()
    session = scoped_session(sessionmaker(on))()
    wrote_on_commit(session, told, "user", 1, touch(session, "user", 1))
    session.close()
    wrote_on_commit(session, told, "user", 2, touch(session, "user", 2))
    session.commit()
    assert told.writes == [("user", 2, 1)]
    session.close()


def test_versions_are_read_by_their_key_however_many_there_are(on, dsn):
    """Beside one row, beside many, and as the checker asks: never a scan of all entities."""
    with on.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO relay.entity_version SELECT 'user', n::text, 1 FROM generate_series(1, 20000) AS n")
        )
        connection.execute(sa.text("ANALYZE relay.entity_version"))
    with on.connect() as connection:
        beside = sa.select(Reader, current_version("user", Reader.id)).where(Reader.id == 1)
        compiled = beside.compile(connection, compile_kwargs={"literal_binds": True})
        asked = VERSIONS.replace("%(entities)s", "ARRAY['user', 'user']").replace("%(ids)s", "ARRAY['1', '2']")
        plain = loading.__doc__.split("statement:\n")[1].split("\n\nIt gives")[0].replace("%(id)s", "1")
        for statement in (str(compiled), asked, plain):
            plan = "\n".join(row[0] for row in query(dsn, "EXPLAIN " + statement))
            assert "entity_version_pkey" in plan
            assert "Seq Scan on entity_version" not in plan


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("RLY-111", lambda session: get_versioned(object(), Reader, 1)),
        ("RLY-111", lambda session: wrote_on_commit(object(), Told())),
        ("RLY-130", lambda session: get_versioned(session, Reader, 1)),
        ("RLY-130", lambda session: get_versioned(session, Told, 1)),
        ("RLY-102", lambda session: current_version(7, 1)),
        ("RLY-103", lambda session: current_version("user", 1.5)),
    ],
)
def test_what_cannot_be_loaded_has_a_code(on, code, call):
    """Before the database is asked."""
    with Session(on) as session, pytest.raises(EventError) as refused:
        call(session)
    assert refused.value.code == code
