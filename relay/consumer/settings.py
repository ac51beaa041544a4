"""The Kafka properties of a consumer: what is set, what may be, and what must not, because a guarantee hangs on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from relay.errors import ConfigError
from relay.kafka_words import words_of

GUARDED: Final[Mapping[str, tuple[Any, str]]] = {
    "enable.auto.commit": (False, "offsets are committed after their events were applied, never on a timer"),
    "enable.auto.offset.store": (False, "offsets are committed after their events were applied, never on delivery"),
    "auto.offset.reset": ("error", "events that cannot be read begin a new epoch; they are never skipped silently"),
    "allow.auto.create.topics": (False, "a mistyped name would become a topic"),
    "enable.partition.eof": (
        True,
        "it tells how far a partition goes where its last records are marks of transactions",
    ),
}
"""Properties with the one value under which the promise holds, and why."""

CLASSIC: Final[Mapping[str, Any]] = {
    "session.timeout.ms": 10_000,
    "heartbeat.interval.ms": 3_000,
    "partition.assignment.strategy": "cooperative-sticky",
}
"""For groups of the classic protocol; with `group.protocol=consumer` the brokers decide these."""

COMMON: Final[Mapping[str, Any]] = {
    "client.id": "relay-consumer",
    "fetch.wait.max.ms": 100,
    "queued.max.messages.kbytes": 16_384,
    "topic.metadata.refresh.interval.ms": 10_000,
    "log_level": 0,
}
"""Errors come to us, so librdkafka need not write to stderr. Partitions that were added, and topics that came back, are
seen within ten seconds."""


def consumer_properties(kafka: Mapping[str, Any], group: str | None) -> dict[str, Any]:
    """What the client is made with: the user's properties over ours, with the guarded ones as they have to be.

    Args:
        kafka: librdkafka's properties; `bootstrap.servers` at least.
        group: None for a reader without a group.

    Raises:
        ConfigError: RLY-201, RLY-207.
    """
    if not (kafka.get("bootstrap.servers") or kafka.get("metadata.broker.list")):
        raise ConfigError("RLY-201", "bootstrap.servers is missing", 'pass kafka={"bootstrap.servers": "host:9092"}')
    for name, (value, reason) in GUARDED.items():
        if name in kafka and str(kafka[name]).lower() != str(value).lower():
            raise ConfigError("RLY-207", f"{name} has to be {str(value).lower()}: {reason}", f"remove {name}")
    if "group.id" in kafka and kafka["group.id"] != group:
        raise ConfigError("RLY-207", "group.id is given twice", "pass it as group=, and not among the properties")
    classic: Mapping[str, Any] = {} if kafka.get("group.protocol", "classic") == "consumer" else CLASSIC
    if classic and "session.timeout.ms" in kafka:
        classic = {**classic, "heartbeat.interval.ms": max(1, int(kafka["session.timeout.ms"]) // 3)}
    properties = {**COMMON, **classic, **kafka, **{name: value for name, (value, _) in GUARDED.items()}}
    if group is None:
        properties = {name: value for name, value in properties.items() if not MEMBERSHIP.match(name)}
    # A client without a group has to name one all the same; it never joins it.
    properties["group.id"] = group or "relay-without-group"
    return properties


def check_properties(properties: Mapping[str, Any]) -> None:
    """Makes a client and throws it away: librdkafka looks at its properties then, and connects to nobody.

    Raises:
        ConfigError: RLY-206, without the value, which may be a secret in the wrong place.
    """
    from confluent_kafka import Consumer

    try:
        Consumer({**properties, "error_cb": lambda _error: None}).close()
    except ImportError as error:
        # A way to log in may need a package that confluent-kafka does not bring.
        what = f"the Kafka client lacks a package for a property: {words_of(error, properties)}"
        raise ConfigError("RLY-206", what, "install it, or correct the property in kafka=") from None
    except Exception as error:
        named = [name for name in properties if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", str(error))]
        what = f"the property {max(named, key=len)}" if named else "a property"
        raise ConfigError("RLY-206", f"librdkafka refuses {what}", "correct its name or value in kafka=") from None


def is_incremental(properties: Mapping[str, Any]) -> bool:
    """Whether assignments come as changes of what there was, rather than whole."""
    strategy = str(properties.get("partition.assignment.strategy", ""))
    return properties.get("group.protocol") == "consumer" or "cooperative" in strategy


MEMBERSHIP: Final = re.compile(r"(group\.|partition\.assignment\.|session\.timeout|heartbeat\.)")
CONNECTION: Final = re.compile(
    r"(bootstrap\.servers|metadata\.broker\.list|client\.id|security|sasl|ssl|enable\.ssl|socket)"
)


def connection_properties(
    properties: Mapping[str, Any], on_error: Callable[[Any], None] = lambda _error: None
) -> dict[str, Any]:
    """Those of them that say how to reach the brokers: for the other clients that a consumer needs.

    Args:
        on_error: told why brokers do not answer. Having it keeps librdkafka from writing to stderr.
    """
    found = {name: value for name, value in properties.items() if CONNECTION.match(name)}
    # Producers and admin clients have librdkafka create topics unless they are told otherwise.
    ours = {"allow.auto.create.topics": False, "log_level": properties.get("log_level", 0)}
    return found | ours | {"error_cb": on_error}
