"""A relay whose database sessions end while Kafka stalls: a sample, tests/faults/test_sessions.py has every step."""

from __future__ import annotations

import contextlib
import random
import secrets

import pytest

from tests.support import scenario
from tests.support.kafka import KafkaCluster, fresh_topic
from tests.support.relay_process import RelayProcess, eventually
from tests.support.stall import PATIENT, Stall, settled
from tests.support.topic import read_topic
from tests.support.workload import Journal


def test_records_on_the_wire_when_sessions_end_do_not_land_behind_newer_ones(pg, database):
    """The lanes are free, and this relay alone can claim them: it waits until it knows what became of its records."""
    seed = scenario.seed_of_run()
    draw = random.Random(f"{seed}/stall")
    journal = Journal()
    with KafkaCluster(proxied=True) as cluster:
        topic = fresh_topic(cluster)
        for number, point in enumerate(("flushing", "after_claim")):
            stall = Stall(
                server=pg, dsn=database, cluster=cluster, topic=topic, point=point, how="terminate", draw=draw,
                settings=PATIENT, cuts=0.0,
            )  # fmt: skip
            journal = journal.joined(stall.play(f"r:{number}"))
        settled(cluster.bootstrap, topic)
        verdict = scenario.judge(journal, cluster.bootstrap, [topic])
    assert verdict.ok, f"SEED={seed}\n{verdict.explain()}"


END_PUBLISHING = """\
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name LIKE 'relay worker%' AND state = 'idle in transaction'
  AND xact_start < clock_timestamp() - interval '0.3 s'"""
LEFT = "SELECT count(*) FROM relay.outbox WHERE topic = %s"
WRITE = "SELECT count(relay.emit(%s, 'k', %s || lpad(n::text, 3, '0'))) FROM generate_series(%s::int, %s) AS n"


@pytest.mark.parametrize("workers", [1, 2])
def test_bytes_that_arrive_late_are_not_behind_newer_ones_of_the_same_relay(database, workers):
    """The session that published is ended while its connection to Kafka is held; everything else goes on.

    The bytes arrive as soon as something newer could be behind them: with one worker that is its next unit, with two
    that of the other one, which claims the lanes while the first sleeps and has not noticed.
    """
    mark = secrets.token_hex(16)
    settings = {**PATIENT, "RELAY_DAEMON__UNITS_IN_FLIGHT": str(workers), "RELAY_KAFKA__COMPRESSION_TYPE": "none"}
    with KafkaCluster(proxied=True) as cluster:
        topic = fresh_topic(cluster, 1)
        relay = RelayProcess(database, cluster.bootstrap, settings=settings, failpoints="after_produce=sleep:3@2")
        with relay:
            relay.wait_started()
            scenario.ask(database, "SELECT relay.emit(%s, 'warm', 'up'::text)", topic)
            eventually(lambda: not scenario.ask(database, LEFT, topic), 30, "the relay to publish")
            held = cluster.proxies[0].hold_sender_of(mark.encode())
            scenario.ask(database, WRITE, topic, mark, 1, 50)
            assert held.wait(30)
            scenario.ask(database, WRITE, topic, mark, 51, 55)
            eventually(lambda: scenario.ask(database, END_PUBLISHING), 30, "a session to be ended")
            with contextlib.suppress(TimeoutError):
                # Nothing is delivered now. Were the records sent again, they would be, and the first copies be late.
                eventually(lambda: not scenario.ask(database, LEFT, topic), 4)
            cluster.proxies[0].thaw()
            eventually(lambda: not scenario.ask(database, LEFT, topic), 60, "everything to be published")
            assert relay.stop() == 0
        settled(cluster.bootstrap, topic)
        values = [record.value for record in read_topic(cluster.bootstrap, topic) if record.key == b"k"]
    numbers = [int(value[-3:]) for value in values]
    assert numbers[-1] == 55
    assert set(numbers) == set(range(1, 56))
