"""librdkafka's word on its properties: it checks them when a client is made, and nothing is connected for that."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka import KafkaError, Producer

from relay.daemon.brokers import KEEP
from relay.errors import ConfigError
from relay.kafka_properties import KAFKA_DEFAULTS
from relay.kafka_words import LastWords

Client = TypeVar("Client")

ALIASES = {
    "queue.buffering.max.ms": "linger.ms",
    "compression.codec": "compression.type",
    "message.send.max.retries": "retries",
    "sasl.mechanisms": "sasl.mechanism",
    "metadata.broker.list": "bootstrap.servers",
    "max.in.flight.requests.per.connection": "max.in.flight",
}
"""librdkafka's own name of a property to the one that people write. Its errors know only its own."""


def refused(error: BaseException, properties: Mapping[str, Any]) -> ConfigError:
    """Returns our error for whatever making a client raised. Without the value: it may be a secret in the wrong place.

    Besides KafkaException these are TypeError, ValueError, ImportError where a way to log in needs another package, and
    whatever that package raises.
    """
    cause = error.args[0] if error.args else error
    text = cause.str() if isinstance(cause, KafkaError) else str(cause) or type(error).__name__
    plain = re.sub(r'value "[^"]*"', "value", " ".join(text.split()))
    for name, alias in ALIASES.items():
        if alias in properties and name not in properties:
            plain = plain.replace(f'"{name}"', f'"{alias}"')
    for name, value in properties.items():
        # Its words about mechanisms and files repeat what was given, without quotes.
        if isinstance(value, str) and value and value != KAFKA_DEFAULTS.get(name):
            plain = re.sub(rf"(?<![\w.]){re.escape(value)}(?![\w.])", "...", plain)
    if isinstance(error, ImportError):
        fix = "install the package that it names, or correct the property under [kafka] or RELAY_KAFKA__..."
        return ConfigError("RLY-206", f"the Kafka client lacks a package for a property: {plain.rstrip('.')}", fix)
    return ConfigError(
        "RLY-206",
        f"librdkafka refuses a property: {plain.rstrip('.')}",
        "correct it under [kafka] or RELAY_KAFKA__...",
    )


def make_client(make: Callable[[dict[str, Any]], Client], properties: Mapping[str, Any], **more: Any) -> Client:
    """Makes a client that only asks: the properties of the connection, and these.

    Args:
        make: the class of the client.
        more: further properties, with `_` for `.`, and callbacks.

    Raises:
        ConfigError: RLY-206, one of them was refused.
    """
    kept = {name: value for name, value in properties.items() if name.startswith(KEEP)}
    callbacks = {"error_cb"}
    named = {name if name in callbacks else name.replace("_", "."): value for name, value in more.items()}
    return _made(make, {**kept, "log_level": 0, **named}, properties)


def _made(make: Callable[[dict[str, Any]], Client], complete: dict[str, Any], given: Mapping[str, Any]) -> Client:
    try:
        return make(complete)
    except Exception as error:
        raise refused(error, given) from None


def check_properties(properties: Mapping[str, Any]) -> None:
    """Makes a producer and throws it away.

    Raises:
        ConfigError: RLY-206, librdkafka does not take one of them.
    """
    _made(Producer, {**properties, "log_level": 0, "error_cb": LastWords(properties).note}, properties)
