"""A consumer keeps the shared tier right from its first event to its stop, on real Kafka."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from relay.cache.numbers import EVENT_LAG, EVENTS, Numbers
from relay.cache.reference import ReferenceTier
from relay.consumer import Consumer
from relay.core.record import decode_record
from relay.demo.server import free_port
from tests.support.consumers import Writer, fresh_group, headers_of, until


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


def test_a_consumer_starts_without_brokers_says_so_and_stops():
    """The service around it starts all the same; it goes on when the brokers are there."""
    consumer = Consumer(kafka={"bootstrap.servers": f"127.0.0.1:{free_port()}"}, topics=["t"], group="g")
    with consumer:
        until("it says so", lambda: [problem.code for problem in consumer.health().problems] == ["RLY-701"])
        assert consumer.health().is_running
    assert not consumer.health().is_running


def test_what_was_published_is_measured(settings, writer):
    """How many events were applied, and how long after the change."""
    numbers = Numbers()
    with Consumer(**settings, recorder=numbers) as consumer:
        until("it owns the topic", lambda: len(consumer.health().lag) == 8)
        ts = datetime.now(UTC).isoformat().encode()
        writer.raw(b"user:1", b"{}", [*headers_of("user", "1", 1), ("ts", ts)])
        writer.flush()
        until("it is counted", lambda: numbers.snapshot().value(EVENTS, settings["group"], "applied") == 1)
    lags = numbers.snapshot().distributions[EVENT_LAG, (settings["group"],)]
    assert (lags.total, 0 <= lags.sum < 60) == (1, True)


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
