"""Consumers under test: records like the relay's, and waiting for what they do."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable

from confluent_kafka import OFFSET_BEGINNING, Message, Producer, TopicPartition
from confluent_kafka import Consumer as Client

from relay.consumer import Consumer

WAIT_SECONDS = 60.0
"""Until something happens that must happen; only a failing test waits so long."""


def fresh_group() -> str:
    """A group that nobody has used."""
    return f"group-{uuid.uuid4().hex[:12]}"


def headers_of(entity: str, id_: str, version: int | None, action: str = "updated") -> list[tuple[str, bytes]]:
    """As the relay sends them."""
    fields = {"event_id": str(uuid.uuid4()), "entity": entity, "id": id_, "action": action}
    if version is not None:
        fields["version"] = str(version)
    return [(name, value.encode()) for name, value in fields.items()]


class Writer:
    """Writes records to a topic, as the relay does, or anything else."""

    def __init__(self, bootstrap: str, topic: str, bytes_max: int = 1_000_000) -> None:
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 2, "message.max.bytes": bytes_max})
        self._topic = topic

    def touch(self, entity: str, id_: str, version: int | None, action: str = "updated", **where: int) -> None:
        """An entity change."""
        value = f'{{"entity":"{entity}","id":"{id_}","action":"{action}","version":{version}}}'
        self.raw(f"{entity}:{id_}".encode(), value.encode(), headers_of(entity, id_, version, action), **where)

    def touch_all(self, changes: Iterable[tuple[str, str, int]]) -> None:
        """Many, then waits until all are there."""
        for entity, id_, version in changes:
            self.touch(entity, id_, version)
        self.flush()

    def raw(self, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]], **where: int) -> None:
        """A record of these bytes."""
        while True:
            try:
                self._producer.produce(self._topic, value, key, headers=headers, **where)
                return
            except BufferError:
                self._producer.poll(0.05)

    def flush(self) -> None:
        """Returns when all that was written is acknowledged."""
        assert self._producer.flush(WAIT_SECONDS) == 0


def until(what: str, holds: Callable[[], object], timeout_seconds: float = WAIT_SECONDS) -> None:
    """Waits until `holds` is true."""
    deadline = time.monotonic() + timeout_seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_seconds:g} s until {what}"
        time.sleep(0.02)


def owns(consumer: Consumer, partitions: int = 8) -> bool:
    """Whether it owns so many partitions, and may go on doing so."""
    consumer.wait(0)
    return len(consumer.health().lag) == partitions


def dead_letters(bootstrap: str, topic: str, count: int) -> list[Message]:
    """The first so many events that were set aside."""
    client = Client({"bootstrap.servers": bootstrap, "group.id": fresh_group(), "log_level": 0})
    try:
        client.assign([TopicPartition(f"{topic}.dead", 0, OFFSET_BEGINNING)])
        found: list[Message] = []
        deadline = time.monotonic() + WAIT_SECONDS
        while len(found) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} events were set aside"
            record = client.poll(0.2)
            if record is not None and record.error() is None:
                found.append(record)
        return found
    finally:
        client.close()


def is_settled(consumer: Consumer) -> bool:
    """Whether it owns partitions, and everything in them is applied."""
    consumer.wait(0)
    lag = consumer.health().lag
    return bool(lag) and all(events == 0 for events in lag.values())
