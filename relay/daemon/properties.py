"""librdkafka's word on its properties: it checks them when a producer is made, and nothing is connected for that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from relay.errors import ConfigError
from relay.kafka_properties import KAFKA_DEFAULTS

REFUSALS = (KafkaException, TypeError, ValueError)
"""What making a client with a wrong property raises."""


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
    """What librdkafka refuses, as our error. Without the value: it may be a secret in the wrong place."""
    cause = error.args[0] if error.args else error
    text = cause.str() if isinstance(cause, KafkaError) else str(cause)
    plain = re.sub(r'value "[^"]*"', "value", " ".join(text.split()))
    for name, alias in ALIASES.items():
        if alias in properties and name not in properties:
            plain = plain.replace(f'"{name}"', f'"{alias}"')
    for name, value in properties.items():
        # Its words about mechanisms and files repeat what was given, without quotes.
        if isinstance(value, str) and value and value != KAFKA_DEFAULTS.get(name):
            plain = re.sub(rf"(?<![\w.]){re.escape(value)}(?![\w.])", "...", plain)
    return ConfigError(
        "RLY-206", f"librdkafka refuses a property: {plain}", "correct it under [kafka] or RELAY_KAFKA__..."
    )


def check_properties(properties: Mapping[str, Any]) -> None:
    """Makes a producer and throws it away.

    Raises:
        ConfigError: RLY-206, librdkafka does not take one of them.
    """
    try:
        Producer({**properties, "log_level": 0, "error_cb": lambda _error: None})
    except REFUSALS as error:
        raise refused(error, properties) from None
