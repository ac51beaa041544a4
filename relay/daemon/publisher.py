"""Publishing: all rows of a unit in flight at once, each one accounted for, by a producer that may die for good.

Each worker has a producer of its own. librdkafka reports only failures; that everything else was acknowledged is proven
by the producer being empty after the flush, for what fails leaves a report behind. A report per row, served in Python,
cost a tenth of the drain rate and proved the same.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from relay.core.event import SEPARATOR, Outcome, Row
from relay.core.waves import plan
from relay.daemon.brokers import Brokers
from relay.daemon.failpoints import failpoint
from relay.daemon.kafka_errors import outcome_of

CHUNK_ROWS = 64
"""So many rows are produced between two looks at the clock: what a relay that was frozen in between may still send."""

Failure = tuple[KafkaError, str | None, bytes | None, bytes | None]
"""An error, and the topic, key and value of the row that it hit: librdkafka tells no more."""


class Publisher:
    """One worker's producer. Not thread-safe."""

    def __init__(
        self,
        properties: Mapping[str, Any],
        brokers: Brokers,
        *,
        is_strict: Callable[[str], bool],
        publish_timeout_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._properties = {
            **properties,
            "message.timeout.ms": int(publish_timeout_seconds * 1000),
            "delivery.report.only.error": True,
            "on_delivery": self._on_failure,
            "error_cb": self._on_error,
            "log_level": 0,
        }
        self._brokers = brokers
        self._is_strict = is_strict
        self._timeout = publish_timeout_seconds
        self._clock = clock
        self._failures: list[Failure] = []
        self._dead = False
        self._batch_bytes = self._batch_bytes_max()
        self._producer = self._new_producer()
        self.rebuilds = 0

    def _batch_bytes_max(self) -> int:
        """A batch above a topic's limit is refused whole, with every innocent row in it."""
        own = int(self._properties.get("batch.size", 1_000_000))
        smallest = self._brokers.smallest_limit()
        return own if smallest is None else min(own, smallest)

    def _new_producer(self) -> Producer:
        self._batch_bytes = self._batch_bytes_max()
        return Producer({**self._properties, "batch.size": self._batch_bytes})

    def _on_failure(self, error: KafkaError | None, message: Message) -> None:
        """Must not raise: that makes librdkafka lose its place."""
        if error is not None:
            self._failures.append((error, message.topic(), message.key(), message.value()))

    def _on_error(self, error: KafkaError) -> None:
        """Lost brokers show in outcomes. Having a callback keeps librdkafka from writing to stderr."""
        if error.fatal():
            self._dead = True

    def publish(self, rows: Sequence[Row], fence_at: float) -> list[Outcome] | None:
        """Sends the rows of a unit in order, and waits until each is acknowledged or given up.

        Args:
            rows: in id order per lane, as plain tuples in the shape of Row.
            fence_at: monotonic time after which the lanes may belong to another relay.
        Returns:
            None if all were delivered, otherwise the outcome of each row.
        """
        topics = {row[3] for row in rows}
        self._brokers.learn(topics)
        if self._dead or len(self._producer) or self._batch_bytes_max() != self._batch_bytes:
            self.rebuild()
        self._failures.clear()
        if self._needs_waves(rows, topics):
            return self._publish_waves(rows, fence_at)
        return self._publish_together(rows, fence_at)

    def _needs_waves(self, rows: Sequence[Row], topics: set[str]) -> bool:
        if any(map(self._is_strict, topics)):
            return True
        # Only payloads that were fetched apart can be too large, unless a topic takes hardly anything.
        return self._batch_bytes < 16_384 or any(row[8] is not None for row in rows)

    def _publish_together(self, rows: Sequence[Row], fence_at: float) -> list[Outcome] | None:
        """Sends all rows; None if all were delivered."""
        sent = self._send(rows, fence_at)
        left = self._flush(fence_at)
        if sent == len(rows) and not left and not self._failures and not self._dead:
            return None
        return self._outcomes(rows, sent, unknown=bool(left) or self._dead)

    def _outcomes(self, rows: Sequence[Row], sent: int, *, unknown: bool) -> list[Outcome]:
        """Rows by the failures that were reported. Two rows alike in topic, key and value share a failure: repeating
        one that was delivered is allowed, forgetting one that was not is not."""
        failed = {(topic, key, value): outcome_of(error) for error, topic, key, value in self._failures}
        rest = Outcome.UNKNOWN if unknown else Outcome.DELIVERED
        outcomes = [failed.get((row[3], row[4], row[7]), rest) for row in rows[:sent]]
        return outcomes + [Outcome.HELD] * (len(rows) - sent)

    def _publish_waves(self, rows: Sequence[Row], fence_at: float) -> list[Outcome] | None:
        """Most rows together, then those of strict topics and those that may be too large one at a time per key."""
        waves = plan(rows, self._is_strict, self._brokers.may_refuse)
        outcomes = [Outcome.HELD] * len(rows)
        self._send_group(rows, waves.together, outcomes, fence_at)
        queues = [list(reversed(queue)) for queue in waves.queues]
        while queues and self._clock() < fence_at and not self._dead:
            heads = [queue.pop() for queue in queues]
            alone = [index for index in heads if self._brokers.may_refuse(rows[index])]
            apart = set(alone)
            self._send_group(rows, [index for index in heads if index not in apart], outcomes, fence_at)
            for index in alone:
                self._send_group(rows, [index], outcomes, fence_at)
            delivered = [outcomes[head] is Outcome.DELIVERED for head in heads]
            queues = [queue for queue, goes_on in zip(queues, delivered, strict=True) if queue and goes_on]
        return None if all(outcome is Outcome.DELIVERED for outcome in outcomes) else outcomes

    def _send_group(self, rows: Sequence[Row], indexes: list[int], outcomes: list[Outcome], fence_at: float) -> None:
        """Sends some rows and notes what became of them."""
        if not indexes or self._dead:
            return
        self._failures.clear()
        group = [rows[index] for index in indexes]
        results = self._publish_together(group, fence_at) or [Outcome.DELIVERED] * len(group)
        for index, outcome in zip(indexes, results, strict=True):
            outcomes[index] = outcome

    def _send(self, rows: Sequence[Row], fence_at: float) -> int:
        """Hands rows to librdkafka in order; returns how many it took or refused. Fewer than all: stop, time is up."""
        produce = self._producer.produce
        for start in range(0, len(rows), CHUNK_ROWS):
            if self._clock() > fence_at:
                self._purge()
                return start
            for row in rows[start : start + CHUNK_ROWS]:
                _, _, _, topic, key, headers, event_id, payload, _ = row
                parts = iter(headers.split(SEPARATOR))
                try:
                    produce(topic, payload, key, headers=[("event_id", event_id), *zip(parts, parts)])  # noqa: B905
                except BaseException as error:
                    self._not_taken(error, row, fence_at)
        failpoint("after_produce")
        return len(rows)

    def _not_taken(self, error: BaseException, row: Row, fence_at: float) -> None:
        """A row that librdkafka did not take. A full queue is no failure: it takes the row when there is room."""
        while isinstance(error, BufferError) and self._clock() < fence_at:
            self._guarded(self._producer.poll, 0.05)
            parts = iter(row[5].split(SEPARATOR))
            try:
                self._producer.produce(row[3], row[7], row[4], headers=[("event_id", row[6]), *zip(parts, parts)])  # noqa: B905
                return
            except BaseException as again:
                error = again
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise error
        cause = error.args[0] if isinstance(error, KafkaException) else error
        kafka_error = cause if isinstance(cause, KafkaError) else KafkaError(KafkaError._FAIL)
        self._dead = self._dead or kafka_error.fatal() or kafka_error.code() == KafkaError._FATAL
        self._failures.append((kafka_error, row[3], row[4], row[7]))

    def _flush(self, fence_at: float) -> int:
        """Waits until nothing is left; librdkafka gives each row up after its time-out, a little later so do we.

        Returns how many rows are still without a word.
        """
        seconds = max(0.0, min(fence_at - self._clock(), self._timeout + 2.0))
        self._guarded(self._producer.flush, seconds)
        left = len(self._producer)
        if left:
            self._purge()
        return left

    def _guarded(self, call: Callable[[float], int], seconds: float) -> None:
        """librdkafka's fatal errors arrive as KafkaException, as KafkaError (which is no Exception) or as SystemError,
        depending on what a callback did: all of them mean a dead producer."""
        try:
            call(seconds)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            self._dead = True

    def _purge(self) -> None:
        """Throws away what is queued, and serves the reports that say so. What is on the wire stays unknown."""
        with contextlib.suppress(KafkaException):
            self._producer.purge(in_queue=True, in_flight=True, blocking=True)
        self._guarded(self._producer.poll, 0)

    def is_idle(self) -> bool:
        """Whether everything that was ever sent has come to an end."""
        self._guarded(self._producer.poll, 0)
        return len(self._producer) == 0

    def rebuild(self) -> None:
        """Replaces the producer. What the old one still had on the wire is unknown."""
        self._purge()
        self._dead = False
        self._producer = self._new_producer()
        self.rebuilds += 1

    def close(self) -> None:
        """Ends the producer. Whatever it still holds has been given up by its unit."""
        self._purge()
