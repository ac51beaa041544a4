"""Floors: scans start where nothing lies below, and what a slow writer commits late is found all the same."""

from __future__ import annotations

import itertools
import time

import psycopg
import pytest

from relay.core.horizon import PATIENCE_SECONDS
from tests.support import scenario
from tests.support.kafka import fresh_topic
from tests.support.relay_process import RelayProcess
from tests.support.workload import Mix, key_names

FAST = Mix(per_second=100)


def no_breaches(run: scenario.Run) -> None:
    """The net below the floors has caught nothing."""
    for relay in run.fleet.relays:
        assert relay.metric("relay_floor_breaches_total") == 0


def write_for(run: scenario.Run, seconds: float) -> None:
    """Lets the writers write for so long, as a fault that lasts is no condition to wait for."""
    run.fleet.wait_seconds(seconds)


def keys_in_busy_lanes(dsn: str) -> list[str]:
    """Keys that nobody else writes, in the lanes of the hottest keys: only busy lanes have floors worth the name."""
    names = [f"{kind}:{number}" for number in range(900, 1400) for kind in "tar"]
    query = """\
        SELECT array_agg(k) FROM unnest(%s::text[]) AS k
        WHERE relay.lane_of(k) IN (SELECT relay.lane_of(hot) FROM unnest(%s::text[]) AS hot)"""
    return scenario.ask(dsn, query, names, key_names(3))[:6]


@pytest.mark.parametrize("is_idle", [False, True], ids=["under load", "in an idle system"])
def test_what_a_long_writer_commits_late_arrives_in_order(database, kafka, is_idle):
    """A writer that keeps its events back for longer than relays are patient loses none of them, nor their order."""
    topics = [fresh_topic(kafka), fresh_topic(kafka)]

    def hold_long(run: scenario.Run) -> None:
        run.let_write(50)
        own = keys_in_busy_lanes(run.dsn)
        held = run.writers.hold(own[:4])
        second = run.writers.hold(own[4:])
        write_for(run, PATIENCE_SECONDS + 2)
        second.rollback()
        write_for(run, 2.5)
        if is_idle:
            run.writers.stop()
            scenario.wait_empty(run.dsn, 30)
            write_for(run, 3)
        held.commit()
        if is_idle:
            # Nothing else is written: only the end of the long writer itself can bring the relays to its events.
            scenario.wait_empty(run.dsn, 30, run.fleet)
        run.writers.hold(own).commit()
        no_breaches(run)

    scenario.run(database, kafka.bootstrap, topics, relays=1 if is_idle else 2, nemesis=hold_long, mix=FAST, clean=True)


def test_an_old_snapshot_costs_no_order_and_no_scans(database, kafka):
    """While a snapshot keeps all dead rows alive, a look into the outbox does not become dearer with their number."""
    topic = fresh_topic(kafka)
    with (
        psycopg.connect(database) as reader,
        RelayProcess(database, kafka.bootstrap, settings={"RELAY_DAEMON__ROWS_MAX": "1000"}) as relay,
    ):
        relay.wait_started()
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM relay.outbox")
        read = []
        for _ in range(3):
            emit_many(database, topic, 3000)
            scenario.wait_empty(database, 30)
            read.append(entries_read(database))
        assert relay.metric("relay_floor_breaches_total") == 0
        reader.rollback()
    costs = [after - before for before, after in itertools.pairwise(read)]
    # Without floors each of some hundred looks would walk the 3,000 to 6,000 entries of the rounds before.
    assert costs[-1] < 2 * costs[0] + 5000, costs


def entries_read(dsn: str) -> int:
    """Index entries that scans of the outbox have returned, dead ones included. Backends report once a second."""
    time.sleep(2.2)
    return scenario.ask(dsn, "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'outbox_pkey'")


def emit_many(dsn: str, topic: str, count: int) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "SELECT relay.emit_many(array_fill(%(topic)s::text, ARRAY[%(count)s]),"
            " (SELECT array_agg('k' || i %% 50) FROM generate_series(1, %(count)s) AS i),"
            " array_fill('v'::bytea, ARRAY[%(count)s]), array_fill('{}'::jsonb, ARRAY[%(count)s]))",
            {"topic": topic, "count": count},
        )
