"""Looks for an event, or a key, at the end of a topic: bounded, and honest about how far it looked."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from relay.core.partitioner import partition_of
from relay.daemon.properties import make_client
from relay.kafka_words import LastWords, words_of

ASK_SECONDS = 2.0
FETCHED = 500
KEPT_MAX = 5


@dataclass(frozen=True, slots=True)
class Record:
    """An acknowledged event, at its place. Never its content."""

    topic: str
    partition: int
    offset: int
    event_id: str | None
    age_seconds: float | None


@dataclass(slots=True)
class Search:
    """How one topic was searched, and what was found, in the order of the log."""

    topic: str
    partitions: list[int] = field(default_factory=list)
    records: int = 0
    complete: bool = False
    """Whether all that is there of these partitions was looked at."""
    problem: str = ""
    """Empty, `missing`, `unreachable`, or `unreadable` where Kafka answers and refuses."""
    reason: str = ""
    """Kafka's words where there is a problem."""
    found: list[Record] = field(default_factory=list)


def search(
    properties: Mapping[str, Any],
    topic: str,
    *,
    event: str | None,
    key: bytes | None,
    records_max: int,
    seconds: float,
) -> Search:
    """Reads the newest records of a topic; of a key only its partition, if the partitioner is one that we know.

    Args:
        records_max: of all partitions together.
        seconds: after so long it ends with what it has seen.

    Raises:
        ConfigError: RLY-206, librdkafka refuses a property.
    """
    until = time.monotonic() + seconds
    done, last = Search(topic), LastWords(properties)
    consumer = _reader(properties, last)
    try:
        partitions = _partitions(consumer, topic, until)
        last.forget()
        if key is not None and str(properties.get("partitioner", "")).startswith("murmur2"):
            partitions = [partition_of(key, len(partitions))]
        done.partitions = partitions
        _read(consumer, done, _Wanted(event, key), max(1, records_max // len(partitions)), until)
    except _RefusedError as refused:
        done.problem, done.reason = refused.problem, words_of(refused.error, properties)
    except KafkaException as error:
        # What went wrong with a connection is told to the callback only, and that is called from here.
        consumer.poll(0)
        done.problem, done.reason = "unreachable", last.after(error)
    finally:
        consumer.close()
    done.found.sort(key=lambda record: (record.partition, record.offset))
    return done


class _RefusedError(Exception):
    """Kafka has answered that it does not show this topic."""

    def __init__(self, error: KafkaError) -> None:
        super().__init__(error.name())
        self.error = error
        is_missing = error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)
        self.problem = "missing" if is_missing else "unreadable"


def _reader(properties: Mapping[str, Any], last: LastWords) -> Consumer:
    """Assigned and never subscribed: the group is only a name that librdkafka asks for."""
    return make_client(
        Consumer,
        properties,
        group_id="relay-explain",
        enable_auto_commit=False,
        enable_auto_offset_store=False,
        isolation_level="read_uncommitted",
        enable_partition_eof=False,
        error_cb=last.note,
    )


def _partitions(consumer: Consumer, topic: str, until: float) -> list[int]:
    """At least one, or an error. A consumer that asks creates no topic."""
    found = consumer.list_topics(topic, timeout=_left(until)).topics.get(topic)
    error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART) if found is None else found.error
    if found is None or error is not None:
        raise _RefusedError(error)
    if not found.partitions:
        raise _RefusedError(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
    return sorted(found.partitions)


def _left(until: float) -> float:
    return max(0.1, min(ASK_SECONDS, until - time.monotonic()))


@dataclass(frozen=True, slots=True)
class _Wanted:
    event: str | None
    key: bytes | None

    def matches(self, message: Message, event_id: str | None) -> bool:
        if self.event is not None and event_id != self.event:
            return False
        return self.key is None or message.key() == self.key


def _read(consumer: Consumer, done: Search, wanted: _Wanted, per_partition: int, until: float) -> None:
    ends: dict[int, int] = {}
    starts: list[TopicPartition] = []
    whole = True
    for partition in done.partitions:
        low, high = consumer.get_watermark_offsets(TopicPartition(done.topic, partition), timeout=_left(until))
        if high > low:
            whole = whole and high - low <= per_partition
            ends[partition] = high
            starts.append(TopicPartition(done.topic, partition, max(low, high - per_partition)))
    consumer.assign(starts)
    while ends and time.monotonic() < until:
        for message in consumer.consume(FETCHED, 0.2):
            _take(message, done, wanted, ends)
        _drop_finished(consumer, done.topic, ends)
    done.complete = whole and not ends


def _take(message: Message, done: Search, wanted: _Wanted, ends: dict[int, int]) -> None:
    partition, offset = message.partition(), message.offset()
    if (error := message.error()) is not None:
        # Codes of librdkafka's own are below zero: it goes on by itself. What a broker has answered stays as it is. The
        # group is not needed, and that this user may have none is said without a topic.
        if error.code() > 0 and message.topic() == done.topic:
            raise _RefusedError(error)
        return
    if partition is None or offset is None or offset >= ends.get(partition, 0):
        return
    done.records += 1
    event_id = _event_id(message)
    if wanted.matches(message, event_id):
        at = message.timestamp()[1]
        age = time.time() - at / 1000 if at > 0 else None
        done.found = [*done.found, Record(done.topic, partition, offset, event_id, age)][-KEPT_MAX:]


def _drop_finished(consumer: Consumer, topic: str, ends: dict[int, int]) -> None:
    """By position, not by the last record: the last offset may hold a transaction's marker, which is not delivered."""
    for position in consumer.position([TopicPartition(topic, partition) for partition in ends]):
        if position.offset >= ends[position.partition]:
            del ends[position.partition]


def _event_id(message: Message) -> str | None:
    headers: Any = message.headers() or ()
    for name, value in headers:
        if name == "event_id" and isinstance(value, bytes):
            return value.decode("ascii", errors="replace")
    return None
