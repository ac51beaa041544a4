"""What a revision runs on the host's connection: one statement, whatever the driver, that leaves all else as it was."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from contextlib import contextmanager

import psycopg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from relay.migrations import downgrade_to, include_name, upgrade_to
from relay.schema import blocks
from relay.schema.install import upgrade
from relay.schema.steps import LOCK_ID, VERSION, step_back
from tests.support.catalog import catalog
from tests.support.commands import emit, park
from tests.support.postgres import bare_database, drop_database


@pytest.fixture
def bare(pg):
    dsn = bare_database(pg)
    yield dsn
    drop_database(pg, dsn)


def sqlalchemy_url(dsn: str, driver: str = "psycopg") -> str:
    return dsn.replace("postgresql://", f"postgresql+{driver}://")


@contextmanager
def migrating(dsn: str, isolation: str = "READ COMMITTED", **options):
    """A transaction in which a revision runs, as Alembic opens it; the version table is there already."""
    engine = create_engine(sqlalchemy_url(dsn), poolclass=NullPool, isolation_level=isolation)
    with engine.begin() as connection, revising(connection, **options):
        yield connection


@contextmanager
def revising(connection: Connection, **options):
    context = MigrationContext.configure(connection, opts=options)
    context._ensure_version_table()
    with Operations.context(context):
        yield


def version(dsn: str) -> int | None:
    """The schema version of the database; None where there is no schema."""
    with psycopg.connect(dsn) as connection:
        if connection.execute("SELECT to_regclass('relay.schema_version')").fetchone() == (None,):
            return None
        return connection.execute("SELECT max(version) FROM relay.schema_version").fetchone()[0]


def test_the_settings_and_statements_of_the_next_migration_are_as_before(bare):
    """Search path and lock time-out, set for the session or the transaction, and what a percent sign means."""
    with psycopg.connect(bare, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA tenant; CREATE TABLE tenant.note (body text);")
    with migrating(bare) as connection:
        connection.execute(text("SET search_path = tenant, public"))
        connection.execute(text("SET LOCAL lock_timeout = '7s'"))
        upgrade_to(VERSION)
        assert connection.execute(text("SHOW search_path")).scalar() == "tenant, public"
        assert connection.execute(text("SHOW lock_timeout")).scalar() == "7s"
        connection.execute(text("INSERT INTO note VALUES ('100 %')"))
        assert connection.execute(text("SELECT body FROM note WHERE body LIKE '%0 %'")).scalars().all() == ["100 %"]
        downgrade_to(0)
        assert connection.execute(text("SHOW search_path")).scalar() == "tenant, public"
        assert connection.execute(text("SHOW lock_timeout")).scalar() == "7s"


def test_what_installs_locks_no_table_of_the_host(bare):
    """Until its transaction ends, no lock but on what it makes and on the catalog."""
    with psycopg.connect(bare, autocommit=True) as connection:
        connection.execute("CREATE TABLE theirs (id integer PRIMARY KEY); CREATE TABLE other (id integer)")
    with migrating(bare) as connection:
        upgrade_to(VERSION)
        held = text(
            "SELECT DISTINCT relation::regclass::text FROM pg_locks JOIN pg_class ON pg_class.oid = relation"
            " WHERE pid = pg_backend_pid() AND relnamespace = 'public'::regnamespace"
        )
        assert set(connection.execute(held).scalars()) <= {"alembic_version", "alembic_version_pkc"}


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_async_drivers_run_it_as_well(bare, driver):
    """Both async drivers, one of which takes no more than one statement at a time."""

    async def there_and_back() -> None:
        engine = create_async_engine(sqlalchemy_url(bare, driver), poolclass=NullPool)
        for deed in (lambda: upgrade_to(VERSION), lambda: downgrade_to(0), lambda: upgrade_to(VERSION)):
            async with engine.begin() as connection:
                await connection.run_sync(lambda sync, deed=deed: run(sync, deed))
        await engine.dispose()

    def run(connection: Connection, deed) -> None:
        with revising(connection):
            deed()

    asyncio.run(there_and_back())
    assert version(bare) == VERSION


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_refusal_is_one_line_that_ends_with_the_fix(bare, driver):
    """The driver's own error would end with all of the statement, its reason out of sight."""
    upgrade(bare)
    with psycopg.connect(bare, autocommit=True) as connection:
        emit(connection, "k", "x")

    async def back() -> None:
        engine = create_async_engine(sqlalchemy_url(bare, driver), poolclass=NullPool)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(run)
        finally:
            await engine.dispose()

    def run(connection: Connection) -> None:
        with revising(connection):
            downgrade_to(0)

    with pytest.raises(CommandError) as refused:
        asyncio.run(back())
    assert str(refused.value) == (
        "RLY-404: the outbox or the parked events are not empty, and would be lost."
        " Fix: Run `relay run --drain` and treat what `relay parked list` shows."
    )


def test_offline_prints_the_same_statement(bare):
    """What `--sql` prints needs no connection and is what runs with one."""
    printed = io.StringIO()
    context = MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True, "output_buffer": printed})
    with Operations.context(context):
        upgrade_to(VERSION)
    assert printed.getvalue().strip() == blocks.upgrade_block(0, VERSION, "alembic_version") + ";"


def test_what_is_there_already_stays(bare):
    """After `relay db upgrade`, with events waiting, a revision changes nothing and its downgrade is refused."""
    upgrade(bare)
    there = catalog(bare)
    with psycopg.connect(bare, autocommit=True) as connection:
        emit(connection, "k", "x")
    with migrating(bare):
        upgrade_to(VERSION)
    assert catalog(bare) == there
    with pytest.raises(CommandError, match=r"RLY-404.*would be lost"), migrating(bare):
        downgrade_to(0)
    assert catalog(bare) == there


def test_parked_events_keep_the_schema_too(bare):
    """They are in nobody's topic."""
    upgrade(bare)
    with psycopg.connect(bare, autocommit=True) as connection:
        park(connection, emit(connection, "k", "x"))
    with pytest.raises(CommandError, match=r"RLY-404.*would be lost"), migrating(bare):
        downgrade_to(0)


@pytest.mark.parametrize(
    "other", [{"version_table": "billing_version"}, {"version_table_schema": "Tenant's 2"}, {"version_table": 'we"ird'}]
)
def test_the_last_of_several_histories_takes_the_schema_away(bare, other):
    """Applications and tenants share a database: one that goes back leaves the others what they use."""
    with psycopg.connect(bare, autocommit=True) as connection:
        connection.execute("""CREATE SCHEMA "Tenant's 2" """)
    with migrating(bare):
        upgrade_to(VERSION)
    with migrating(bare, **other):
        upgrade_to(VERSION)
    with migrating(bare):
        downgrade_to(0)
    assert version(bare) == VERSION
    with migrating(bare, **other):
        downgrade_to(0)
    assert version(bare) is None


def test_tenants_that_differ_by_search_path_are_told_apart(bare):
    """The version table is the one that Alembic finds, not the one that has its name."""
    with psycopg.connect(bare, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA one; CREATE SCHEMA two")
    for tenant, deed in (("one", upgrade_to), ("two", upgrade_to), ("one", downgrade_to)):
        engine = create_engine(sqlalchemy_url(bare), poolclass=NullPool)
        with engine.begin() as connection:
            connection.execute(text(f"SET LOCAL search_path = {tenant}"))
            with revising(connection):
                deed(VERSION if deed is upgrade_to else 0)
    assert version(bare) == VERSION


def test_a_gap_in_the_history_is_named(bare):
    """A later step does not run where the earlier ones are missing."""
    with pytest.raises(CommandError, match=rf"RLY-402.*version 0.*begins at {VERSION}"), migrating(bare):
        upgrade_to(VERSION, after=VERSION)
    assert version(bare) is None


def test_each_step_back_leaves_what_the_step_before_it_left(bare):
    """Down to the last grant, for every step that has a way back."""
    left = {}
    for number in range(1, VERSION + 1):
        with migrating(bare):
            upgrade_to(number, after=number - 1)
        left[number] = catalog(bare)
    for number in range(VERSION - 1, 0, -1):
        if step_back(number + 1) is not None:
            with migrating(bare):
                downgrade_to(number)
            assert catalog(bare) == left[number]
    with migrating(bare):
        upgrade_to(VERSION)
    assert catalog(bare) == left[VERSION]


def test_a_lock_that_is_held_for_a_while_is_waited_for(bare):
    """A second at a time, so that nobody queues behind for longer."""
    with psycopg.connect(bare) as blocker:
        blocker.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_ID,))
        release = threading.Timer(1.5, blocker.rollback)
        release.start()
        begun = time.monotonic()
        with migrating(bare):
            upgrade_to(VERSION)
        release.join()
    assert time.monotonic() - begun > 1
    assert version(bare) == VERSION


def test_a_lock_that_is_not_to_be_had_is_given_up(bare, monkeypatch):
    """With its code, and nothing changed."""
    monkeypatch.setattr(blocks, "ATTEMPTS", 2)
    with psycopg.connect(bare) as blocker:
        blocker.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_ID,))
        with pytest.raises(CommandError, match=r"RLY-404.*a lock was not to be had"), migrating(bare):
            upgrade_to(VERSION)
    assert version(bare) is None


def test_a_schema_of_that_name_with_other_content_is_refused(bare):
    """And left alone."""
    with psycopg.connect(bare, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA relay; CREATE TABLE relay.outbox (theirs int)")
    with pytest.raises(CommandError, match=r"RLY-404.*holds something else"), migrating(bare):
        upgrade_to(VERSION)
    with psycopg.connect(bare) as connection:
        tables = "SELECT relname FROM pg_class WHERE relnamespace = 'relay'::regnamespace"
        assert connection.execute(tables).fetchall() == [("outbox",)]


def test_only_the_schema_itself_is_left_out_of_autogenerate():
    """Nothing of the host's that happens to have the name."""
    assert not include_name("relay", "schema", {})
    assert include_name(None, "schema", {})
    assert include_name("relay", "table", {"schema_name": None})
    assert include_name("shop", "schema", {})


def test_a_downgrade_that_cannot_see_what_was_written_meanwhile_is_refused(bare):
    """Under REPEATABLE READ the block would not see an event that was committed after its transaction began."""
    with migrating(bare):
        upgrade_to(VERSION)
    with pytest.raises(CommandError, match=r"RLY-404.*repeatable read"), migrating(bare, isolation="REPEATABLE READ"):
        downgrade_to(0)
    assert version(bare) == VERSION
    with migrating(bare):
        downgrade_to(0)
