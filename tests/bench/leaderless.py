"""Latency of a healthy topic while another topic has no leader: its only replica is on a broker that was killed.

The load goes on while the broker dies. What is sent in the first seconds after that is reported apart: the cluster
itself takes three of them to notice.
"""

from __future__ import annotations

import time

from confluent_kafka.admin import AdminClient, NewTopic

from relay.schema.install import upgrade
from tests.bench.load import Aside, Sent, percentile, receive, write
from tests.bench.parts import SCALE, report
from tests.support.kafka import KafkaCluster
from tests.support.postgres import private_server
from tests.support.relay_process import NOTHING, RelayProcess, eventually

RATE = 200.0
SICK_RATE = 20.0
SECONDS = max(10.0, 60 * SCALE)
"""Of each phase: with a leader, and without."""
WARM_UP_SECONDS = 15.0
"""Three brokers compile their code on the same cores."""
NOTICE_SECONDS = 5.0
VICTIM = 2


def two_topics(kafka: KafkaCluster) -> tuple[str, str]:
    """The names of a topic that survives the victim, and of one that does not."""
    healthy, sick = f"bench-{time.monotonic_ns()}-healthy", f"bench-{time.monotonic_ns()}-sick"
    client = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
    alone = {"min.insync.replicas": "1"}
    topics = [
        NewTopic(healthy, 8, replica_assignment=[[1, 2], [2, 1]] * 4, config=alone),
        NewTopic(sick, 2, replica_assignment=[[VICTIM + 1]] * 2, config=alone),
    ]
    for created in client.create_topics(topics).values():
        created.result(30)
    eventually(lambda: all(kafka.leader(name, 0) >= 0 for name in (healthy, sick)), 30, "leaders")
    return healthy, sick


def phases(dsn: str, kafka: KafkaCluster, healthy: str, sick: str) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of each event of the healthy topic: before the kill, right after it, and later."""
    seconds = WARM_UP_SECONDS + SECONDS + NOTICE_SECONDS + SECONDS
    count = int(seconds * RATE)
    with (
        Aside(receive, kafka.bootstrap, healthy, count) as receiver,
        Aside(write, dsn, healthy, RATE, count) as sender,
        Aside(write, dsn, sick, SICK_RATE, int(seconds * SICK_RATE)) as beside,
    ):
        receiver.hear()
        beside.tell()
        sender.tell()
        time.sleep(WARM_UP_SECONDS + SECONDS)
        kafka.kill(VICTIM)
        killed = time.monotonic_ns()
        sent: dict[int, Sent] = sender.hear(seconds * 3 + 60)
        beside.hear(seconds * 3 + 60)
        received: dict[int, int] = receiver.hear(300)
    found: tuple[list[float], list[float], list[float]] = ([], [], [])
    for number in range(int(WARM_UP_SECONDS * RATE), count):
        returned, arrived = sent[number].returned, received[number]
        # An event that was on its way as the broker died waited because of that.
        phase = 0 if arrived < killed else 1 if returned < killed + NOTICE_SECONDS * 1e9 else 2
        found[phase].append((arrived - returned) / 1e6)
    return found


def leaderless() -> None:
    """One relay with its defaults, three brokers; the limit is the same topic while all brokers are there."""
    with private_server(18, settings={"shared_buffers": "512MB"}) as postgres, KafkaCluster(3) as kafka:
        upgrade(postgres.dsn())
        healthy, sick = two_topics(kafka)
        with RelayProcess(postgres.dsn(), kafka.bootstrap, base=NOTHING) as relay:
            relay.wait_started()
            before, losing, without = phases(postgres.dsn(), kafka, healthy, sick)
            paused = len(relay.events("topic.paused"))
    for name, found in (("all brokers", before), ("losing it", losing), ("without", without)):
        print(
            f"  {name}: {len(found):,} events, p50 {percentile(found, 0.5):.1f} p99 {percentile(found, 0.99):.1f}"
            f" max {max(found):.0f} ms",
            flush=True,
        )
    print(f"  topic.paused was logged {paused} times", flush=True)
    ours, limit = percentile(without, 0.99), percentile(before, 0.99)
    report("p99 while another is leaderless", f"{ours:.1f} ms", f"all brokers {limit:.1f} ms", ours / limit, "<= 2",
           ours / limit <= 2)  # fmt: skip
    worst = max(losing)
    report("longest wait while it is lost", f"{worst:.0f} ms", f"all brokers {max(before):.0f} ms",
           worst / max(before), "none", True)  # fmt: skip
