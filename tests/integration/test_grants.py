"""The five roles that `relay db grants` prints: each can do its work, and nothing that it must not do."""

from __future__ import annotations

import json
import random

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql

from relay.cli.main import cli
from tests.support.commands import emit, park, relay
from tests.support.relay_process import RelayProcess, eventually

PARTS = ("writer", "relay", "monitor", "admin", "reader")


@pytest.fixture
def roles(any_database):
    """Names of roles with their grants, awkward on purpose; and a table of the application."""
    suffix = any_database.rpartition("/")[2]
    names = {part: f"{part}-{suffix}" for part in PARTS}
    with psycopg.connect(any_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE account (id int, balance int); INSERT INTO account VALUES (1, 100)")
        for name in names.values():
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        options = [option for part, name in names.items() for option in (f"--{part}", name)]
        printed = CliRunner().invoke(cli, ["db", "grants", *options])
        assert printed.exit_code == 0, printed.stderr
        connection.execute(printed.stdout)
        yield names
        for name in names.values():
            connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture
def owner(any_database, roles):
    with psycopg.connect(any_database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def dsn_of(any_database, roles):
    return lambda part: any_database.replace("postgres@", f"{roles[part]}@")


@pytest.fixture
def open_as(dsn_of):
    """Opens connections as one of the roles and closes them before the roles are dropped."""
    opened = []

    def connect(part: str) -> psycopg.Connection:
        opened.append(psycopg.connect(dsn_of(part), autocommit=True))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def refused(connection: psycopg.Connection, *statements: str) -> None:
    """Each of them fails for lack of a right, and for nothing else."""
    for statement in statements:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)


DDL = (
    "CREATE TABLE relay.mine (x int)",
    "ALTER TABLE relay.outbox ADD COLUMN x int",
    "DROP TABLE relay.outbox",
    "TRUNCATE relay.outbox",
    "CREATE OR REPLACE FUNCTION relay.event_bytes_max() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "DROP SCHEMA relay CASCADE",
)
NEVER = (
    *DDL,
    "SELECT * FROM account",
    "UPDATE relay.outbox SET payload = 'forged'",
    "UPDATE relay.outbox SET key = 'forged'",
    "UPDATE relay.outbox SET topic = 'forged'",
    "UPDATE relay.parked SET payload = 'forged'",
    "UPDATE relay.parked SET key = 'forged'",
    "UPDATE relay.parked SET topic = 'forged'",
    "DELETE FROM relay.parked",
    "INSERT INTO relay.outbox (lane, topic) VALUES (1, 'forged')",
    "INSERT INTO relay.outbox (id, lane, topic) OVERRIDING SYSTEM VALUE VALUES (1, 1, 'forged')",
    "SELECT setval('relay.outbox_id_seq', 1)",
    "SELECT nextval('relay.outbox_id_seq')",
    "INSERT INTO relay.lane (lane) VALUES (64)",
    "DELETE FROM relay.lane",
    "UPDATE relay.lane SET lane = lane + 1",
    "UPDATE relay.entity_version SET version = 1",
    "INSERT INTO relay.schema_version (version, oldest_code) VALUES (99, 1)",
    "DELETE FROM relay.schema_version",
    "SELECT relay.count_locks(0, 0)",
    "SELECT relay.escalate()",
    "SELECT relay.lock_by_row(1)",
    "INSERT INTO relay.key_lock VALUES (1, '1', NULL)",
)


@pytest.mark.parametrize("part", PARTS)
def test_what_no_role_may_do(open_as, owner, part):
    emit(owner, "k", "x")
    park(owner, emit(owner, "k", "y"))
    refused(open_as(part), *NEVER)


def test_a_writer_writes_and_sees_nothing(open_as, owner):
    writer = open_as("writer")
    writer.execute("SELECT relay.emit('t', 'k', 'text'::text)")
    writer.execute("SELECT relay.emit('t', 'k', '\\x00'::bytea)")
    writer.execute("""SELECT relay.emit('t', 'k', '{}'::jsonb, '{"h": "v"}')""")
    writer.execute("SELECT relay.emit_many('{t,t}', '{a,b}', '{x,y}', '{\"{}\",\"{}\"}')")
    assert writer.execute("SELECT relay.touch('user', '1')").fetchone() == (1,)
    assert owner.execute("SELECT count(*) FROM relay.outbox").fetchone() == (6,)
    refused(
        writer,
        "SELECT count(*) FROM relay.outbox",
        "SELECT payload FROM relay.outbox",
        "SELECT * FROM relay.entity_version",
        "SELECT * FROM relay.parked",
        "SELECT * FROM relay.lane FOR UPDATE",
        "DELETE FROM relay.outbox",
        "SELECT relay.unpark(1, true)",
        "SELECT relay.pack_headers('{}')",
    )


def test_decoys_of_a_writer_do_not_run_as_the_owner(open_as, owner):
    """A function that runs as its owner must not find what the caller put into its way."""
    writer = open_as("writer")
    writer.execute("SET search_path = pg_temp, pg_catalog, public")
    writer.execute(
        "CREATE FUNCTION pg_temp.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS"
        " 'BEGIN RAISE EXCEPTION $x$ran as %$x$, current_user; END'"
    )
    writer.execute(
        "CREATE FUNCTION pg_temp.octet_length(text) RETURNS integer LANGUAGE plpgsql AS"
        " 'BEGIN RAISE EXCEPTION $x$ran as %$x$, current_user; END'"
    )
    writer.execute("CREATE TEMP TABLE outbox (topic text)")
    writer.execute("SELECT relay.emit('t', 'k', 'x'::text)")
    writer.execute("SELECT relay.touch('user', '1')")
    assert owner.execute("SELECT count(*) FROM relay.outbox").fetchone() == (2,)


def test_the_relay_does_not_write_events_or_lose_parked_ones(open_as, owner):
    emit(owner, "k", "x")
    refused(
        open_as("relay"),
        "SELECT relay.emit('t', 'k', 'x'::text)",
        "SELECT relay.touch('user', '1')",
        "SELECT relay.unpark(1, true)",
        "SELECT * FROM relay.entity_version",
        "INSERT INTO relay.parked (id, lane, event_id, created_at, topic, key, headers, payload, policy, code, reason,"
        " attempts) VALUES (99, 1, gen_random_uuid(), now(), 't', 'k', '', 'forged', 'park', 'RLY-703', 'r', 2)",
        "SELECT * FROM relay.returned",
        "UPDATE relay.parked SET waits = false",
        "UPDATE relay.parked SET policy = 'park'",
    )


def test_the_relay_can_park_only_what_an_application_wrote(open_as, owner):
    """What is parked goes out again with `relay parked retry --all`."""
    daemon = open_as("relay")
    parked = "SELECT relay.park('{1}', '{99}', 'park', false, 'RLY-703', 'r', 2)"
    assert daemon.execute(parked).fetchone() == (0,)
    id_ = emit(owner, "k", "x")
    lane = owner.execute("SELECT lane FROM relay.outbox").fetchone()[0]
    moved = daemon.execute("SELECT relay.park(%s, %s, 'park', false, 'RLY-703', 'r', 2)", ([lane], [id_])).fetchone()
    assert moved == (1,)
    assert owner.execute("SELECT id, convert_from(payload, 'UTF8') FROM relay.parked").fetchall() == [(id_, "x")]


def test_grants_that_are_given_again_take_away_what_the_schema_before_needed(open_as, owner, roles):
    role = sql.Identifier(roles["relay"])
    owner.execute(sql.SQL("GRANT INSERT ON relay.parked TO {}").format(role))
    owner.execute(CliRunner().invoke(cli, ["db", "grants", "--relay", roles["relay"]]).stdout)
    refused(open_as("relay"), "INSERT INTO relay.parked SELECT * FROM relay.parked")


def test_a_monitor_sees_no_content(open_as, dsn_of, owner):
    emit(owner, "k", "x")
    park(owner, emit(owner, "k", "y"))
    said = relay("status", "--json", settings={"RELAY_DATABASE_URL": dsn_of("monitor")})
    assert said.returncode == 0, said.stderr
    data = json.loads(said.stdout)
    assert (data["backlog"], data["parked"]["total"]) == (1, 1)
    assert relay("db", "check", settings={"RELAY_DATABASE_URL": dsn_of("monitor")}).returncode == 0
    columns = [
        f"SELECT {column} FROM relay.{table}"
        for table in ("outbox", "parked")
        for column in ("payload", "key", "headers")
    ]
    refused(
        open_as("monitor"),
        *columns,
        "SELECT * FROM relay.outbox",
        "SELECT * FROM relay.parked",
        "SELECT * FROM relay.entity_version",
        "SELECT * FROM relay.lane FOR UPDATE",
        "DELETE FROM relay.outbox",
        "SELECT relay.unpark(1, true)",
        "SELECT relay.emit('t', 'k', 'x'::text)",
    )


def test_an_admin_treats_parked_events_and_changes_none(open_as, dsn_of, owner):
    for number in range(3):
        park(owner, emit(owner, f"k{number}", "content"))
    settings = {"RELAY_DATABASE_URL": dsn_of("admin")}
    for arguments in (["list"], ["show", "1", "--reveal"], ["retry", "1"], ["drop", "2", "--yes"], ["retry", "--all"]):
        said = relay("parked", *arguments, settings=settings)
        assert said.returncode == 0, said.stderr
    assert relay("status", settings=settings).returncode == 0
    assert owner.execute("SELECT count(*) FROM relay.outbox").fetchone() == (2,)
    refused(
        open_as("admin"),
        "SELECT payload FROM relay.outbox",
        "DELETE FROM relay.outbox",
        "SELECT relay.emit('t', 'k', 'x'::text)",
    )


def test_a_reader_sees_versions_and_no_events(open_as, owner):
    """What a loader reads beside its row, in one statement, and nothing of what was announced."""
    owner.execute("SELECT relay.touch('user', '1'), relay.touch('user', '1')")
    reader = open_as("reader")
    of_one = "SELECT version FROM relay.entity_version WHERE entity = 'user' AND id = '1'"
    assert reader.execute(of_one).fetchone() == (2,)
    refused(
        reader,
        "SELECT * FROM relay.entity_version FOR UPDATE",
        "DELETE FROM relay.entity_version",
        "SELECT id FROM relay.outbox",
        "SELECT id FROM relay.parked",
        "SELECT * FROM relay.lane",
        "SELECT relay.emit('t', 'k', 'x'::text)",
        "SELECT relay.touch('user', '1')",
        "SELECT relay.unpark(1, true)",
    )


def test_a_command_without_its_right_says_which_and_how_to_get_it(dsn_of, owner, roles):
    park(owner, emit(owner, "k", "x"))
    said = relay("parked", "retry", "1", settings={"RELAY_DATABASE_URL": dsn_of("relay")})
    assert said.returncode == 1
    assert said.stderr == (
        f"RLY-501: the database role {roles['relay']} lacks EXECUTE on relay.unpark(bigint, boolean), which"
        " `relay parked retry` needs. Fix: connect as a role that was granted --admin, or have the owner of the schema"
        f" relay run the SQL that `relay db grants --admin {roles['relay']}` prints\n"
    )


def test_the_relay_publishes_parks_and_marks_with_the_rights_that_are_printed(dsn_of, owner, kafka, topic):
    """All that `relay run` does, as that role: a drain, a refused event, one that overtakes it, sleep and wake-up."""
    kafka.alter_topic(topic, {"max.message.bytes": "2000"})
    with RelayProcess(dsn_of("relay"), kafka.bootstrap) as process:
        process.wait_started()
        emit(owner, "good", "x", topic=topic)
        incompressible = "".join(random.Random(5).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=60_000))
        emit(owner, "bad", incompressible, topic=topic)
        process.wait_event("event.parked", seconds=30)
        emit(owner, "bad", "later", topic=topic)
        wait_until(owner, "SELECT count(*) FROM relay.outbox", 0)
        wait_until(owner, "SELECT count(*) FROM relay.parked WHERE overtaken_at IS NOT NULL", 1)
        # Asleep: writers notify now.
        wait_until(owner, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7236836", 1)
        emit(owner, "good", "y", topic=topic)
        wait_until(owner, "SELECT count(*) FROM relay.outbox", 0)
        assert process.stop() == 0
        assert not process.events("database.lost"), process.said()
        assert not process.events("worker.failed"), process.said()


def wait_until(connection: psycopg.Connection, query: str, value: int) -> None:
    eventually(lambda: connection.execute(query).fetchone() == (value,), 30, query)


def test_grants_need_no_connection_and_quote_names():
    said = relay("db", "grants", "--writer", 'a"; DROP TABLE x; --')
    assert said.returncode == 0
    assert 'TO "a""; DROP TABLE x; --";' in said.stdout


@pytest.mark.parametrize("arguments", [[], ["--writer", ""]])
def test_no_role_is_a_usage_error(arguments):
    assert relay("db", "grants", *arguments).returncode == 2
