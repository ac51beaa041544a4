"""Postgres stops in every way, again and again, and its connections break in every way, on both majors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from relay.demo.postgres import EmbeddedPostgres
from tests.support import nemesis, scenario
from tests.support.kafka import fresh_topic
from tests.support.postgres import fresh_database, private_server
from tests.support.proxy import TcpProxy
from tests.support.relay_process import SHORT
from tests.support.workload import Mix

pytestmark = pytest.mark.faults

SETTINGS = SHORT | {"RELAY_DAEMON__ROWS_MAX": "20"}
FAST = Mix(per_second=100)

relays_of_all_sizes = pytest.mark.parametrize("relays", [1, 3, 5])


@pytest.fixture(scope="module", params=[16, 18], ids=["pg16", "pg18"])
def own_postgres(request) -> Iterator[EmbeddedPostgres]:
    """A server that may be hurt, and that flushes nothing of itself."""
    with private_server(request.param, settings={"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB"}) as server:
        yield server


@pytest.fixture
def proxy(own_postgres) -> Iterator[TcpProxy]:
    """A way to that server that may be hurt."""
    with TcpProxy(own_postgres.port) as way:
        yield way


@relays_of_all_sizes
@pytest.mark.parametrize("how", ["fast", "immediate", "crash"])
def test_postgres_stopped_again_and_again_loses_nothing(own_postgres, kafka, how, relays):
    """Five stops of the server in a row, and relays come back after each."""
    topics = [fresh_topic(kafka), fresh_topic(kafka)]
    stops = nemesis.postgres_stops(own_postgres, how, times=5)
    dsn = fresh_database(own_postgres)
    scenario.run(dsn, kafka.bootstrap, topics, relays=relays, nemesis=stops, settings=SETTINGS, mix=FAST)


@relays_of_all_sizes
@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "not committed"])
def test_commits_cut_again_and_again_lose_nothing(own_postgres, kafka, proxy, arrives, relays):
    """Ten connections cut at their COMMIT: what was committed is not repeated, what was not is."""
    dsn = fresh_database(own_postgres)
    verdict = scenario.run(
        nemesis.through(proxy, dsn),
        kafka.bootstrap,
        [fresh_topic(kafka)],
        relays=relays,
        nemesis=nemesis.commit_is_cut(proxy, arrives=arrives, times=10),
        settings=SETTINGS,
        mix=FAST,
        writer_dsn=dsn,
    )
    assert (verdict.repeated == 0) is arrives


@relays_of_all_sizes
@pytest.mark.parametrize("direction", ["up", "down", "both"])
def test_a_silent_network_to_the_database_is_given_up(own_postgres, kafka, proxy, direction, relays):
    """Whichever direction swallows everything, each relay gives its connections up and comes back."""
    dsn = fresh_database(own_postgres)
    scenario.run(
        nemesis.through(proxy, dsn),
        kafka.bootstrap,
        [fresh_topic(kafka)],
        relays=relays,
        nemesis=nemesis.half_open(proxy, seconds=12, direction=direction),
        settings=SETTINGS,
        mix=FAST,
        writer_dsn=dsn,
    )
