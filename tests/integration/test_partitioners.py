"""Which of librdkafka's partitioners keep the events of a key together, as librdkafka does it and not as it says."""

from __future__ import annotations

from collections import defaultdict

import pytest
from confluent_kafka import Message, Producer

from relay.kafka_properties import KAFKA_GUARDED

KEYS = (b"", b"a", b"order:42", "größe".encode())
RECORDS = 64
"""Of a key that is not kept together, all in one of eight partitions: once in 8 ** 63."""


def partitions(bootstrap: str, topic: str, partitioner: str) -> dict[bytes, set[int]]:
    """Where the records of each key go."""
    found = defaultdict(set)

    def note(error: object, message: Message) -> None:
        assert error is None
        found[message.key() or b""].add(message.partition())

    # Records without a hash stay in one partition for a while otherwise, which is chance and no order.
    producer = Producer(
        {"bootstrap.servers": bootstrap, "partitioner": partitioner, "sticky.partitioning.linger.ms": 0}
    )
    for _ in range(RECORDS):
        for key in KEYS:
            producer.produce(topic, b"x", key, on_delivery=note)
    assert producer.flush(60) == 0
    return found


@pytest.mark.parametrize("partitioner", KAFKA_GUARDED["partitioner"].values)
def test_a_partitioner_that_may_be_set_keeps_every_key_together(kafka, topic, partitioner):
    """The empty key as well, which is a key like others."""
    found = partitions(kafka.bootstrap, topic, partitioner)
    assert {key: len(places) for key, places in found.items()} == dict.fromkeys(KEYS, 1)


@pytest.mark.parametrize(("partitioner", "torn"), [("random", KEYS), ("consistent_random", (b"",))])
def test_a_partitioner_that_is_refused_does_not(kafka, topic, partitioner, torn):
    """Order is kept within a partition only."""
    assert partitioner not in KAFKA_GUARDED["partitioner"].values
    found = partitions(kafka.bootstrap, topic, partitioner)
    assert {key for key, places in found.items() if len(places) > 1} == set(torn)
