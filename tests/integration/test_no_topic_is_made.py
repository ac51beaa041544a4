"""Relay creates no topic, also where the brokers create what they are asked about (`auto.create.topics.enable`).

A topic that appears by itself has the brokers' default partitions and replicas, and a mistyped name becomes a topic.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import psycopg
import pytest
from confluent_kafka import Consumer as Client
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from relay.cache import Local
from relay.consumer import Consumer, Feed
from relay.consumer.deadletters import DeadLetters, SetAsideError
from tests.support.commands import emit, relay
from tests.support.consumers import fresh_group, until
from tests.support.kafka import KafkaCluster
from tests.support.relay_process import RelayProcess, eventually

names = (f"mistyped-{number}" for number in count())


@pytest.fixture(scope="module")
def eager() -> Iterator[KafkaCluster]:
    """Brokers as they are by default: they create a topic when a client asks about it and lets them."""
    with KafkaCluster(properties={"auto.create.topics.enable": "true"}) as cluster:
        yield cluster


def topics(cluster: KafkaCluster) -> set[str]:
    """All that there are, without asking about any."""
    found = AdminClient({"bootstrap.servers": cluster.bootstrap}).list_topics(timeout=30).topics
    return {name for name in found if not name.startswith("__")}


def settings(cluster: KafkaCluster, dsn: str, **more: str) -> dict[str, str]:
    return {"RELAY_DATABASE_URL": dsn, "RELAY_KAFKA_BOOTSTRAP_SERVERS": cluster.bootstrap, **more}


def test_these_brokers_do_create_topics(eager):
    """Without this the others would prove nothing: librdkafka's own defaults create topics in both ways."""
    produced, asked = next(names), next(names)
    producer = Producer({"bootstrap.servers": eager.bootstrap})
    producer.produce(produced, b"x")
    assert producer.flush(60) == 0
    AdminClient({"bootstrap.servers": eager.bootstrap}).list_topics(asked, timeout=30)
    eventually(lambda: {produced, asked} <= topics(eager), 60, "the brokers to create both")


def test_the_daemon_lets_events_wait_for_a_topic_that_is_missing(eager, database):
    """And publishes them when an operator has created it. Its looks at the topic create nothing either."""
    missing = next(names)
    with psycopg.connect(database, autocommit=True) as owner:
        emit(owner, "k", "x", topic=missing)
    before = topics(eager)
    with RelayProcess(database, eager.bootstrap) as process:
        process.wait_event("topic.paused", seconds=90)
        with psycopg.connect(database, autocommit=True) as owner:
            emit(owner, "k", "x", topic=next(names))
        # The first topic has been looked at several times meanwhile.
        process.wait_event("topic.paused", count=2, seconds=90)
        assert topics(eager) == before
        eager.create_topic(missing, 1)
        process.wait_event("topic.resumed", seconds=90)


def test_no_command_creates_the_topic_that_it_asks_about(eager, database, redis_url, namespace):
    """Neither those that are named by the outbox nor those of the settings or of an option."""
    with psycopg.connect(database, autocommit=True) as owner:
        emit(owner, "k", "x", topic=next(names))
    before = topics(eager)
    given = settings(eager, database, RELAY_REDIS_URL=redis_url, RELAY_REDIS__NAMESPACE=namespace)
    other = next(names)
    asked = {
        ("doctor",): "missing (RLY-702)",
        ("explain", "--key", "k"): "does not exist",
        ("explain", "--key", "other", "--topic", other): "does not exist",
        ("cache", "status", "--topic", other): "tier",
        ("cache", "verify", "--seconds", "0.5", "--topic", other): "violations",
        ("status",): "answers, 1 broker",
        ("top", "--once"): "answers, 1 broker",
    }
    for arguments, answer in asked.items():
        # On a busy machine Kafka may take longer than an operator is kept waiting.
        eventually(lambda a=arguments, b=answer: b in relay(*a, settings=given).stdout, 120, answer)
    assert topics(eager) == before


def test_neither_consumer_nor_feed_creates_what_it_reads(eager):
    """They say that the topic is missing."""
    before = topics(eager)
    kafka = {"bootstrap.servers": eager.bootstrap}
    with Consumer(kafka=kafka, topics=[next(names)], group=fresh_group()) as consumer:
        until("it says so", lambda: [one for one in consumer.health().problems if one.code == "RLY-933"])
    with Feed(kafka=kafka, topics=[next(names)], local=Local()) as feed:
        until("it says so", lambda: [one for one in feed.health().problems if "is not there" in one.detail])
    assert topics(eager) == before


def test_a_dead_letter_topic_is_created_on_purpose_or_not_at_all(eager, monkeypatch):
    """Where creating it is refused, writing to it must not create it either."""
    source = next(names)
    producer = Producer({"bootstrap.servers": eager.bootstrap})
    eager.create_topic(source, 1)
    producer.produce(source, b"x", b"k")
    assert producer.flush(60) == 0
    client = Client({"bootstrap.servers": eager.bootstrap, "group.id": "g", "auto.offset.reset": "earliest"})
    client.subscribe([source])
    record = eventually(lambda: client.poll(1), 60, "the record")
    client.close()
    letters = DeadLetters({"bootstrap.servers": eager.bootstrap}, "g", {})
    monkeypatch.setattr(letters, "_make", lambda _topic: "refused")
    before = topics(eager)
    with pytest.raises(SetAsideError):
        letters.put(record, "RLY-935", "hook failed", 1)
    assert topics(eager) == before
