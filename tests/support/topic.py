"""Reads a whole topic from outside, for the history checker."""

from __future__ import annotations

import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from relay.demo.history import Record
from relay.demo.reader import record_of


def read_topic(bootstrap: str, topic: str, *, timeout: float = 30) -> list[Record]:
    """Every record of every partition up to the high watermarks of now, in offset order per partition.

    Assigned, never subscribed: a group would add its own rebalances to what is being examined. Uncommitted
    records are read too: what an aborted transaction left behind is for the checker to judge, not to hide.

    Raises:
        TimeoutError: the watermarks were not reached; says how far it got.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "relay-test-reader",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_uncommitted",
            "fetch.wait.max.ms": 20,
            "queued.max.messages.kbytes": 262_144,
        }
    )
    try:
        return _read(consumer, topic, timeout)
    finally:
        consumer.close()


def count_records(bootstrap: str, topic: str, *, timeout: float = 30) -> int:
    """How many records the topic has had."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "relay-test-counter", "log_level": 0})
    try:
        return sum(_ends(consumer, topic, time.monotonic() + timeout).values())
    finally:
        consumer.close()


def _read(consumer: Consumer, topic: str, timeout: float) -> list[Record]:
    deadline = time.monotonic() + timeout
    ends = _ends(consumer, topic, deadline)
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in ends])
    records: list[Record] = []
    while ends:
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{topic}: {len(records)} records in {timeout:g} s, partitions {sorted(ends)} not at the end"
            )
        message = consumer.poll(0.1)
        if message is None:
            _drop_finished(consumer, topic, ends)
            continue
        if message.error() is not None:
            raise KafkaException(message.error())
        if message.offset() < ends.get(message.partition(), 0):
            records.append(record_of(message))
        if message.offset() + 1 >= ends.get(message.partition(), 0):
            ends.pop(message.partition(), None)
    return records


def _ends(consumer: Consumer, topic: str, deadline: float) -> dict[int, int]:
    """The high watermark of each partition that holds anything."""
    found = consumer.list_topics(topic, timeout=max(0.1, deadline - time.monotonic())).topics[topic]
    if found.error is not None:
        raise KafkaException(found.error)
    ends = {}
    for partition in found.partitions:
        low, high = _watermarks(consumer, TopicPartition(topic, partition), deadline)
        if high > low:
            ends[partition] = high
    return ends


def _watermarks(consumer: Consumer, partition: TopicPartition, deadline: float) -> tuple[int, int]:
    """Asks again while a new leader does not know yet that it leads, or how far the topic goes."""
    while True:
        try:
            return consumer.get_watermark_offsets(partition, timeout=max(0.1, deadline - time.monotonic()))
        except KafkaException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _drop_finished(consumer: Consumer, topic: str, ends: dict[int, int]) -> None:
    """The last offset may hold a transaction marker, which is never delivered; the position passes it."""
    positions = consumer.position([TopicPartition(topic, partition) for partition in ends])
    for position in positions:
        if position.offset >= ends[position.partition]:
            del ends[position.partition]
