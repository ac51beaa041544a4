"""librdkafka's properties as the relay's producer has them: which Relay sets, and which may not be anything else.

Every other property is the operator's. A wrong value of those costs speed or waiting, and never an event or its order;
`tests/unit/test_kafka_properties.py` has all of librdkafka's names with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from relay.errors import ConfigError

KAFKA_DEFAULTS: Final[dict[str, Any]] = {
    "acks": "all",
    "enable.idempotence": True,
    "allow.auto.create.topics": False,
    "compression.type": "lz4",
    "partitioner": "murmur2_random",
    "linger.ms": 1,
    "client.id": "relay",
    "topic.metadata.propagation.max.ms": 4000,
    "topic.metadata.refresh.interval.ms": 60_000,
    "reconnect.backoff.max.ms": 1000,
    "socket.keepalive.enable": True,
    "socket.timeout.ms": 6_000,
    "queue.buffering.max.messages": 200_000,
    "message.max.bytes": 10_000_000,
}
"""What Relay sets of librdkafka unless you do. The same partitioner as Java clients, so that keys meet. librdkafka adds
its framing to a message against `message.max.bytes`; the limit that counts is the topic's, and before it the schema's.

A leader that freezes with its connections open is given up only after the socket time-out: with librdkafka's 60 seconds
events waited for 63, although the cluster had replaced the leader after 4. It is well below the default of
daemon.publish_timeout_seconds, so that librdkafka sends the same records to the next leader, which knows them as a
repetition, before their unit is given up and its lanes are free for other relays.

librdkafka lets brokers create topics for producers and admin clients unless it is told otherwise, although it calls the
property one of consumers.
"""

FOR_EVER: Final = str(2**31 - 1)


class Guard(NamedTuple):
    """The values that a property may have, the first of them to be proposed, and what another would break."""

    values: tuple[str, ...]
    because: str


KAFKA_GUARDED: Final[dict[str, Guard]] = {
    "acks": Guard(("all", "-1"), "an event would be removed that only one broker has"),
    "request.required.acks": Guard(("all", "-1"), "an event would be removed that only one broker has"),
    "enable.idempotence": Guard(("true",), "a retry would repeat events and reverse their order"),
    "retries": Guard((FOR_EVER,), "an event that librdkafka gives up may still arrive, after later ones of its key"),
    "message.send.max.retries": Guard(
        (FOR_EVER,), "an event that librdkafka gives up may still arrive, after later ones of its key"
    ),
    "delivery.report.only.error": Guard(("false",), "Relay decides which reports it needs"),
    "enable.gapless.guarantee": Guard(("false",), "one refused event would end the producer"),
    "allow.auto.create.topics": Guard(("false",), "a mistyped name would become a topic"),
    "partitioner": Guard(
        ("murmur2_random", "murmur2", "fnv1a_random", "fnv1a", "consistent"),
        "events of one key would go to several partitions, those of the empty key with consistent_random",
    ),
    "queuing.strategy": Guard(("fifo",), "newer events would overtake older ones"),
    "api.version.request": Guard(("true",), "events would lose their headers"),
}
"""Properties that carry the promise."""

KAFKA_RANGES: Final[dict[str, tuple[int, int, str]]] = {
    "max.in.flight": (1, 5, "brokers remember five batches of a producer, and order needs each of them"),
    "max.in.flight.requests.per.connection": (
        1,
        5,
        "brokers remember five batches of a producer, and order needs them",
    ),
}
"""Properties that carry the promise within a range, and why."""

KAFKA_OURS: Final[dict[str, str]] = {
    "message.timeout.ms": "daemon.publish_timeout_seconds",
    "delivery.timeout.ms": "daemon.publish_timeout_seconds",
    "metadata.broker.list": "kafka.bootstrap.servers",
    "log_level": "log.level",
    "transactional.id": "",
    "enabled_events": "",
    "on_delivery": "",
    "error_cb": "",
}
"""Properties that Relay sets itself, with the setting to use instead."""


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the properties over Relay's defaults.

    Raises:
        ConfigError: RLY-203, 204 or 207. A value is never shown: it may be a secret under a wrong name.
    """
    for name, value in given.items():
        if not isinstance(value, (str, int, float, bool)):
            kind = "list" if isinstance(value, list) else "value"
            raise ConfigError("RLY-203", f"kafka.{name} is a {kind}", "give the property one value")
        _check(name, str(value).lower())
    properties = {**KAFKA_DEFAULTS, **given}
    _check_queue(properties)
    return properties


def _check(name: str, plain: str) -> None:
    if name in KAFKA_OURS:
        instead = KAFKA_OURS[name]
        raise ConfigError(
            "RLY-207", f"kafka.{name} is set by Relay itself", f"use {instead}" if instead else "remove it"
        )
    guard = KAFKA_GUARDED.get(name)
    if guard and plain not in guard.values:
        raise ConfigError(
            "RLY-207",
            f"kafka.{name} with this value breaks the promise: {guard.because}",
            f"use {guard.values[0]} or remove it",
        )
    if name in KAFKA_RANGES:
        low, high, because = KAFKA_RANGES[name]
        if not (plain.isdecimal() and low <= int(plain) <= high):
            raise ConfigError(
                "RLY-207", f"kafka.{name} is not {low} to {high}: {because}", f"use {low} to {high} or remove it"
            )


def _check_queue(properties: Mapping[str, Any]) -> None:
    """librdkafka never takes a message that is larger than its whole queue: its event, and with it all events of the
    unit, would wait for ever."""
    kbytes, message = (str(properties.get(name, "")) for name in ("queue.buffering.max.kbytes", "message.max.bytes"))
    if kbytes.isdecimal() and message.isdecimal() and int(kbytes) * 1024 < int(message):
        raise ConfigError(
            "RLY-204",
            "kafka.queue.buffering.max.kbytes is less than kafka.message.max.bytes",
            f"set kafka.queue.buffering.max.kbytes to {-(-int(message) // 1024)} or more, or remove it",
        )
