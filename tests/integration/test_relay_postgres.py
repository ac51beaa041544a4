"""Postgres stops, crashes and loses connections at the worst moments: nothing is lost, only a suffix is repeated."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from relay.demo.postgres import EmbeddedPostgres
from tests.support import nemesis, scenario
from tests.support.kafka import fresh_topic
from tests.support.postgres import fresh_database, private_server
from tests.support.proxy import TcpProxy
from tests.support.relay_process import SHORT, Fleet, eventually
from tests.support.workload import Mix, Writers

#: Hardly anything but the commit of a writer flushes what relays have committed: a crash takes away what it can.
LAZY = {"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}
FLUSHERS = """\
SELECT array_agg(pid) FROM pg_stat_activity
WHERE backend_type IN ('walwriter', 'background writer', 'checkpointer', 'autovacuum launcher')"""
SMALL = {"RELAY_DAEMON__ROWS_MAX": "20"}
FAST = Mix(per_second=60)


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A server that may be hurt."""
    with private_server(18, settings=LAZY) as server:
        yield server


@pytest.fixture
def proxy(pg) -> Iterator[TcpProxy]:
    """A way to the shared server that may be hurt."""
    with TcpProxy(pg.port) as way:
        yield way


@pytest.mark.parametrize("how", ["fast", "immediate", "crash"])
def test_a_restart_of_postgres_under_load_loses_nothing(own_postgres, kafka, how):
    """However the server stops, relays come back with it, and repeat at most what was in flight or not flushed."""
    topics = [fresh_topic(kafka)]
    stops = nemesis.postgres_stops(own_postgres, how)
    dsn = fresh_database(own_postgres)
    scenario.run(dsn, kafka.bootstrap, topics, relays=2, nemesis=stops, settings=SMALL, mix=FAST)


def test_a_crash_takes_unflushed_removals_back_and_only_a_suffix_is_repeated(own_postgres, kafka):
    """Relays commit without waiting for the disk: after a crash what had been removed is back, and goes again."""
    topics = [fresh_topic(kafka)]
    dsn = fresh_database(own_postgres)
    seed = scenario.seed_of_run()
    writers = Writers(dsn, seed, topics, mix=Mix(per_second=1000, late=0), transactions_max=100)
    writers.start()
    eventually(lambda: not writers.is_alive, 30, "the writers to finish")
    writers.stop()
    let_nobody_flush(dsn)
    with Fleet(dsn, kafka.bootstrap, 2, settings=SMALL) as fleet:
        scenario.wait_empty(dsn, 30, fleet)
        own_postgres.kill()
        own_postgres.start()
        for relay in fleet.relays:
            relay.wait_event("database.back")
        scenario.wait_empty(dsn, 30, fleet)
        assert fleet.stop() == [0, 0]
        verdict = scenario.judge(writers.journal, kafka.bootstrap, topics)
        print(f"seed {seed}: {verdict.summary()}")
        assert verdict.ok, verdict.explain() + fleet.said()
        assert verdict.repeated > 0, "the crash took nothing away: this test has proven nothing"


def let_nobody_flush(dsn: str) -> None:
    """Freezes the processes of the server that would write down what relays have committed, until it is killed."""
    for pid in scenario.ask(dsn, FLUSHERS):
        os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "not committed"])
def test_a_connection_cut_in_the_middle_of_commit_leaves_no_doubt_behind(database, kafka, proxy, arrives):
    """A relay that does not know whether its unit was committed asks the outbox: done is done, the rest goes again."""
    topics = [fresh_topic(kafka)]
    verdict = scenario.run(
        nemesis.through(proxy, database),
        kafka.bootstrap,
        topics,
        relays=2,
        nemesis=nemesis.commit_is_cut(proxy, arrives=arrives),
        settings=SMALL,
        mix=FAST,
        writer_dsn=database,
    )
    assert (verdict.repeated == 0) is arrives


def test_a_half_open_connection_is_given_up_by_the_relay_itself(database, kafka, proxy):
    """When the network swallows everything and reports nothing, no relay waits for longer than its deadlines."""
    topics = [fresh_topic(kafka)]
    scenario.run(
        nemesis.through(proxy, database),
        kafka.bootstrap,
        topics,
        relays=2,
        nemesis=nemesis.half_open(proxy, seconds=30),
        settings=SHORT | SMALL,
        mix=FAST,
        writer_dsn=database,
    )
