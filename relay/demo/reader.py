"""Reads the topic from its beginning, as a consumer anywhere would, and says when each record arrived."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from relay.demo.history import Record

#: The mock answers a fetch when this time is over, not when something has come.
FETCH_WAIT_MS: Final = 10


class Reader:
    """One thread with one consumer. `finish` ends the thread and reads what is left."""

    def __init__(
        self, client: Mapping[str, Any], topic: str, partitions: int, take: Callable[[Record, float], None]
    ) -> None:
        properties = {
            **client,
            "group.id": "relay-demo-reader",
            "enable.auto.commit": False,
            # A hole must be an error here, never a skip.
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": FETCH_WAIT_MS,
            "fetch.error.backoff.ms": 50,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 250,
            "log_level": 0,
            "error_cb": lambda _error: None,
        }
        self._consumer = Consumer(properties)
        self._partitions = [TopicPartition(topic, number) for number in range(partitions)]
        self._consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(partitions)])
        self._take = take
        self._next = dict.fromkeys(range(partitions), 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)
        self._thread.start()

    def finish(self, seconds: float) -> bool:
        """Reads up to the end of every partition; False if that took too long, and the reading is not complete."""
        self._end_thread()
        until = time.monotonic() + seconds
        try:
            ends = {each.partition: self._end(each, until) for each in self._partitions}
        except KafkaException:
            return False
        while any(self._next[partition] < end for partition, end in ends.items()):
            if time.monotonic() > until:
                return False
            self._poll()
        return True

    def close(self) -> None:
        """Ends the thread and the consumer. May be called twice."""
        self._end_thread()
        self._consumer.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._poll()

    def _end_thread(self) -> None:
        self._stop.set()
        self._thread.join(2)

    def _end(self, partition: TopicPartition, until: float) -> int:
        timeout = max(0.1, until - time.monotonic())
        high: int = self._consumer.get_watermark_offsets(partition, timeout=timeout)[1]
        return high

    def _poll(self) -> None:
        message = self._consumer.poll(0.1)
        if message is not None and message.error() is None:
            self._take(record_of(message), time.time())
            self._next[message.partition() or 0] = (message.offset() or 0) + 1


def record_of(message: Message) -> Record:
    """What the checker is shown of a message."""
    headers: Any = tuple(message.headers() or ())
    return Record(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        key=message.key(),
        value=message.value(),
        headers=headers,
    )
