"""A consumer keeps the shared tier right from its first event to its stop, on real Kafka."""

from __future__ import annotations

import pytest

from relay.cache.reference import ReferenceTier
from relay.consumer import Consumer
from relay.core.record import decode_record
from tests.support.consumers import Writer, fresh_group, until


@pytest.fixture
def writer(kafka, topic) -> Writer:
    return Writer(kafka.bootstrap, topic)


@pytest.fixture
def tier() -> ReferenceTier:
    return ReferenceTier()


@pytest.fixture
def settings(kafka, topic, tier) -> dict:
    return {"kafka": {"bootstrap.servers": kafka.bootstrap}, "topics": [topic], "group": fresh_group(), "shared": tier}


def floor(tier, entity: str, id_: str) -> int:
    record = decode_record(tier.look([f"r:{entity}:{id_}"]).records[0])
    return 0 if record is None else record.floor


def is_settled(consumer: Consumer) -> bool:
    """It owns all partitions, and everything in them is applied."""
    lag = consumer.health().lag
    return len(lag) == 8 and not any(lag.values())


def test_changes_raise_the_floors_of_their_entities(settings, writer, tier):
    """Whatever the order and number of its events, an entity's floor ends at its newest version."""
    with Consumer(**settings) as consumer:
        until("it owns the topic", lambda: len(consumer.health().lag) == 8)
        for version in (1, 2, 4, 3, 3):
            writer.touch("user", "1", version)
        writer.touch("user", "2", 7)
        writer.flush()
        until("both are applied", lambda: floor(tier, "user", "1") == 4 and floor(tier, "user", "2") == 7)
    assert not consumer.health().is_running


def test_a_stopped_consumer_goes_on_where_it_was(settings, writer, tier):
    """What is written meanwhile is applied at the next start, in the same epoch."""
    with Consumer(**settings) as consumer:
        until("it owns the topic", lambda: len(consumer.health().lag) == 8)
        writer.touch("user", "1", 1)
        writer.flush()
        until("it is applied", lambda: floor(tier, "user", "1") == 1)
    epoch = tier.progress().epoch
    writer.touch("user", "1", 2)
    writer.flush()
    with Consumer(**settings):
        until("the second is applied", lambda: floor(tier, "user", "1") == 2)
    assert tier.progress().epoch == epoch


def test_starting_and_stopping_may_happen_in_any_number_and_order(settings):
    """Stopping before the start, twice, and starting twice are harmless."""
    consumer = Consumer(**settings)
    consumer.stop()
    consumer.start()
    consumer.start()
    until("it runs", lambda: consumer.health().is_running)
    consumer.stop()
    consumer.stop()
    assert not consumer.health().is_running
    consumer.wait()
