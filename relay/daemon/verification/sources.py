"""Where the checker learns from: the end of the topic, the records in Redis, the primary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from relay.core.change import Change, decode
from relay.daemon.properties import make_client
from relay.daemon.verification.knowledge import Name
from relay.database import Connection
from relay.errors import UnreachableError
from relay.kafka_words import LastWords

ASK_SECONDS: Final = 5.0
EVENTS_PER_TURN: Final = 1000
MISSING: Final = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC})
NAMES_PER_WALK: Final = 100

# Reads by the primary key of entity_version, once for each of a few hundred entities; locks nothing.
VERSIONS: Final = """\
SELECT coalesce(v.version, 0)
FROM unnest(%(entities)s::text[], %(ids)s::text[]) WITH ORDINALITY AS wanted (entity, id, position)
LEFT JOIN relay.entity_version AS v ON v.entity = wanted.entity AND v.id = wanted.id
ORDER BY wanted.position"""


class Primary:
    """Versions as they are committed now."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def versions(self, names: Sequence[Name]) -> list[int]:
        """In the order of the names.

        Raises:
            psycopg.Error: the database does not answer.
        """
        if not names:
            return []
        parameters = {"entities": [name.entity for name in names], "ids": [name.id for name in names]}
        return [row[0] for row in self._connection.execute(VERSIONS, parameters)]


class Walk:
    """The names of records, some hundred at a time, around Redis again and again in the order of its hash table."""

    def __init__(self, client: Any, namespace: str) -> None:
        self._client = client
        self._prefix = f"relay:{{{namespace}}}:r:"
        self._cursor = 0
        self.rounds = 0
        """How often all of Redis was walked through."""

    def names(self) -> list[Name]:
        """Those that one SCAN finds: perhaps none.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        pattern = _literal(self._prefix) + "*"
        self._cursor, keys = self._client.scan(self._cursor, match=pattern, count=1000)
        self.rounds += self._cursor == 0
        names = []
        for key in keys[:NAMES_PER_WALK]:
            entity, colon, id_ = key.decode(errors="replace").removeprefix(self._prefix).partition(":")
            if colon:
                names.append(Name(entity, id_))
        return names


def _literal(text: str) -> str:
    """The text as a pattern of Redis that matches it alone."""
    return "".join(f"\\{character}" if character in "*?[]^\\" else character for character in text)


def _partitions(consumer: Consumer, topic: str) -> list[int]:
    """Those of the topic; none if it is missing.

    Raises:
        KafkaException: nobody answers, or the topic may not be seen.
    """
    found = consumer.list_topics(topic, timeout=ASK_SECONDS).topics.get(topic)
    if found is not None and found.error is not None and found.error.code() not in MISSING:
        raise KafkaException(found.error)
    return [] if found is None else sorted(found.partitions)


class Tail:
    """Events that arrive at the end of a topic from now on. Belongs to no group and commits nothing."""

    def __init__(self, properties: Mapping[str, Any], topic: str) -> None:
        last = LastWords(properties)
        self._consumer = make_client(
            Consumer,
            properties,
            group_id="relay-verify",
            enable_auto_commit=False,
            enable_auto_offset_store=False,
            auto_offset_reset="latest",
            fetch_wait_max_ms=50,
            error_cb=last.note,
        )
        try:
            partitions = _partitions(self._consumer, topic)
            # The offsets themselves, and not "the end": what is written before the first fetch counts as well.
            ends = [
                TopicPartition(topic, number, self._consumer.get_watermark_offsets(TopicPartition(topic, number))[1])
                for number in partitions
            ]
        except KafkaException as error:
            self._consumer.poll(0)
            self._consumer.close()
            raise UnreachableError(
                "RLY-304",
                f"the Kafka brokers do not answer: {last.after(error)}",
                "check kafka.bootstrap.servers and the security settings",
            ) from None
        self.ends = {(end.topic, end.partition): end.offset for end in ends}
        """Where each partition ended when this began; empty if there is no such topic."""
        self._consumer.assign(ends)

    def events(self) -> Iterator[tuple[Name, int]]:
        """What has arrived since, without waiting; only what names an entity and a version."""
        for message in self._consumer.consume(EVENTS_PER_TURN, 0) if self.ends else ():
            if message.error() is not None:
                continue
            headers: Any = message.headers()
            change = decode(message.key(), message.value(), headers)
            if isinstance(change, Change) and change.version is not None:
                yield Name(change.entity, change.id), change.version

    def close(self) -> None:
        """Leaves."""
        self._consumer.close()
