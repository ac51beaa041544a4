"""What a consumer refuses before it starts: settings under which its promise would not hold."""

from __future__ import annotations

import pytest

from relay.cache import Local
from relay.consumer import Consumer, Feed
from relay.consumer.settings import CLASSIC, GUARDED, connection_properties, consumer_properties, is_incremental
from relay.errors import CacheError, ConfigError

KAFKA = {"bootstrap.servers": "localhost:9092"}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (value, _) in GUARDED.items()])
def test_a_guarded_property_has_one_value(name, value):
    """It may be given as it is, in any spelling, and not otherwise; the error names the property and not its value."""
    other = "latest" if isinstance(value, str) else not value
    assert consumer_properties({**KAFKA, name: str(value).upper()}, "g")[name] == value
    with pytest.raises(ConfigError, match=f"RLY-207: {name} has to be") as refused:
        Consumer(kafka={**KAFKA, name: other}, topics=["t"], group="g")
    assert "latest" not in str(refused.value)


@pytest.mark.parametrize(
    ("more", "error", "code"),
    [
        ({"kafka": {}}, ConfigError, "RLY-201"),
        ({"kafka": KAFKA | {"group.id": "other"}}, ConfigError, "RLY-207"),
        ({"topics": []}, CacheError, "RLY-930"),
        ({"topics": "orders"}, CacheError, "RLY-930"),
        ({"topics": ["^orders.*"]}, CacheError, "RLY-930"),
        ({"group": ""}, CacheError, "RLY-930"),
    ],
    ids=["no brokers", "two groups", "no topics", "a text for topics", "a pattern", "no group"],
)
def test_a_consumer_that_cannot_work_is_refused(more, error, code):
    """When it is made, with a code and the fix."""
    with pytest.raises(error, match=f"{code}: .*Fix: "):
        Consumer(**{"kafka": KAFKA, "topics": ["t"], "group": "g", **more})


def test_a_feed_and_a_hook_that_cannot_work_are_refused():
    """A feed without topics, and a hook that is no function."""
    with pytest.raises(CacheError, match="RLY-930"):
        Feed(kafka=KAFKA, topics=[], local=Local())
    with pytest.raises(CacheError, match="RLY-930"):
        Consumer(kafka=KAFKA, topics=["t"], group="g").on("user", 5)


def test_the_newer_protocol_takes_no_settings_of_the_classic_one():
    """The brokers decide them; librdkafka would refuse to start."""
    classic, newer = consumer_properties(KAFKA, "g"), consumer_properties({**KAFKA, "group.protocol": "consumer"}, "g")
    assert classic.keys() >= CLASSIC.keys()
    assert not newer.keys() & CLASSIC.keys()
    assert is_incremental(classic)
    assert is_incremental(newer)
    assert not is_incremental(consumer_properties({**KAFKA, "partition.assignment.strategy": "range"}, "g"))


@pytest.mark.parametrize("name", ["queued.max.mesages.kbytes", "queued.max.messages.kbytes"])
def test_a_property_that_librdkafka_refuses_is_named_and_its_value_is_not(name):
    """A name that does not exist, and a value that is none, before anything is started."""
    with pytest.raises(ConfigError, match=f"RLY-206: librdkafka refuses the property {name}") as refused:
        Consumer(kafka={**KAFKA, name: "sesame"}, topics=["t"], group="g").start()
    assert "sesame" not in str(refused.value)


def test_a_feed_is_in_no_group_whatever_the_consumer_is_given():
    """The same properties may be passed to both."""
    given = {**KAFKA, "group.instance.id": "one", "group.protocol": "consumer", "session.timeout.ms": 6000}
    found = consumer_properties(given, None)
    assert found["group.id"] == "relay-without-group"
    assert not found.keys() & {"group.instance.id", "group.protocol", "session.timeout.ms"}


def test_heartbeats_fit_the_session():
    """Who shortens the session need not think of them."""
    assert consumer_properties({**KAFKA, "session.timeout.ms": 6000}, "g")["heartbeat.interval.ms"] == 2000


def test_other_clients_are_given_the_connection_and_nothing_else():
    """Credentials and brokers; nothing that a producer would refuse."""
    found = connection_properties(consumer_properties({**KAFKA, "sasl.username": "u", "ssl.ca.location": "/ca"}, "g"))
    assert found.keys() == {
        "bootstrap.servers",
        "client.id",
        "sasl.username",
        "ssl.ca.location",
        "allow.auto.create.topics",
        "log_level",
        "error_cb",
    }
    assert found["allow.auto.create.topics"] is False
