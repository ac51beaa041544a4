"""What the brokers say of themselves and of topics: are they there, can a topic be written, how much it takes.

The limit is asked for before it is needed: a record that is refused after later records of its key were acknowledged
tears a hole into the order.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]

from relay.core.event import Row, row_bytes
from relay.kafka_words import LastWords

ASK_SECONDS = 3.0
PROBE_SECONDS = 2.0
PRESENCE_SECONDS = 1.5
KEEP = (
    "bootstrap.servers", "client.id", "security.", "sasl.", "ssl.", "enable.ssl", "socket.", "reconnect.",
    "allow.auto.create.topics",
)  # fmt: skip


class Brokers:
    """One admin client, shared by the threads of a relay."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        admin: dict[str, Any] = {name: value for name, value in properties.items() if name.startswith(KEEP)}
        self._words = LastWords(admin)
        admin |= {"log_level": 0, "error_cb": self._words.note}
        self._admin = AdminClient(admin)
        self._limits: dict[str, int | None] = {}
        self._lock = threading.Lock()

    def ask(self) -> str | None:
        """Returns None if they answer, else Kafka's own words about why they do not."""
        try:
            # Costs the same however many topics there are, but only one of the brokers can answer it.
            self._admin.describe_cluster(request_timeout=PRESENCE_SECONDS).result(PRESENCE_SECONDS * 2)
        except (KafkaException, TimeoutError):
            try:
                self._admin.list_topics(timeout=PRESENCE_SECONDS)
            except KafkaException as error:
                self._admin.poll(0)
                return self._words.after(error)
        self._words.forget()
        return None

    @property
    def words(self) -> str:
        """Kafka's own words since the brokers have last answered, empty if there were none."""
        return self._words.words

    def can_write(self, topic: str) -> bool:
        """Whether a topic exists, as far as metadata tells."""
        try:
            found = self._admin.list_topics(topic, timeout=PROBE_SECONDS).topics.get(topic)
        except KafkaException:
            return False
        return found is not None and found.error is None and bool(found.partitions)

    def learn(self, topics: set[str]) -> None:
        """Asks for the size limits of topics that are new here. Where the brokers do not tell, nothing is assumed."""
        if topics <= self._limits.keys():
            return
        with self._lock:
            new = topics - self._limits.keys()
            if new:
                self._limits = {**self._limits, **self._ask(sorted(new))}

    def forget(self, topic: str) -> None:
        """Asks again next time: the topic came back, perhaps as another."""
        with self._lock:
            self._limits = {name: limit for name, limit in self._limits.items() if name != topic}

    def smallest_limit(self) -> int | None:
        """The smallest known `max.message.bytes`."""
        return min((limit for limit in self._limits.values() if limit is not None), default=None)

    def may_refuse(self, row: Row) -> bool:
        """Whether the row, uncompressed, is larger than its topic allows."""
        limit = self._limits.get(row[3])
        return limit is not None and row_bytes(row) > limit

    def _ask(self, topics: list[str]) -> dict[str, int | None]:
        found: dict[str, int | None] = dict.fromkeys(topics)
        resources = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in topics]
        try:
            futures = self._admin.describe_configs(resources, request_timeout=ASK_SECONDS)
        except KafkaException:
            return found
        for resource, future in futures.items():
            try:
                found[resource.name] = int(future.result(ASK_SECONDS)["max.message.bytes"].value)
            except (KafkaException, TimeoutError, KeyError, ValueError, TypeError):
                # Missing topic, no right to describe it, or nobody there: producing will tell.
                found[resource.name] = None
        return found
