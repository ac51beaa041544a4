"""How large a record each topic takes, as the brokers say, so that a refusal is known before it tears a hole."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource

from relay.core.event import Row, row_bytes

ASK_SECONDS = 3.0


class TopicLimits:
    """`max.message.bytes` by topic. Asked once per topic; where the brokers do not tell, nothing is assumed."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        keep = (
            "bootstrap.servers",
            "client.id",
            "security.",
            "sasl.",
            "ssl.",
            "enable.ssl",
            "socket.",
            "test.mock",
        )
        self._admin_properties = {k: v for k, v in properties.items() if k.startswith(keep)} | {"log_level": 0}
        self._limits: dict[str, int | None] = {}
        self._lock = threading.Lock()

    def learn(self, topics: set[str]) -> bool:
        """Asks for the topics that are new; True if there were any."""
        with self._lock:
            new = [topic for topic in topics if topic not in self._limits]
            if not new:
                return False
            self._limits.update(self._ask(new))
            return True

    def forget(self, topic: str) -> None:
        """Asks again next time: the topic was refused something that should have fitted, or it came back."""
        with self._lock:
            self._limits.pop(topic, None)

    def smallest(self) -> int | None:
        """The smallest known limit."""
        return min((limit for limit in self._limits.values() if limit is not None), default=None)

    def is_risky(self, row: Row) -> bool:
        """Whether the row, uncompressed, is larger than its topic allows: Kafka may refuse it."""
        limit = self._limits.get(row[3])
        return limit is not None and row_bytes(row) > limit

    def _ask(self, topics: list[str]) -> dict[str, int | None]:
        found: dict[str, int | None] = dict.fromkeys(topics)
        try:
            admin = AdminClient(self._admin_properties)
            futures = admin.describe_configs(
                [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in topics],
                request_timeout=ASK_SECONDS,
            )
        except KafkaException:
            return found
        for resource, future in futures.items():
            try:
                found[resource.name] = int(future.result(ASK_SECONDS)["max.message.bytes"].value)
            except (KafkaException, TimeoutError, KeyError, ValueError, TypeError):
                # Missing topic, no right to describe it, or nobody there: producing will tell.
                found[resource.name] = None
        return found
