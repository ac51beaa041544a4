"""librdkafka's word on its properties: it checks them when a producer is made, and nothing is connected for that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from relay.errors import ConfigError

REFUSALS = (KafkaException, TypeError, ValueError)
"""What making a client with a wrong property raises."""


def refused(error: BaseException) -> ConfigError:
    """What librdkafka refuses, as our error. Without the value: it may be a secret in the wrong place."""
    cause = error.args[0] if error.args else error
    text = cause.str() if isinstance(cause, KafkaError) else str(cause)
    plain = re.sub(r'value "[^"]*"', "value", " ".join(text.split()))
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
        raise refused(error) from None
