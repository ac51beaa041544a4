"""A pooler in transaction mode: each transaction may run in another session, and none may leave anything behind."""

from __future__ import annotations

import json

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from relay.database import connect
from relay.outbox import emit, touch
from tests.support import scenario
from tests.support.commands import emit as write
from tests.support.commands import outbox, park, relay
from tests.support.kafka import fresh_topic
from tests.support.pgbouncer import pooled, program
from tests.support.relay_process import RelayProcess, eventually
from tests.support.topic import read_topic
from tests.support.workload import Mix

pytestmark = pytest.mark.skipif(
    program() is None, reason="PgBouncer is not installed (Debian: apt-get install pgbouncer)"
)

RELAY_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7236836"


@pytest.fixture
def through(database):
    with pooled(database) as dsn:
        yield dsn


def test_writers_and_relays_keep_the_promise_through_a_pooler(through, kafka):
    """Nothing is lost, invented or out of order, with a relay killed, although no session belongs to anybody."""
    topics = [fresh_topic(kafka), fresh_topic(kafka)]

    def kill_one(run: scenario.Run) -> None:
        run.let_write(100)
        run.fleet.relays[0].kill9()
        run.let_write(150)
        # A statement that met another client's session would cost a connection, and be repaired by a new one.
        assert not [relay.said() for relay in run.fleet.relays if relay.events("database.lost")]

    verdict = scenario.run(
        through, kafka.bootstrap, topics, relays=2, writers=3, nemesis=kill_one, mix=Mix(prepares=False)
    )
    assert verdict.committed >= 250


def test_an_idle_relay_leaves_nothing_in_the_pooled_sessions_and_finds_the_next_event(through, database, kafka, topic):
    """Behind a pooler it neither listens nor locks, says so once, and looks every `daemon.idle_seconds`."""
    with RelayProcess(through, kafka.bootstrap, settings={"RELAY_DAEMON__IDLE_SECONDS": "0.5"}) as process:
        process.wait_started()
        eventually(lambda: process.metric("relay_asleep") == 1, 30, "it to sleep")
        with psycopg.connect(database, autocommit=True) as direct:
            assert direct.execute(RELAY_LOCKS).fetchone() == (0,)
            write(direct, "k", "x", topic=topic)
        with psycopg.connect(through, autocommit=True, prepare_threshold=None) as client:
            # Of the sessions that the relay has used, some serve this client now.
            for _ in range(10):
                assert client.execute("SELECT count(*) FROM pg_listening_channels()").fetchone() == (0,)
                assert client.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
        eventually(lambda: scenario.ask(database, "SELECT count(*) FROM relay.outbox") == 0, 30, "it to be published")
        assert process.stop() == 0
        assert len(process.events("database.pooled")) == 1
        assert not process.events("database.lost"), process.said()
    assert len(read_topic(kafka.bootstrap, topic)) == 1


def test_applications_write_through_a_pooler(through, database):
    """The write side needs nothing that lives longer than the transaction."""
    engine = sa.create_engine(
        through.replace("postgresql://", "postgresql+psycopg://"), connect_args={"prepare_threshold": None}
    )
    for number in range(1, 8):
        with Session(engine) as session, session.begin():
            emit(session, "t", key="k", payload={"n": number})
            assert touch(session, "user", 1) == number
    engine.dispose()
    assert scenario.ask(database, "SELECT count(*) FROM relay.outbox") == 14


def test_commands_work_through_a_pooler(through, database):
    """A command that repeats a statement must not find it prepared in another session, or not at all."""
    with psycopg.connect(database, autocommit=True) as owner:
        for number in range(12):
            park(owner, write(owner, f"k{number}", "x"))
        settings = {"RELAY_DATABASE_URL": through}
        done = relay("parked", "retry", "--all", "--json", settings=settings)
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["retried"]) == len(outbox(owner)) == 12
        assert relay("status", settings=settings).returncode == 0


def test_a_statement_that_is_repeated_is_not_sought_in_another_session(through):
    """Drivers prepare what they see often, in a session that serves another client the next moment."""
    with connect(through, "test") as ours, psycopg.connect(through) as other:
        sessions = {ours.execute("SELECT pg_backend_pid()", prepare=True).fetchone() for _ in range(8)}
        # Takes the only session that there is, and keeps it until its transaction ends.
        other.execute("SELECT 1")
        sessions.add(ours.execute("SELECT pg_backend_pid()", prepare=True).fetchone())
        assert len(sessions) == 2


def test_a_pooler_is_told_from_a_server(through, database):
    """What makes all of the above differ: who greets, and who answers."""
    with connect(database, "test") as direct, connect(through, "test") as other:
        assert not direct.is_pooled
        assert direct.prepare_threshold is not None
        assert other.is_pooled
        assert other.prepare_threshold is None


def test_doctor_finds_the_pooler_and_looks_at_what_is_behind(through):
    """In one transaction, so that each check is about the same session."""
    found = {
        one["check"]: one
        for one in json.loads(relay("doctor", "--json", settings={"RELAY_DATABASE_URL": through}).stdout)
    }
    assert (found["pooler"]["state"], found["pooler"]["code"]) == ("warning", "RLY-803")
    assert {found[check]["state"] for check in ("schema", "grants", "lanes", "autovacuum")} == {"ok"}
