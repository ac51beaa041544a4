"""What the measurements share: servers, backlogs, processes, broker time stamps, medians, printing."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from confluent_kafka import Consumer, TopicPartition

from relay.demo.postgres import EmbeddedPostgres
from relay.schema.install import upgrade
from tests.support.kafka import KafkaCluster

SCALE = float(os.environ.get("RELAY_BENCH_SCALE", "1"))
"""Below 1 for a quick look: counts and durations shrink by it, and the figures are worth less."""

FILL = """\
INSERT INTO relay.outbox (lane, topic, key, headers, payload)
SELECT relay.lane_of('key-' || (g %% 10000)), %(topic)s, 'key-' || (g %% 10000),
       E'trace\\x1f4bf92f3577b34da6a3ce929d0e0e4736\\x1fcontent-type\\x1fapplication/json\\x1f',
       convert_to('{"n":' || lpad(g::text, 10, '0') || ',"text":"' || repeat('abcdefgh', 26) || 'abcdef"}', 'UTF8')
FROM generate_series(1, %(rows)s) AS g"""
"""240 bytes of payload, two headers beside the event id, 10,000 keys."""


@dataclass(frozen=True)
class Bench:
    """The servers of one measurement."""

    postgres: EmbeddedPostgres
    kafka: KafkaCluster
    dsn: str

    def environment(self, **more: str) -> dict[str, str]:
        """What a relay is started with: its two settings, and nothing tuned."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("RELAY_")},
            "RELAY_DATABASE_URL": self.dsn,
            "RELAY_KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap,
            **more,
        }

    def topic(self, partitions: int = 8) -> str:
        """A fresh topic whose records carry the broker's time."""
        name = f"bench-{time.monotonic_ns()}"
        self.kafka.create_topic(name, partitions, {"message.timestamp.type": "LogAppendTime"})
        return name


@contextmanager
def bench(version: int = 18) -> Iterator[Bench]:
    """Real Postgres with its durability on, one real broker."""
    kafka = KafkaCluster(1)
    kafka.start()
    try:
        with database(kafka, version) as setup:
            yield setup
    finally:
        kafka.close()


@contextmanager
def database(kafka: KafkaCluster, version: int = 18) -> Iterator[Bench]:
    """A server of its own, for measurements that compare several on one broker."""
    with EmbeddedPostgres(version, settings={"shared_buffers": "512MB", "max_wal_size": "8GB"}) as postgres:
        upgrade(postgres.dsn())
        yield Bench(postgres, kafka, postgres.dsn())


def execute(dsn: str, *statements: str, **parameters: object) -> None:
    """Runs statements, each in its own transaction."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement, parameters or None)


def fill(dsn: str, topic: str, rows: int) -> None:
    """A backlog of `rows` committed events, and a checkpoint so that it is not paid for during the measurement."""
    execute(dsn, "TRUNCATE relay.outbox", "VACUUM relay.outbox")
    with psycopg.connect(dsn, autocommit=True) as connection:
        step = 500_000
        for start in range(0, rows, step):
            connection.execute(FILL, {"topic": topic, "rows": min(step, rows - start)})
        connection.execute("CHECKPOINT")


def start(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A Python process of ours, its output thrown away."""
    log = Path(os.environ.get("RELAY_BENCH_LOG", os.devnull)).open("ab")  # noqa: SIM115
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=dict(environment or os.environ), stdout=log, stderr=log)


def drain(setup: Bench, relays: int = 1) -> None:
    """Empties the outbox with `relays` processes."""
    processes = [start(["-m", "relay", "run", "--drain"], setup.environment()) for _ in range(relays)]
    for process in processes:
        if process.wait(1800):
            raise RuntimeError("a relay failed; set RELAY_BENCH_LOG to see why")


def broker_rate(bootstrap: str, topic: str) -> float:
    """Records per second by the broker's clock, from the first record to the last: start-up does not count."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False})
    stamps: list[int] = []
    count = 0
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    for partition in partitions:
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
        count += high - low
        for offset in {low, high - 1} if high > low else ():
            consumer.assign([TopicPartition(topic, partition, offset)])
            message = None
            while message is None or message.error():
                message = consumer.poll(10)
            stamps.append(message.timestamp()[1])
    consumer.close()
    return count / max(0.001, (max(stamps) - min(stamps)) / 1000)


def median(values: Sequence[float]) -> float:
    """The middle one: machines are noisy."""
    return statistics.median(values)


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def report(name: str, figure: str, limit: str, ratio: float, bar: str, holds: bool) -> None:  # noqa: PLR0917
    """One line per measurement: what was found, what bounds it, their ratio, and the bar."""
    verdict = "holds" if holds else "MISSED"
    print(f"{name:<34} {figure:<26} limit: {limit:<28} ratio {ratio:6.3f}   bar {bar:<8} {verdict}", flush=True)
