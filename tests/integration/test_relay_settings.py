"""Databases and roles have defaults of their own: relays and commands depend on none of them."""

from __future__ import annotations

import json

import psycopg
import pytest
from psycopg import sql

from relay.daemon.floors import Floors
from relay.daemon.store import Store, content_bytes
from relay.database import connect
from tests.support import scenario
from tests.support.commands import emit, outbox, park, relay
from tests.support.pgbouncer import pooled, program
from tests.support.relay_process import RelayProcess
from tests.support.topic import read_topic

HOSTILE = {
    "datestyle": "SQL, DMY",
    "intervalstyle": "iso_8601",
    "extra_float_digits": "-15",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "bytea_output": "escape",
    "default_transaction_isolation": "serializable",
    "lock_timeout": "1ms",
    "statement_timeout": "15ms",
    "search_path": "pg_catalog",
}
LAST_IDS = (10**18, 2**63 - 200)


@pytest.fixture(params=["directly", "through a pooler"])
def hostile(request, database):
    """A way to a database whose defaults are not those of Postgres."""
    name = database.rpartition("/")[2].partition("?")[0]
    with psycopg.connect(database, autocommit=True) as owner:
        for setting, value in HOSTILE.items():
            owner.execute(
                sql.SQL("ALTER DATABASE {} SET {} = {}").format(sql.Identifier(name), sql.Identifier(setting), value)
            )
    if request.param == "directly":
        yield database
        return
    if program() is None:
        pytest.skip("PgBouncer is not installed (Debian: apt-get install pgbouncer)")
    with pooled(database) as dsn:
        yield dsn


def test_a_relay_publishes_whatever_the_defaults_of_the_database_are(hostile, database, kafka, topic):
    with psycopg.connect(database, autocommit=True, options="-c statement_timeout=0 -c lock_timeout=0") as writer:
        for number in range(50):
            emit(writer, f"k{number % 5}", str(number), topic=topic)
    with RelayProcess(hostile, kafka.bootstrap) as process:
        process.wait_started()
        scenario.wait_empty(database, 30)
        assert process.stop() == 0
        assert not process.events("database.lost"), process.said()
    assert len(read_topic(kafka.bootstrap, topic)) == 50


def test_commands_read_and_change_what_they_should_whatever_the_defaults_are(hostile, database):
    """Times as a European database writes them by default made them fail."""
    with psycopg.connect(database, autocommit=True, options="-c statement_timeout=0 -c lock_timeout=0") as owner:
        park(owner, emit(owner, "k1", "x"), emit(owner, "k2", "y"))
        settings = {"RELAY_DATABASE_URL": hostile}
        listed = relay("parked", "list", "--json", settings=settings)
        assert listed.returncode == 0, listed.stderr
        assert len(json.loads(listed.stdout)) == 2
        assert relay("parked", "list", settings=settings).returncode == 0
        done = relay("parked", "retry", "--all", settings=settings)
        assert done.returncode == 0, done.stderr
        assert sorted(outbox(owner)) == ["x", "y"]
        assert relay("status", settings=settings).returncode == 0


def test_a_policy_that_hides_events_is_an_error_and_not_an_empty_outbox(database, kafka):
    """A role under row-level security sees no event, so a drain would end well with all of them left."""
    with psycopg.connect(database, autocommit=True) as owner:
        emit(owner, "k", "x")
        owner.execute("CREATE ROLE relay_behind_a_policy LOGIN")
        try:
            owner.execute("GRANT USAGE ON SCHEMA relay TO relay_behind_a_policy")
            owner.execute("GRANT ALL ON ALL TABLES IN SCHEMA relay TO relay_behind_a_policy")
            owner.execute("GRANT SELECT ON relay.outbox_id_seq TO relay_behind_a_policy")
            owner.execute("ALTER TABLE relay.outbox ENABLE ROW LEVEL SECURITY")
            url = database.replace("postgres@", "relay_behind_a_policy@")
            with connect(url, "test") as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
                new_store(connection).claim()
            with RelayProcess(url, kafka.bootstrap, arguments=("--drain",)) as process:
                assert process.wait_exit() == 1
                assert "RLY-501: row-level security" in process.said()
        finally:
            owner.execute("DROP OWNED BY relay_behind_a_policy; DROP ROLE relay_behind_a_policy")


def new_store(connection, bytes_max: int = 1 << 20) -> Store:
    return Store(connection, Floors(64), rows_max=4000, bytes_max=bytes_max, lanes_max=64, takeover_seconds=20)


@pytest.mark.parametrize("first", LAST_IDS)
def test_ids_may_be_as_large_as_the_column_allows(any_database, first):
    """The sum of the ids of a unit is larger still."""
    with connect(any_database, "test") as connection:
        connection.execute("SELECT setval('relay.outbox_id_seq', %s)", (first,))
        for number in range(20):
            emit(connection, f"k{number}", "x" * 10)
        store = new_store(connection)
        unit = store.claim()
        assert unit is not None
        store.remove(unit.rows)
        store.commit()
        assert outbox(connection) == []


@pytest.mark.parametrize("place", ["key", "headers", "payload"])
def test_a_unit_is_bounded_in_bytes_wherever_its_events_are_large(any_database, place):
    """Keys and headers count like payloads, and every event arrives as it was written."""
    size, count, bytes_max = 50_000, 40, 200_000
    with connect(any_database, "test") as connection:
        written = {}
        for number in range(count):
            content = f"{number:03}" + "x" * size
            key, headers, payload = "k", "", b"p"
            if place == "key":
                key = content
            elif place == "headers":
                headers = f"name\x1f{content}\x1f"
            else:
                payload = content.encode()
            statement = """\
                INSERT INTO relay.outbox (lane, topic, key, headers, payload)
                VALUES (relay.lane_of(%s), 't', %s, %s, %s) RETURNING id"""
            (id_,) = connection.execute(statement, (key, key, headers, payload)).fetchone()
            written[id_] = (key.encode(), headers, payload)
        store = new_store(connection, bytes_max)
        units = 0
        while unit := store.claim():
            units += 1
            assert sum(map(content_bytes, unit.rows)) <= bytes_max + size + 200
            for row in unit.rows:
                assert (row[4], row[5], row[7]) == written.pop(row[1])
            store.remove(unit.rows)
            store.commit()
            assert units <= count
        assert not written
        assert units >= count * size // (bytes_max + size)
