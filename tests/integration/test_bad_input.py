"""What is wrong is said in one line that names the field and the fix, with its own code and exit status, and no secret.

Each command line runs as a process of its own and has half a minute to answer. What is wrong with an event is said at
insert, where it fails the transaction that wrote it and nothing else.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql

from relay.cli.main import cli
from relay.demo.server import free_port
from relay.schema.steps import VERSION
from tests.support import postgres
from tests.support.commands import relay

SECRET = "geheim-7f3a"
RUN = ("run", "--drain")
STATUS = ("status",)
NO_KAFKA = "127.0.0.1:1"


def refused(
    arguments: tuple[str, ...],
    code: str,
    status: int,
    *words: str,
    settings: Mapping[str, str],
    cwd: Path | None = None,
) -> None:
    """One line on stderr with code, field and fix; nothing of the secret anywhere; the exit status of the family."""
    said = relay(*arguments, settings=settings, seconds=30, cwd=str(cwd) if cwd else None)
    assert said.returncode == status, said.stderr
    assert re.fullmatch(rf"{code}: [^\n]+\. Fix: [^\n]+\n", said.stderr), said.stderr
    for word in words:
        assert word in said.stderr
    assert SECRET not in said.stdout + said.stderr


def with_kafka(dsn: str, **more: str) -> dict[str, str]:
    return {"RELAY_DATABASE_URL": dsn, "RELAY_KAFKA_BOOTSTRAP_SERVERS": NO_KAFKA, **more}


# Settings: exit status 6, and nothing is connected to


NOWHERE = "postgresql://u:p@127.0.0.1:1/d"

SETTINGS: dict[str, tuple[dict[str, str], str, tuple[str, ...]]] = {
    "unknown": ({"RELAY_DEMON__ROWS_MAX": SECRET}, "RLY-202", ("RELAY_DEMON__ROWS_MAX", "RELAY_DAEMON__ROWS_MAX?")),
    "type": ({"RELAY_DAEMON__ROWS_MAX": SECRET}, "RLY-203", ("daemon.rows_max", "integer", "OPERATING.md")),
    "range": ({"RELAY_DAEMON__ROWS_MAX": "0"}, "RLY-203", ("daemon.rows_max", "1 to 50000")),
    "takeover": (
        {"RELAY_DAEMON__TAKEOVER_SECONDS": "5"},
        "RLY-204",
        ("daemon.takeover_seconds", "daemon.publish_timeout_seconds", "20 or more"),
    ),
    "shutdown": (
        {"RELAY_DAEMON__SHUTDOWN_SECONDS": "10"},
        "RLY-204",
        ("daemon.shutdown_seconds", "daemon.publish_timeout_seconds", "above 10"),
    ),
    "twice": ({"RELAY_DATABASE__URL": SECRET}, "RLY-204", ("database.url", "RELAY_DATABASE__URL", "keep one")),
    "no-file": ({"RELAY_CONFIG": "/no/such.toml"}, "RLY-205", ("such.toml", "RELAY_CONFIG")),
    "no-secret-file": (
        {"RELAY_KAFKA__SASL_PASSWORD_FILE": "/no/such"},
        "RLY-205",
        ("RELAY_KAFKA__SASL_PASSWORD_FILE", "path"),
    ),
    "no-kafka": ({"RELAY_KAFKA_BOOTSTRAP_SERVERS": ""}, "RLY-201", ("RELAY_KAFKA_BOOTSTRAP_SERVERS",)),
    "no-database": ({"RELAY_DATABASE_URL": ""}, "RLY-201", ("RELAY_DATABASE_URL",)),
    "dsn": ({"RELAY_DATABASE_URL": SECRET}, "RLY-203", ("database.url", "postgresql://")),
    "dsn-at": ({"RELAY_DATABASE_URL": f"postgresql://u:p@{SECRET}@h/d"}, "RLY-203", ("database.url", "%40")),
    "dsn-port": ({"RELAY_DATABASE_URL": f"postgresql://u:{SECRET}@h:x/d"}, "RLY-203", ("database.url", "port")),
    "dsn-option": (
        {"RELAY_DATABASE_URL": f"postgresql://u:{SECRET}@127.0.0.1:1/d?sslmode={SECRET}"},
        "RLY-203",
        ("database.url", "sslmode"),
    ),
    "guarded": ({"RELAY_KAFKA__ACKS": "1"}, "RLY-207", ("kafka.acks", "use all")),
    "ours": ({"RELAY_KAFKA__MESSAGE_TIMEOUT_MS": "1"}, "RLY-207", ("daemon.publish_timeout_seconds",)),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_a_wrong_setting_is_named_and_nothing_starts(case):
    """Whatever `relay run` cannot use is said before it connects to anything."""
    settings, code, words = SETTINGS[case]
    refused(RUN, code, 6, *words, settings=with_kafka(NOWHERE) | settings)


TOML: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "section": ("[deamon]\nrows_max = 1", "RLY-202", ("[deamon]", "daemon?")),
    "name": (f"[daemon]\nrow_max = '{SECRET}'", "RLY-202", ("daemon.row_max", "rows_max?")),
    "dead-letter": (f"[topics.orders]\ndead_letter = '{SECRET} x'", "RLY-203", ("'orders'.dead_letter", "A-Z")),
    "topic": ("[topics.'a topic']\npoison = 'block'", "RLY-203", ("'a topic'", "A-Z")),
    "policy": (f"[topics.orders]\npoison = '{SECRET}'", "RLY-203", ('"orders".poison', "park, block, topic")),
    "syntax": (f"[database]\nurl = {SECRET}", "RLY-205", ("relay.toml", "TOML")),
}


@pytest.mark.parametrize("case", TOML)
def test_a_wrong_line_of_the_file_is_named(case, tmp_path):
    """The file of the working folder is checked like the environment."""
    text, code, words = TOML[case]
    (tmp_path / "relay.toml").write_text(text)
    refused(("config", "check"), code, 6, *words, settings=with_kafka(NOWHERE), cwd=tmp_path)


PROPERTIES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "unknown": ({"SASL_PASWORD": SECRET}, ("sasl.pasword",)),
    "value": ({"BATCH_SIZE": SECRET}, ("batch.size",)),
    "alias": ({"LINGER_MS": SECRET}, ("linger.ms",)),
    "range": ({"MESSAGE_MAX_BYTES": "1"}, ("message.max.bytes", "1000")),
    "mechanism": ({"SECURITY_PROTOCOL": "sasl_ssl", "SASL_MECHANISM": SECRET}, ("SASL mechanism",)),
    "key": (
        {"SECURITY_PROTOCOL": "ssl", "SSL_KEY_PEM": SECRET, "SSL_KEY_PASSWORD": SECRET},
        ("ssl.key.pem",),
    ),
    "file": ({"SECURITY_PROTOCOL": "ssl", "SSL_CA_LOCATION": f"/no/{SECRET}"}, ("ssl.ca.location",)),
    "incomplete": (
        {"SECURITY_PROTOCOL": "sasl_ssl", "SASL_MECHANISM": "PLAIN", "SASL_PASSWORD": SECRET},
        ("sasl.username",),
    ),
}


@pytest.mark.parametrize("case", PROPERTIES)
def test_what_librdkafka_refuses_is_named_without_the_value(case):
    """By `relay config check`, without any connection."""
    properties, words = PROPERTIES[case]
    given = {f"RELAY_KAFKA__{name}": value for name, value in properties.items()}
    refused(("config", "check"), "RLY-206", 6, *words, "RELAY_KAFKA__", settings=with_kafka(NOWHERE) | given)


@pytest.mark.parametrize("case", ["unknown", "alias", "mechanism"])
def test_a_relay_refuses_to_start_with_what_librdkafka_refuses(case, database):
    """In the same words, before a lane is claimed."""
    properties, words = PROPERTIES[case]
    given = {f"RELAY_KAFKA__{name}": value for name, value in properties.items()}
    refused(RUN, "RLY-206", 6, *words, "RELAY_KAFKA__", settings=with_kafka(database) | given)


def test_a_port_that_is_taken_is_named(database):
    """With a port of its own choice a relay does not fall back to another one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(RUN, "RLY-203", 6, "http.port", settings=with_kafka(database, RELAY_HTTP__PORT=port))


@pytest.mark.parametrize(
    "arguments", [("run", "--nope"), ("nope",), ("parked", "show", "x"), ("db", "sql", "--to", "99")]
)
def test_a_command_that_does_not_exist_is_a_usage_error(arguments):
    """Exit status 2, and the last line says which word is wrong."""
    said = relay(*arguments, seconds=30)
    assert said.returncode == 2
    assert said.stderr.splitlines()[-1].startswith("Error: ")
    assert said.stdout == ""


# The database: exit status 3 if it cannot be had, 4 if the schema does not fit, 1 if a right is missing


@pytest.mark.parametrize("arguments", [RUN, STATUS, ("db", "upgrade"), ("parked", "list")])
def test_a_database_where_nobody_listens_is_unreachable(arguments):
    """Host and port are named, user and password are not."""
    port = free_port()
    dsn = f"postgresql://u:{SECRET}@127.0.0.1:{port}/d"
    refused(arguments, "RLY-301", 3, str(port), "RELAY_DATABASE_URL", settings=with_kafka(dsn))


def test_a_database_that_never_answers_is_given_up():
    """Something that accepts and says nothing costs the time-out to connect, and no more."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = f"postgresql://u:{SECRET}@127.0.0.1:{silent.getsockname()[1]}/d"
        settings = with_kafka(dsn, RELAY_DATABASE__CONNECT_TIMEOUT_SECONDS="1")
        refused(STATUS, "RLY-301", 3, "timeout", settings=settings)


def test_a_database_that_does_not_exist_is_named(pg):
    """The name of the database, in Postgres' words."""
    refused(STATUS, "RLY-301", 3, "nosuch", settings={"RELAY_DATABASE_URL": pg.dsn("nosuch")})


@pytest.fixture(scope="module")
def strict_server() -> Iterator[str]:
    """A server that wants passwords, and the DSN of its role `app`."""
    with postgres.private_server() as server:
        with closing(psycopg.connect(server.dsn(), autocommit=True)) as connection:
            connection.execute(sql.SQL("CREATE ROLE app LOGIN PASSWORD {}").format(sql.Literal("right")))
            hba = Path(connection.execute("SHOW hba_file").fetchone()[0])
            hba.write_text("host all app all scram-sha-256\n" + hba.read_text())
            connection.execute("SELECT pg_reload_conf()")
        yield server.dsn(user="app")


@pytest.mark.parametrize("password", [f":{SECRET}", ""], ids=["wrong", "none"])
def test_a_refused_login_is_told_from_a_database_that_is_away(strict_server, password):
    """A wrong password and no password need another fix than a wrong host."""
    dsn = strict_server.replace("app@", f"app{password}@")
    refused(STATUS, "RLY-302", 3, "user and password", settings={"RELAY_DATABASE_URL": dsn})


@pytest.mark.parametrize("arguments", [RUN, STATUS])
def test_a_read_only_database_is_named(database, arguments):
    """A standby, or a primary that was made read-only: another host is the fix."""
    name = sql.Identifier(database.rpartition("/")[2])
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
    refused(arguments, "RLY-303", 3, "writable primary", settings=with_kafka(database))


@pytest.fixture(scope="module")
def bare(pg) -> Iterator[str]:
    """A database without the schema."""
    dsn = postgres.bare_database(pg)
    yield dsn
    postgres.drop_database(pg, dsn)


@pytest.mark.parametrize("arguments", [RUN, STATUS, ("db", "check"), ("parked", "retry", "1")])
def test_a_missing_schema_is_named_with_the_command_that_makes_it(bare, arguments):
    """Everything that needs the schema says how to get it."""
    refused(arguments, "RLY-401", 4, "relay db upgrade", settings=with_kafka(bare))


@pytest.mark.parametrize("arguments", [RUN, STATUS, ("db", "upgrade")])
def test_a_schema_of_a_newer_relay_is_left_alone(database, arguments):
    """Both versions are named, and nothing is changed."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("INSERT INTO relay.schema_version (version, oldest_code) VALUES (99, 99)")
    refused(arguments, "RLY-403", 4, "99", str(VERSION), "newer", settings=with_kafka(database))


@pytest.mark.parametrize("arguments", [STATUS, ("db", "check"), ("parked", "list")])
def test_a_schema_of_an_older_relay_is_named_with_the_command_that_raises_it(database, monkeypatch, arguments):
    """The code pretends to be a later one, which no longer works with the schema of this one."""
    monkeypatch.setattr("relay.schema.install.OLDEST_SCHEMA", VERSION + 1)
    said = CliRunner().invoke(cli, arguments, env={"RELAY_DATABASE_URL": database})
    assert said.exit_code == 4
    assert re.fullmatch(rf"RLY-402: .*{VERSION}.*{VERSION + 1}\. Fix: run `relay db upgrade`\n", said.stderr)


@pytest.fixture
def stranger(database) -> Iterator[str]:
    """The DSN of a role that may log in and nothing else."""
    role = sql.Identifier("stranger_" + database.rpartition("/")[2])
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        yield database.replace("postgres@", f"{role.as_string(None).strip(chr(34))}@")
        connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
        connection.execute(sql.SQL("DROP ROLE {}").format(role))


@pytest.mark.parametrize("arguments", [RUN, STATUS])
def test_a_missing_grant_is_named_with_the_command_that_prints_it(stranger, arguments):
    """Exit status 1: the database is there, the schema fits, the role may not."""
    refused(arguments, "RLY-501", 1, "lacks", "relay db grants", settings=with_kafka(stranger))


def test_every_right_that_a_relay_lacks_is_named_at_once(stranger, database):
    """Not one after the other, at each start."""
    name = sql.Identifier(stranger.split("//")[1].partition("@")[0])
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA relay TO {}").format(name))
        connection.execute(sql.SQL("GRANT SELECT ON relay.schema_version, relay.outbox TO {}").format(name))
    words = (
        "DELETE on relay.outbox",
        "UPDATE on relay.lane",
        "UPDATE on relay.parked",
        "EXECUTE on relay.park",
        "outbox_id_seq",
    )
    refused(RUN, "RLY-501", 1, *words, settings=with_kafka(stranger))


# Events: at insert, from any language


EVENTS: dict[str, tuple[str, str, list[object]]] = {
    "topic": ("RLY-101", "SELECT relay.emit(%s, 'k', %s::text)", [f"{SECRET}!", SECRET]),
    "topic-empty": ("RLY-101", "SELECT relay.emit('', 'k', %s::text)", [SECRET]),
    "topic-null": ("RLY-101", "SELECT relay.emit(NULL, 'k', %s::text)", [SECRET]),
    "topic-dots": ("RLY-101", "SELECT relay.emit('..', 'k', %s::text)", [SECRET]),
    "topic-long": ("RLY-101", "SELECT relay.emit(repeat('t', 250), 'k', %s::text)", [SECRET]),
    "topic-line": ("RLY-101", "SELECT relay.emit(E't\\n', 'k', %s::text)", [SECRET]),
    "entity": ("RLY-102", "SELECT relay.touch(%s, '1')", [f"{SECRET}:x"]),
    "id-null": ("RLY-103", "SELECT relay.touch('user', NULL)", []),
    "id-long": ("RLY-103", "SELECT relay.touch('user', %s)", [SECRET * 200]),
    "payload": ("RLY-104", "SELECT relay.emit('t', 'k', repeat(%s, 100000)::bytea)", [SECRET]),
    "key": ("RLY-104", "SELECT relay.emit('t', repeat(%s, 100000), 'v'::text)", [SECRET]),
    "action": ("RLY-105", "SELECT relay.touch('user', '1', %s)", [f"{SECRET} now"]),
    "headers": ("RLY-106", "SELECT relay.emit('t', 'k', 'v'::text, %s::jsonb)", [f'["{SECRET}"]']),
    "header-name": ("RLY-106", "SELECT relay.emit('t', 'k', 'v'::text, %s::jsonb)", [f'{{"{SECRET} x": "1"}}']),
    "header-ours": ("RLY-106", "SELECT relay.emit('t', 'k', 'v'::text, %s::jsonb)", [f'{{"event_id": "{SECRET}"}}']),
    "header-value": ("RLY-107", "SELECT relay.emit('t', 'k', 'v'::text, %s::jsonb)", [f'{{"a": ["{SECRET}"]}}']),
    "header-line": ("RLY-107", "SELECT relay.emit('t', 'k', 'v'::text, %s::jsonb)", [f'{{"a": "{SECRET}\\n"}}']),
}  # fmt: skip


@pytest.fixture(scope="module")
def outbox(pg) -> Iterator[str]:
    """A database with a table of the application; each test empties both."""
    dsn = postgres.fresh_database(pg)
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE account (id int)")
    yield dsn
    postgres.drop_database(pg, dsn)


@pytest.mark.parametrize("case", EVENTS)
def test_a_wrong_event_fails_its_own_transaction_and_nothing_else(case, outbox):
    """Code and fix, nothing of the event. Its change is gone with it, a neighbour's is not; a savepoint is enough."""
    code, statement, parameters = EVENTS[case]
    with psycopg.connect(outbox) as caller, psycopg.connect(outbox) as neighbour:
        caller.execute("TRUNCATE account, relay.outbox")
        caller.commit()
        neighbour.execute("SELECT relay.emit('t', 'neighbour', 'v'::text)")
        caller.execute("INSERT INTO account VALUES (1)")
        with pytest.raises(psycopg.Error) as caught:
            caller.execute(statement, parameters)
        said = caught.value
        assert said.sqlstate == f"RL{code[4:]}"
        assert said.diag.message_primary.startswith(f"{code}: ")
        assert said.diag.message_hint
        assert SECRET not in f"{said}{said.diag.message_detail}{said.diag.context}"
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            caller.execute("SELECT 1")
        caller.rollback()
        caller.execute("INSERT INTO account VALUES (2)")
        with pytest.raises(psycopg.Error, match=code), caller.transaction():
            caller.execute(statement, parameters)
        caller.execute("SELECT relay.emit('t', 'caller', 'v'::text)")
        caller.commit()
        neighbour.commit()
        assert caller.execute("SELECT id FROM account").fetchall() == [(2,)]
        assert caller.execute("SELECT key FROM relay.outbox ORDER BY id").fetchall() == [("neighbour",), ("caller",)]


@pytest.mark.parametrize("key", [42, True, 4.2])
def test_a_key_that_is_no_text_is_not_converted_in_sql_either(outbox, key):
    """Postgres finds no function for it; 42 and '42' stay different things until the caller says otherwise."""
    with psycopg.connect(outbox) as caller:
        caller.execute("TRUNCATE relay.outbox")
        caller.commit()
        with pytest.raises(psycopg.errors.UndefinedFunction, match="emit"):
            caller.execute("SELECT relay.emit('t', %s, 'v'::text)", [key])
        caller.rollback()
        assert caller.execute("SELECT count(*) FROM relay.outbox").fetchone() == (0,)
