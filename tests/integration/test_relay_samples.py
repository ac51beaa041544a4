"""Figures of the outbox are taken when somebody asks, on one connection, and a database that hangs hangs no scrape."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.support import commands, nemesis, scenario
from tests.support.proxy import TcpProxy
from tests.support.relay_process import RelayProcess, eventually

SAMPLED = {"relay_oldest_event_age_seconds", "relay_parked_now_events", "relay_backlog_events"}
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'relay sample %'"


def sampled(relay: RelayProcess) -> set[str]:
    """Which of them a scrape brings."""
    lines = relay.get("/metrics")[1].splitlines()
    return SAMPLED & {line.partition(" ")[0].partition("{")[0] for line in lines}


@pytest.fixture
def relay(database, kafka):
    """A relay and an event that waits, for a topic that is not there."""
    with RelayProcess(database, kafka.bootstrap) as process:
        process.wait_started()
        scenario.ask(database, "SELECT relay.emit('no-such-topic', 'k', 'v'::text)")
        eventually(lambda: sampled(process) == SAMPLED, 30, "all figures")
        yield process


def test_a_database_that_hangs_hangs_no_scrape(database, kafka):
    """What it does not say is absent, all else is answered, and all is there when it goes on."""
    port = scenario.ask(database, "SELECT inet_server_port()")
    with TcpProxy(port) as proxy, RelayProcess(nemesis.through(proxy, database), kafka.bootstrap) as relay:
        relay.wait_started()
        scenario.ask(database, "SELECT relay.emit('no-such-topic', 'k', 'v'::text)")
        eventually(lambda: sampled(relay) == SAMPLED, 30, "all figures")
        proxy.freeze()
        eventually(lambda: not sampled(relay), 30, "the figures to be absent")
        status, text = relay.get("/metrics")
        assert status == 200
        assert "\nrelay_published_events_total 0.0\n" in text
        assert "\nrelay_heartbeat_timestamp_seconds " in text
        proxy.thaw()
        eventually(lambda: sampled(relay) == SAMPLED, 60, "all figures")
        assert relay.stop() == 0


def test_a_figure_that_cannot_be_had_leaves_the_others(relay, database):
    """A lock on the outbox hides what is in it, and nothing else."""
    with psycopg.connect(database) as owner:
        owner.execute("LOCK TABLE relay.outbox IN ACCESS EXCLUSIVE MODE")
        eventually(lambda: sampled(relay) == {"relay_parked_now_events"}, 30, "the others to be absent")
    eventually(lambda: sampled(relay) == SAMPLED, 30, "all figures")


def test_many_scrapes_share_one_connection_and_a_lost_one_is_replaced(relay, database):
    """Whoever asks, and however often, costs the database one session."""
    with ThreadPoolExecutor(8) as pool:
        assert set(map(frozenset, pool.map(lambda _: sampled(relay), range(40)))) == {frozenset(SAMPLED)}
    assert scenario.ask(database, SESSIONS) == 1
    for _ in range(3):
        ended = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'relay sample %'"
        )
        assert scenario.ask(database, ended) == 1
        eventually(lambda: scenario.ask(database, SESSIONS) == 0, 30, "the session to end")
        # At once, once the last answer is no longer good enough.
        eventually(lambda: scenario.ask(database, SESSIONS) == (1 if sampled(relay) else 0) == 1, 30, "a new session")
        assert sampled(relay) == SAMPLED


def test_figures_follow_what_happens(relay, database):
    """Backlog by topic and parked events, each time that somebody asks."""
    with psycopg.connect(database, autocommit=True) as owner:
        for count in range(2, 5):
            parked = commands.emit(owner, "p", "x", topic="no-such-topic")
            commands.emit(owner, "k", "x", topic="no-such-topic")
            commands.park(owner, parked)
            eventually(lambda count=count: relay.metric("relay_backlog_events") == count, 30, f"{count} events")
            eventually(lambda count=count: relay.metric("relay_parked_now_events") == count - 1, 30, "those parked")
        owner.execute("DELETE FROM relay.outbox")
    eventually(lambda: sampled(relay) == SAMPLED - {"relay_backlog_events"}, 30, "no topic to have a backlog")
    assert relay.metric("relay_oldest_event_age_seconds") == 0
