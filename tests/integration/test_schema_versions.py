"""Schema and code of neighbouring versions: what only adds is rolled in under load, what does not is refused."""

from __future__ import annotations

import psycopg
import pytest

from relay.schema.steps import VERSION
from tests.support import scenario
from tests.support.commands import emit, relay
from tests.support.hosts import next_release
from tests.support.kafka import fresh_topic
from tests.support.relay_process import RelayProcess

ADDS = """\
ALTER TABLE relay.outbox ADD COLUMN tenant text;
ALTER TABLE relay.parked ADD COLUMN tenant text;
ALTER TABLE relay.lane ADD COLUMN note text;
CREATE TABLE relay.tenant (name text PRIMARY KEY)"""

WRITERS_CALL = (
    "relay.append_event(text,text,bytea,jsonb,text,boolean)",
    "relay.emit(text,text,bytea,jsonb)",
    "relay.emit(text,text,jsonb,jsonb)",
    "relay.emit(text,text,text,jsonb)",
    "relay.emit_many(text[],text[],bytea[],jsonb[],boolean)",
    "relay.touch(text,text,text,text,jsonb,jsonb)",
)
"""What writers of schema version 1 call. Nobody checks their version, so these stay as long as version 1 is in use."""


def test_a_step_that_only_adds_is_rolled_in_under_load(database, kafka, tmp_path):
    """Relays and writers of the version before work and restart on the next schema, and lose and repeat nothing."""
    code = next_release(tmp_path, ADDS, oldest_code=VERSION)

    def roll(run: scenario.Run) -> None:
        run.let_write(50)
        upgraded = relay("db", "upgrade", settings={**code, "RELAY_DATABASE_URL": run.dsn})
        assert upgraded.stdout == f"schema relay: upgraded to version {VERSION + 1}\n", upgraded.stderr
        run.let_write(50)
        run.fleet.replace(0)
        run.let_write(50)
        with RelayProcess(run.dsn, run.bootstrap, settings=code) as successor:
            successor.wait_started()
            run.fleet.replace(1)
            run.let_write(50)
            assert successor.stop() == 0

    scenario.run(database, kafka.bootstrap, [fresh_topic(kafka)], relays=2, nemesis=roll, clean=True)
    checked = relay("db", "check", settings={"RELAY_DATABASE_URL": database})
    assert checked.stdout == (
        f"schema relay: version {VERSION + 1}, which this code for version {VERSION} can work with\n"
    )
    assert relay("db", "upgrade", settings={"RELAY_DATABASE_URL": database}).returncode == 0


def test_the_next_code_works_before_its_schema(database, topic, kafka, tmp_path):
    """Whichever is rolled out first: code that says so relays on the schema before, and says what is left to do."""
    code = next_release(tmp_path, ADDS, oldest_code=VERSION, oldest_schema=VERSION)
    settings = {**code, "RELAY_DATABASE_URL": database, "RELAY_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}
    with psycopg.connect(database, autocommit=True) as connection:
        emit(connection, "k", "x", topic=topic)
        drained = relay("run", "--drain", settings=settings)
        assert drained.returncode == 0, drained.stderr
        assert connection.execute("SELECT count(*) FROM relay.outbox").fetchone() == (0,)
    checked = relay("db", "check", settings=settings)
    assert checked.stdout == (
        f"schema relay: version {VERSION}, which will do; `relay db upgrade` takes it to {VERSION + 1}\n"
    )


COMMANDS = [("run", "--drain"), ("status",), ("parked", "list"), ("db", "check")]


@pytest.fixture
def with_an_event(database):
    """A database whose event nobody can have published: the brokers of these tests do not exist."""
    with psycopg.connect(database, autocommit=True) as connection:
        emit(connection, "k", "x")
        yield {"RELAY_DATABASE_URL": database, "RELAY_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
        assert connection.execute("SELECT count(*) FROM relay.outbox").fetchone() == (1,)


def test_a_step_that_older_code_cannot_work_with_stops_it(with_an_event, tmp_path):
    """Every command exits with 4 and one line, and does nothing."""
    code = next_release(tmp_path, "ALTER TABLE relay.lane RENAME COLUMN parked TO aside", oldest_code=VERSION + 1)
    assert relay("db", "upgrade", settings={**with_an_event, **code}).returncode == 0
    for arguments in (*COMMANDS, ("db", "upgrade")):
        refused = relay(*arguments, settings=with_an_event)
        assert (refused.returncode, refused.stdout) == (4, ""), arguments
        assert refused.stderr == (
            f"RLY-403: the schema relay has version {VERSION + 1}, which needs code for version {VERSION + 1} or newer;"
            f" this code knows {VERSION}. Fix: install a newer relay\n"
        )


def test_code_that_an_older_schema_does_not_suffice_stops(with_an_event, tmp_path):
    """Likewise."""
    code = next_release(tmp_path, ADDS, oldest_code=VERSION, oldest_schema=VERSION + 1)
    for arguments in COMMANDS:
        refused = relay(*arguments, settings={**with_an_event, **code})
        assert (refused.returncode, refused.stdout) == (4, ""), arguments
        assert refused.stderr == (
            f"RLY-402: the schema relay has version {VERSION}, needed is {VERSION + 1}. Fix: run `relay db upgrade`\n"
        )


@pytest.mark.parametrize("function", WRITERS_CALL)
def test_what_writers_of_the_first_version_call_is_there(database, function):
    """With the arguments that they pass."""
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT to_regprocedure(%s)", (function,)).fetchone() != (None,)
