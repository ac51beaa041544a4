"""A relay whose database sessions end while Kafka stalls: a sample, tests/faults/test_sessions.py has every step."""

from __future__ import annotations

import random

from tests.support import scenario
from tests.support.kafka import KafkaCluster, fresh_topic
from tests.support.stall import PATIENT, Stall, settled
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
