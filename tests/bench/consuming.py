"""The loops of the consumer's measurement, each in a process on one core: `python -m tests.bench.consuming NAME ...`.

`poll` fetches and looks at nothing; `set` writes as many records to Redis as there are events, in pipelines of 500, and
reads nothing; `consumer` is Relay's. Each prints its events per second.
"""

from __future__ import annotations

import gc
import os
import sys
import time

import redis
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from relay.cache import RedisShared
from relay.cache.numbers import EVENTS, Numbers
from relay.consumer import Consumer as RelayConsumer
from tests.bench.consumer import ENTITIES, PARTITIONS

PIPELINE = 500


def poll(bootstrap: str, topic: str, _url: str, events: int) -> float:
    """Fetches all of them in batches."""
    client = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "queued.max.messages.kbytes": 16_384})
    client.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(PARTITIONS)])
    while (first := client.poll(1)) is None or first.error():
        pass
    began, count = time.perf_counter(), 1
    while count < events:
        count += len(client.consume(1000, 0.01))
    rate = count / (time.perf_counter() - began)
    client.close()
    return rate


def set_(_bootstrap: str, _topic: str, url: str, events: int) -> float:
    """As many SET of a record without value, with an expiry, as a bump leaves behind."""
    client = redis.Redis.from_url(url)
    record = bytes(64)
    began = time.perf_counter()
    for start in range(0, events, PIPELINE):
        pipeline = client.pipeline(transaction=False)
        for number in range(start, start + PIPELINE):
            pipeline.set(f"relay:{{bare}}:r:user:{number % ENTITIES}", record, px=600_000)
        pipeline.execute()
    return events / (time.perf_counter() - began)


def consumer(bootstrap: str, topic: str, url: str, events: int) -> float:
    """Relay's consumer, from its first event to the last."""
    numbers = Numbers()
    consumer = RelayConsumer(
        kafka={"bootstrap.servers": bootstrap},
        topics=[topic],
        group=f"bench-{time.monotonic_ns()}",
        shared=RedisShared.from_url(url, f"bench-{time.monotonic_ns()}"),
        from_beginning=True,
        recorder=numbers,
    )

    def applied() -> float:
        return numbers.snapshot().total(EVENTS)

    with consumer:
        while not applied():
            time.sleep(0.001)
        began, already = time.perf_counter(), applied()
        while applied() < events:
            consumer.wait(0)
            time.sleep(0.02)
        return (events - already) / (time.perf_counter() - began)


if __name__ == "__main__":
    gc.freeze()
    os.sched_setaffinity(0, {0})
    loop = {"poll": poll, "set": set_, "consumer": consumer}[sys.argv[1]]
    print(loop(*sys.argv[2:5], int(sys.argv[5])))
