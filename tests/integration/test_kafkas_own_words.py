"""What Kafka says when it refuses is told to the operator in its own words, wherever Relay says it cannot go on."""

from __future__ import annotations

import json
from collections.abc import Iterator

import psycopg
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AclOperation

from relay.cache import Local
from relay.consumer import Consumer, Feed
from tests.support.commands import emit, relay
from tests.support.consumers import fresh_group, until
from tests.support.guarded_kafka import PASSWORD, allow, guarded_cluster, login, variables
from tests.support.kafka import KafkaCluster
from tests.support.relay_process import eventually

WRONG = "notthepassword"
REFUSED = "Invalid username or password (_AUTHENTICATION)"


def inside(cluster: KafkaCluster) -> str:
    """The listener of the brokers, at which everything is allowed."""
    return f"127.0.0.1:{cluster.brokers[0].internal_port}"


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    with guarded_cluster() as made:
        for topic in ("hidden", "unreadable", "orders"):
            made.create_topic(topic, 1)
        everything = Producer({"bootstrap.servers": inside(made)})
        everything.produce("unreadable", b"x")
        assert everything.flush(60) == 0
        allow(made, "unreadable", AclOperation.DESCRIBE)
        allow(made, "orders", AclOperation.DESCRIBE, AclOperation.READ, AclOperation.WRITE)
        yield made


@pytest.fixture
def waiting(database) -> str:
    """A database in which events wait for topics that are there, and of which not all are this user's."""
    with psycopg.connect(database, autocommit=True) as owner:
        for topic in ("orders", "hidden"):
            emit(owner, topic, "x", topic=topic)
    return database


def said(*arguments: str, dsn: str, kafka: dict[str, str]) -> str:
    """Everything that a command says, on one line."""
    ended = relay(*arguments, settings={"RELAY_DATABASE_URL": dsn, **kafka})
    text = " ".join((ended.stdout + ended.stderr).split())
    assert "Traceback" not in text
    assert WRONG not in text
    assert PASSWORD not in text
    return text


def tells(*arguments: str, dsn: str, kafka: dict[str, str], words: str) -> str:
    """What a command says, once it says this: a busy machine may take longer than an operator is kept waiting."""

    def now() -> str:
        text = said(*arguments, dsn=dsn, kafka=kafka)
        return text if words in text else ""

    return str(eventually(now, 200, words))


def away(servers: str) -> dict[str, str]:
    return {"RELAY_KAFKA_BOOTSTRAP_SERVERS": servers}


@pytest.mark.parametrize(
    "command",
    [("explain", "--key", "orders"), ("doctor",), ("status",), ("top", "--once"), ("cache", "status"),
     ("cache", "verify", "--seconds", "1")],
    ids=" ".join,
)  # fmt: skip
def test_a_login_that_kafka_refuses_is_called_that(cluster, waiting, redis_url, namespace, command):
    """And not that Kafka does not answer: it did."""
    redis = {"RELAY_REDIS_URL": redis_url, "RELAY_REDIS__NAMESPACE": namespace}
    tells(*command, dsn=waiting, kafka={**variables(cluster, WRONG), **redis}, words=REFUSED)


@pytest.mark.parametrize(
    ("servers", "words"),
    [("127.0.0.1:1", "Connection refused"), ("kafka.invalid:9092", "Failed to resolve 'kafka.invalid:9092'")],
    ids=["nobody listens", "no such host"],
)
@pytest.mark.parametrize("command", [("explain", "--key", "orders"), ("doctor",), ("status",), ("top", "--once")])
def test_brokers_that_cannot_be_reached_are_told_by_the_cause(waiting, command, servers, words):
    tells(*command, dsn=waiting, kafka=away(servers), words=words)


def test_a_topic_that_is_hidden_is_not_called_missing(cluster, waiting):
    """What the user may not describe may well be there."""
    hidden = "TOPIC_AUTHORIZATION_FAILED"
    text = tells("explain", "--key", "hidden", dsn=waiting, kafka=variables(cluster), words=hidden)
    assert "does not exist" not in text
    tells("doctor", dsn=waiting, kafka=variables(cluster), words=hidden)


def test_a_topic_that_may_not_be_read_is_not_called_empty(cluster, waiting):
    """The look at it ends with Kafka's answer, and not with its time."""
    arguments = ("explain", "--key", "gone", "--topic", "unreadable", "--seconds", "60", "--json")
    answer = json.loads(tells(*arguments, dsn=waiting, kafka=variables(cluster), words="unreadable"))
    (search,) = answer["searches"]
    assert (search["problem"], search["complete"]) == ("unreadable", False)
    assert "TOPIC_AUTHORIZATION_FAILED" in search["reason"]
    assert any("TOPIC_AUTHORIZATION_FAILED" in sentence for sentence in answer["says"])


def problems(of: Consumer | Feed) -> str:
    return "; ".join(f"{one.code} {one.detail}" for one in of.health().problems)


def is_told(of: Consumer | Feed, code: str, words: str) -> bool:
    return any(one.code == code and words in one.detail for one in of.health().problems)


def test_consumer_and_feed_say_which_login_was_refused(cluster):
    """In health, from where logs and probes have it."""
    kafka = login(cluster, WRONG)
    with Consumer(kafka=kafka, topics=["orders"], group=fresh_group(), local=Local()) as consumer:
        until("the consumer says so", lambda: is_told(consumer, "RLY-701", "(_AUTHENTICATION)"))
        until("its feed says so", lambda: is_told(consumer, "RLY-939", "(_AUTHENTICATION)"))
        assert "is not there" not in problems(consumer)
        assert WRONG not in problems(consumer)


def test_a_feed_tells_a_topic_that_is_missing_from_one_that_is_hidden(cluster):
    kafka = login(cluster)
    with Feed(kafka=kafka, topics=["hidden"], local=Local()) as feed:
        until("it says so", lambda: "TOPIC_AUTHORIZATION_FAILED" in problems(feed))
    with Feed(kafka={"bootstrap.servers": inside(cluster)}, topics=["nowhere"], local=Local()) as feed:
        until("it says so", lambda: "topic nowhere is not there" in problems(feed))


def test_a_feed_whose_broker_was_stopped_does_not_say_that_the_topic_is_missing(own_kafka, caplog):
    """The topic is there, and nobody can be asked about it."""
    own_kafka.create_topic("there", 1)
    local = Local()
    with Feed(kafka={"bootstrap.servers": own_kafka.bootstrap}, topics=["there"], local=local) as feed:
        until("the tier is open", lambda: local.is_open)
        own_kafka.kill(0)
        until("it has joined again", lambda: "onnection refused" in problems(feed))
        assert "is not there" not in problems(feed)
        assert "is not there" not in caplog.text
