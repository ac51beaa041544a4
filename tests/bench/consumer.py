"""Applying events to the shared tier: a consumer process on one core, a real topic, a real Redis; limits beside it."""

from __future__ import annotations

import subprocess
import sys

from confluent_kafka import Producer

from relay.demo.redis import EmbeddedRedis
from tests.bench.parts import SCALE, median, report
from tests.support.consumers import headers_of
from tests.support.kafka import KafkaCluster, fresh_topic

ENTITIES = 10_000
PARTITIONS = 8
ROUNDS = 5
LOOPS = ("poll", "set", "consumer")


def fill(bootstrap: str, topic: str, events: int) -> None:
    """Changes of 10,000 entities in turn, as the relay publishes them."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "compression.type": "lz4"})
    for number in range(events):
        id_, version = str(number % ENTITIES), number // ENTITIES + 1
        value = f'{{"entity":"user","id":"{id_}","action":"updated","version":{version},"ts":"2026-01-01T00:00:00Z"}}'
        headers = [*headers_of("user", id_, version), ("ts", b"2026-01-01T00:00:00.000000Z")]
        while True:
            try:
                producer.produce(topic, value, f"user:{id_}", headers=headers)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()


def applying() -> None:
    """The three loops in turn, several times in one run."""
    events = int(400_000 * SCALE) // 500 * 500
    rates: dict[str, list[float]] = {name: [] for name in LOOPS}
    with KafkaCluster(1) as kafka, EmbeddedRedis() as server:
        topic = fresh_topic(kafka, PARTITIONS)
        fill(kafka.bootstrap, topic, events)
        for _ in range(ROUNDS):
            for name in LOOPS:
                arguments = [name, kafka.bootstrap, topic, server.url, str(events)]
                command = [sys.executable, "-m", "tests.bench.consuming", *arguments]
                rates[name].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print("  round: " + ", ".join(f"{name} {values[-1]:,.0f}/s" for name, values in rates.items()), flush=True)
    rate, bare = median(rates["consumer"]), median(rates["set"])
    ratio = median([ours / limit for ours, limit in zip(rates["consumer"], rates["set"], strict=True)])
    polled = median([ours / limit for ours, limit in zip(rates["consumer"], rates["poll"], strict=True)])
    figure = f"{rate:,.0f} events/s"
    report("applying events, one core", figure, "30,000 events/s", rate / 30_000, ">= 1.0", rate >= 30_000)
    report("the same against pipelined SETs", figure, f"bare SET {bare:,.0f}/s", ratio, ">= 0.5", ratio >= 0.5)
    report("the same against polling alone", figure, f"poll {median(rates['poll']):,.0f}/s", polled, "none", True)
