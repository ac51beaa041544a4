"""The schema: the same by every door, installed once by however many, and a stranger to everything else there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from relay.database import connect
from relay.errors import GrantError, SchemaError
from relay.schema.install import require_version, upgrade
from relay.schema.steps import LOCK_ID, VERSION, script, step
from tests.support.catalog import catalog
from tests.support.commands import emit, park, relay
from tests.support.postgres import bare_database, drop_database

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[16, 18], ids=["pg16", "pg18"])
def server(request):
    return request.getfixturevalue("pg" if request.param == 18 else "pg16")


@pytest.fixture
def bare(server):
    dsn = bare_database(server)
    yield dsn
    drop_database(server, dsn)


@pytest.fixture
def expected(server):
    """The catalog that `relay db upgrade` leaves."""
    dsn = bare_database(server)
    upgrade(dsn)
    yield catalog(dsn)
    drop_database(server, dsn)


def alembic(dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT,
        env={**os.environ, "RELAY_DATABASE_URL": dsn},
        capture_output=True,
        text=True,
        check=False,
    )


def psql(server, dsn: str, statements: str) -> subprocess.CompletedProcess[str]:
    command = [str(server.bin_dir / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", dsn]
    return subprocess.run(command, input=statements, capture_output=True, text=True, check=False)


def execute(dsn: str, statement: str):
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else None


# One door, often


def test_an_upgrade_is_idempotent(bare):
    assert upgrade(bare) == list(range(1, VERSION + 1))
    before = catalog(bare)
    assert upgrade(bare) == []
    assert catalog(bare) == before


def test_the_command_says_what_it_did(bare):
    settings = {"RELAY_DATABASE_URL": bare}
    first, second = (relay("db", "upgrade", settings=settings) for _ in range(2))
    assert (first.returncode, first.stdout) == (0, f"schema relay: upgraded to version {VERSION}\n")
    assert (second.returncode, second.stdout) == (0, f"schema relay: already at version {VERSION}\n")
    assert relay("db", "check", settings=settings).returncode == 0


def test_ten_processes_at_once_install_it_once(bare, expected):
    code = f"from relay.schema.install import upgrade; print(upgrade({bare!r}))"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(10)]
    said = sorted(process.communicate(timeout=120)[0].strip() for process in processes)
    assert [process.returncode for process in processes] == [0] * 10
    assert said == sorted([str(list(range(1, VERSION + 1)))] + ["[]"] * 9)
    assert catalog(bare) == expected


def test_a_database_full_of_other_tables_is_left_as_it_is(bare):
    execute(
        bare,
        "CREATE TABLE lane (x int); CREATE TABLE outbox (x int); CREATE TABLE alembic_version (version_num text);"
        "INSERT INTO alembic_version VALUES ('theirs'); CREATE SCHEMA other; CREATE TABLE other.parked (x int);"
        "CREATE FUNCTION emit(text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    )
    outside = (
        "SELECT oid, relname, relacl::text FROM pg_class WHERE relnamespace IN"
        " ('public'::regnamespace, 'other'::regnamespace) ORDER BY oid"
    )
    before = execute(bare, outside)
    upgrade(bare)
    assert execute(bare, outside) == before
    assert alembic(bare, "upgrade", "head").returncode == 0
    assert execute(bare, "SELECT version_num FROM alembic_version") == [("theirs",)]
    assert {row[1] for row in execute(bare, outside)} - {row[1] for row in before} == {
        "relay_alembic_version",
        "relay_alembic_version_pkc",
    }


def test_a_schema_of_that_name_with_other_content_is_refused_and_left_alone(bare):
    execute(bare, "CREATE SCHEMA relay; CREATE TABLE relay.outbox (theirs int)")
    with pytest.raises(SchemaError, match=r"RLY-404.*holds something else"):
        upgrade(bare)
    assert execute(bare, "SELECT relname FROM pg_class WHERE relnamespace = 'relay'::regnamespace") == [("outbox",)]


def test_a_search_path_and_decoys_in_it_change_nothing(bare, expected):
    name = bare.rpartition("/")[2]
    execute(bare, f'ALTER DATABASE "{name}" SET search_path = evil, public; CREATE SCHEMA evil')
    execute(
        bare, "CREATE FUNCTION evil.hashtextextended(text, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint'"
    )
    execute(
        bare, "CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT null::timestamptz'"
    )
    upgrade(bare)
    assert catalog(bare) == expected


def test_an_upgrade_that_gets_no_lock_gives_up_and_says_so(bare, monkeypatch):
    monkeypatch.setattr("relay.schema.install.LOCK_ATTEMPTS", 1)
    with psycopg.connect(bare) as blocker:
        blocker.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_ID,))
        with pytest.raises(SchemaError, match=r"RLY-404.*quieter time"):
            upgrade(bare)


def test_a_role_that_may_not_create_is_told_who_may(bare):
    role = "nobody_" + bare.rpartition("/")[2]
    execute(bare, f"CREATE ROLE {role} LOGIN")
    try:
        with pytest.raises(GrantError, match=r"RLY-501.*may not install.*owner"):
            upgrade(bare.replace("postgres@", f"{role}@"))
    finally:
        execute(bare, f"DROP ROLE {role}")


# Other doors


def test_plain_sql_gives_the_same(server, bare, expected):
    printed = relay("db", "sql")
    assert printed.returncode == 0
    done = psql(server, bare, printed.stdout)
    assert done.returncode == 0, done.stderr
    assert catalog(bare) == expected
    assert upgrade(bare) == []


def test_plain_sql_twice_says_so_and_changes_nothing(server, bare, expected):
    psql(server, bare, script())
    again = psql(server, bare, script())
    assert again.returncode != 0
    assert "already exists" in again.stderr
    assert catalog(bare) == expected


def test_alembic_gives_the_same(bare, expected):
    done = alembic(bare, "upgrade", "head")
    assert done.returncode == 0, done.stderr
    assert catalog(bare) == expected
    assert upgrade(bare) == []
    assert alembic(bare, "upgrade", "head").returncode == 0
    assert catalog(bare) == expected


def test_alembic_takes_over_what_the_command_installed(bare, expected):
    upgrade(bare)
    done = alembic(bare, "upgrade", "head")
    assert done.returncode == 0, done.stderr
    assert catalog(bare) == expected
    assert alembic(bare, "current").stdout.strip() == f"{VERSION:04d} (head)"


def test_alembic_sees_that_the_schema_was_dropped_by_hand(bare, expected):
    alembic(bare, "upgrade", "head")
    execute(bare, "DROP SCHEMA relay CASCADE")
    assert alembic(bare, "upgrade", "head").returncode == 0
    assert catalog(bare) == expected


def test_alembic_downgrades_by_dropping_the_schema(bare):
    alembic(bare, "upgrade", "head")
    assert alembic(bare, "downgrade", "base").returncode == 0
    assert execute(bare, "SELECT to_regnamespace('relay')") == [(None,)]
    assert upgrade(bare) == list(range(1, VERSION + 1))


@pytest.mark.parametrize("where", ["outbox", "parked"])
def test_a_downgrade_that_would_lose_events_is_refused(bare, where):
    upgrade(bare)
    with psycopg.connect(bare, autocommit=True) as connection:
        id_ = emit(connection, "k", "x")
        if where == "parked":
            park(connection, id_)
    refused = alembic(bare, "downgrade", "base")
    assert refused.returncode != 0
    assert "RLY-404" in refused.stdout + refused.stderr
    assert "Traceback" not in refused.stderr
    assert execute(bare, f"SELECT count(*) FROM relay.{where}") == [(1,)]


def test_alembic_offline_prints_what_psql_can_run(server, bare, expected):
    printed = alembic("", "upgrade", "head", "--sql")
    assert printed.returncode == 0, printed.stderr
    done = psql(server, bare, printed.stdout)
    assert done.returncode == 0, done.stderr
    assert catalog(bare) == expected
    assert alembic(bare, "current").stdout.strip() == f"{VERSION:04d} (head)"
    back = alembic("", "downgrade", f"{VERSION:04d}:base", "--sql")
    assert psql(server, bare, back.stdout).returncode == 0
    assert execute(bare, "SELECT to_regnamespace('relay')") == [(None,)]


def test_five_alembics_at_once_install_it_once(bare, expected):
    environment = {**os.environ, "RELAY_DATABASE_URL": bare}
    command = [sys.executable, "-m", "alembic", "upgrade", "head"]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(5)
    ]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 5, said
    assert catalog(bare) == expected


def test_alembic_says_in_one_line_what_is_wrong():
    unreachable = alembic("postgresql://u:hidden@127.0.0.1:1/x", "upgrade", "head")
    assert unreachable.returncode != 0
    assert "RLY-301" in unreachable.stdout + unreachable.stderr
    assert "Traceback" not in unreachable.stderr
    assert "hidden" not in unreachable.stdout + unreachable.stderr


# Versions


def test_a_missing_schema_is_named_with_its_fix(bare):
    with connect(bare, "test") as connection, pytest.raises(SchemaError, match=r"RLY-401.*relay db upgrade"):
        require_version(connection)


@pytest.mark.parametrize(("version", "code"), [(VERSION + 1, "RLY-403"), (0, "RLY-401")])
def test_a_version_that_does_not_fit_is_refused_by_all(bare, version, code):
    upgrade(bare)
    execute(bare, "DELETE FROM relay.schema_version")
    if version:
        execute(bare, f"INSERT INTO relay.schema_version (version, oldest_code) VALUES ({version}, {version})")
    with connect(bare, "test") as connection, pytest.raises(SchemaError, match=code):
        require_version(connection)
    checked = relay("db", "check", settings={"RELAY_DATABASE_URL": bare})
    assert checked.returncode == 4
    assert checked.stderr.startswith(code)
    if version > VERSION:
        with pytest.raises(SchemaError, match="RLY-403"):
            upgrade(bare)
        assert "RLY-403" in alembic(bare, "upgrade", "head").stderr


def test_an_older_version_names_both(bare, monkeypatch):
    upgrade(bare)
    monkeypatch.setattr("relay.schema.install.OLDEST_SCHEMA", VERSION + 1)
    with connect(bare, "test") as connection, pytest.raises(SchemaError, match=rf"RLY-402.*{VERSION}.*{VERSION + 1}"):
        require_version(connection)


def test_a_step_notes_itself_and_the_oldest_code_that_works_with_it():
    for version in range(1, VERSION + 1):
        note = r"INSERT INTO relay\.schema_version \(version, oldest_code\) VALUES \((\d+), (\d+)\);\n"
        noted = re.findall(note, step(version))
        assert [int(found[0]) for found in noted] == [version]
        assert 1 <= int(noted[0][1]) <= version
        assert re.search(note + r"\Z", step(version))


# Lanes


def test_the_lane_of_a_key_never_changes(bare):
    """Literal values: another lane for a key that is in use would break its order during an upgrade."""
    upgrade(bare)
    with psycopg.connect(bare, autocommit=True) as connection:
        for key in ("", "user:1", "user:2", "ключ", "a" * 1000):
            emit(connection, key, "x")
        emit(connection, None, "x")
        rows = connection.execute("SELECT id, key, lane FROM relay.outbox ORDER BY id").fetchall()
    assert [row[2] for row in rows[:5]] == LANES
    assert 0 <= rows[5][2] <= 63


LANES = [45, 15, 44, 0, 48]


def test_events_of_one_key_lie_in_one_lane_and_keys_spread(bare):
    upgrade(bare)
    with psycopg.connect(bare, autocommit=True) as connection:
        connection.execute(
            "SELECT relay.append_event('t', 'k' || n % 1000, '\\x', '{}', NULL, false)"
            " FROM generate_series(1, 5000) AS n"
        )
        lanes = "SELECT count(DISTINCT lane) FROM relay.outbox"
        assert connection.execute(f"{lanes} GROUP BY key HAVING count(DISTINCT lane) > 1").fetchall() == []
        assert connection.execute(lanes).fetchone() == (64,)
        assert connection.execute("SELECT count(*) FROM relay.outbox WHERE lane NOT BETWEEN 0 AND 63").fetchone() == (
            0,
        )
