"""What the brokers say of themselves and of topics: are they there, can a topic be written, what does it refuse.

What a topic refuses is asked for before it is needed: a record that is refused after later records of its key were
acknowledged tears a hole into the order, and takes its neighbours in the batch along.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]

from relay.core.event import Row, row_bytes
from relay.daemon.kafka_errors import About, about
from relay.kafka_words import LastWords, words_of

ASK_SECONDS = 3.0
PROBE_SECONDS = 2.0
PRESENCE_SECONDS = 1.5
NO_TOPIC = "relay-asks-who-is-there"
"""Asked for to learn whether anybody answers: it costs the same however many topics there are, and creates none.

The admin client's question about the cluster does not serve: answered by a broker that has just come back and knows of
no living one, itself included, librdkafka 2.16 ends the process (rdkafka_admin.c, `rko_result`).
"""
FACTS_SECONDS = 300.0
"""After this long a topic is asked again what it refuses: its settings may have been changed."""
KEEP = (
    "bootstrap.servers", "client.id", "security.", "sasl.", "ssl.", "enable.ssl", "socket.", "reconnect.",
    "allow.auto.create.topics",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Facts:
    """What a topic refuses. None: the brokers do not tell, and nothing is assumed."""

    bytes_max: int | None = None
    is_compacted: bool = False
    """A compacted topic refuses a record without a key."""
    replicas_min: int = 1
    """`min.insync.replicas`"""
    until: float = 0.0


class Inquiry:
    """A question about topics that is on its way; asking for its answer does not wait."""

    def __init__(self, futures: Mapping[str, Any], facts: Mapping[str, Facts]) -> None:
        self._futures = futures
        self._facts = facts

    def answer(self, seconds: float = 0.0) -> dict[str, str] | None:
        """Returns the topics that cannot be written now, with the reason; None if nobody has answered yet."""
        until = time.monotonic() + seconds
        found: dict[str, str] = {}
        for topic, future in self._futures.items():
            if not future.done() and until <= time.monotonic():
                return None
            try:
                described = future.result(max(0.0, until - time.monotonic()))
            except TimeoutError:
                return None
            except KafkaException as error:
                if about(error.args[0].code()) is not About.TOPIC:
                    return None
                found[topic] = words_of(error)
                continue
            if reason := _unwritable(described.partitions, self._facts.get(topic, Facts()).replicas_min):
                found[topic] = reason
        return found


def _unwritable(partitions: Collection[Any], replicas_min: int) -> str:
    """Returns what keeps a topic from being written; empty if nothing does."""
    for partition in partitions:
        if partition.leader is None or partition.leader.id < 0:
            return f"partition {partition.id} has no leader"
        in_sync = len(partition.isr)
        if in_sync < replicas_min:
            return f"partition {partition.id} has {in_sync} replicas in sync, min.insync.replicas is {replicas_min}"
    return ""


def who_is_there(admin: AdminClient, seconds: float) -> Any:
    """Returns what a broker says of its cluster, as soon as any has answered.

    Raises:
        KafkaException: none has, for so long.
    """
    return admin.list_topics(topic=NO_TOPIC, timeout=seconds)


class Brokers:
    """One admin client, shared by the threads of a relay."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        admin: dict[str, Any] = {name: value for name, value in properties.items() if name.startswith(KEEP)}
        self._words = LastWords(admin)
        admin |= {"log_level": 0, "error_cb": self._words.note}
        self._admin = AdminClient(admin)
        self._facts: dict[str, Facts] = {}
        self._lock = threading.Lock()

    def ask(self) -> str | None:
        """Returns None if they answer, else Kafka's own words about why they do not."""
        try:
            who_is_there(self._admin, PRESENCE_SECONDS)
        except KafkaException as error:
            self._admin.poll(0)
            return self._words.after(error)
        self._words.forget()
        return None

    @property
    def words(self) -> str:
        """Kafka's own words since the brokers have last answered, empty if there were none."""
        return self._words.words

    def inquire(self, topics: Collection[str]) -> Inquiry:
        """Asks what keeps these topics from being written. Creates none of them."""
        futures: Mapping[str, Any] = {}
        with contextlib.suppress(KafkaException):
            # A client that cannot even queue the question leaves it without an answer.
            futures = self._admin.describe_topics(TopicCollection(sorted(topics)), request_timeout=PROBE_SECONDS)
        return Inquiry(futures or {topic: _Silence() for topic in topics}, self._facts)

    def learn(self, topics: set[str]) -> dict[str, str]:
        """Asks what topics that are new here refuse, or were asked long ago.

        Returns:
            Those of them that cannot be written now, with the reason.
        """
        now = time.monotonic()
        facts = self._facts
        if all(topic in facts and now < facts[topic].until for topic in topics):
            return {}
        with self._lock:
            new = {topic for topic in topics if topic not in self._facts or now >= self._facts[topic].until}
            if not new:
                # Another worker has just asked.
                return {}
            inquiry = self.inquire(new)
            found = self._ask(sorted(new), now + FACTS_SECONDS)
            self._facts = {**self._facts, **found}
        return inquiry.answer(PROBE_SECONDS) or {}

    def forget(self, topic: str) -> None:
        """Asks again next time: the topic came back, perhaps as another, or refused what it should have taken."""
        with self._lock:
            self._facts = {name: facts for name, facts in self._facts.items() if name != topic}

    def smallest_limit(self) -> int | None:
        """The smallest known `max.message.bytes`."""
        return min((facts.bytes_max for facts in self._facts.values() if facts.bytes_max is not None), default=None)

    def wants_keys(self, topic: str) -> bool:
        """Whether the topic refuses records without a key."""
        facts = self._facts.get(topic)
        return facts is not None and facts.is_compacted

    def may_refuse(self, row: Row) -> bool:
        """Whether the row, uncompressed, is larger than its topic allows, or lacks the key that its topic wants."""
        facts = self._facts.get(row[3])
        if facts is None:
            return False
        return (facts.is_compacted and row[4] is None) or (
            facts.bytes_max is not None and row_bytes(row) > facts.bytes_max
        )

    def _ask(self, topics: list[str], until: float) -> dict[str, Facts]:
        found = dict.fromkeys(topics, Facts(until=until))
        resources = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in topics]
        try:
            futures = self._admin.describe_configs(resources, request_timeout=ASK_SECONDS)
        except KafkaException:
            return found
        for resource, future in futures.items():
            # A missing topic, no right to describe it, or nobody there: producing will tell.
            with contextlib.suppress(KafkaException, TimeoutError, KeyError, ValueError, TypeError):
                config = future.result(ASK_SECONDS)
                found[resource.name] = Facts(
                    int(config["max.message.bytes"].value),
                    "compact" in config["cleanup.policy"].value,
                    int(config["min.insync.replicas"].value),
                    until,
                )
        return found


class _Silence:
    """A question that could not be asked: it is never answered."""

    def done(self) -> bool:
        """Never."""
        return False

    def result(self, timeout: float) -> Any:
        """Raises TimeoutError."""
        raise TimeoutError(timeout)
