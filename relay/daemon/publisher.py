"""Publishing: many rows in flight, every delivery report awaited, and a producer that may die for good.

All workers share one librdkafka producer. Delivery reports are served by whoever holds the turn: a second thread that
serves reports while the first runs Python would pay for the interpreter's lock once per report.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from relay.core.event import SEPARATOR, Outcome, Row
from relay.core.waves import plan
from relay.daemon.failpoints import failpoint
from relay.daemon.kafka_errors import outcome_of
from relay.daemon.topics import TopicLimits

CHUNK_ROWS = 64
"""So many rows are produced between two looks at the clock: what a relay that was frozen in between may still send."""

PROBE_SECONDS = 2.0


class Reports:
    """The delivery reports of one call of `publish`. A late report to an abandoned call reaches nobody else."""

    def __init__(self, count: int) -> None:
        self.pending = 0
        self.errors: dict[int, KafkaError] = {}
        self.delivered: bytearray = bytearray(count)
        self.last = threading.Event()
        self._report = [partial(self._take, index) for index in range(count)]

    def callback(self, index: int) -> Callable[[KafkaError | None, Any], None]:
        """What librdkafka calls for the row at `index`. Must not raise: that makes librdkafka lose its place."""
        return self._report[index]

    @property
    def callbacks(self) -> list[Callable[[KafkaError | None, Any], None]]:
        """All of them, in order."""
        return self._report

    def _take(self, index: int, error: KafkaError | None, _message: Any) -> None:
        if error is None:
            self.delivered[index] = 1
        else:
            self.errors[index] = error
        self.pending -= 1
        if not self.pending:
            self.last.set()


class FencedError(Exception):
    """This process stood still for so long that its lanes may belong to another relay: nothing more may be sent."""


class Publisher:
    """Sends rows to Kafka. `publish` may be called from several threads."""

    def __init__(
        self,
        properties: Mapping[str, Any],
        *,
        is_strict: Callable[[str], bool],
        publish_timeout_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._properties = {
            **properties,
            "message.timeout.ms": int(publish_timeout_seconds * 1000),
            "log_level": 0,
        }
        self._limits = TopicLimits(properties)
        self._is_strict = is_strict
        self._timeout = publish_timeout_seconds
        self._clock = clock
        self._turn = threading.Lock()
        self._waiting = 0
        self._producer = self._new_producer()
        self._dead = False
        self.rebuilds = 0

    def _new_producer(self) -> Producer:
        properties = dict(self._properties)
        # A batch above a topic's limit is refused whole, with every innocent row in it.
        smallest = self._limits.smallest()
        if smallest is not None and smallest < int(properties.get("batch.size", 1_000_000)):
            properties["batch.size"] = smallest
        # Lost connections are told by outcomes; the callback keeps librdkafka from writing to stderr.
        return Producer({**properties, "error_cb": self._on_error})

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._dead = True

    def publish(self, rows: Sequence[Row], fence_at: float) -> list[Outcome] | None:
        """Sends the rows of a unit in order, and waits until each is acknowledged or the time is up.

        Args:
            rows: in id order per lane, as plain tuples in the shape of Row.
            fence_at: monotonic time after which the lanes may belong to another relay.
        Returns:
            None if all were delivered, otherwise the outcome of each row.
        """
        topics = {row[3] for row in rows}
        self._learn_limits(topics)
        waves = plan(rows, self._is_strict, self._limits.is_risky) if self._needs_waves(rows, topics) else None
        reports = Reports(len(rows))
        outcomes: list[Outcome] | None = None
        try:
            self._send(rows, range(len(rows)) if waves is None else waves.together, reports, fence_at)
            self._await(reports, fence_at)
            if waves is not None:
                self._send_queues(rows, waves.queues, reports, fence_at)
        except FencedError:
            outcomes = self._outcomes(reports, len(rows))
        if outcomes is None and not reports.errors and all(reports.delivered):
            return None
        return outcomes or self._outcomes(reports, len(rows))

    def _outcomes(self, reports: Reports, count: int) -> list[Outcome]:
        """Rows without a report were never sent, unless something is still on its way."""
        silent = Outcome.UNKNOWN if reports.pending else Outcome.HELD
        return [
            Outcome.DELIVERED
            if reports.delivered[index]
            else (outcome_of(reports.errors[index]) if index in reports.errors else silent)
            for index in range(count)
        ]

    def _needs_waves(self, rows: Sequence[Row], topics: set[str]) -> bool:
        if any(map(self._is_strict, topics)):
            return True
        smallest = self._limits.smallest()
        if smallest is None:
            return False
        # Only payloads that were fetched apart can be too large, unless a topic takes hardly anything.
        return smallest < 16_384 or any([row[8] is not None for row in rows])

    def _learn_limits(self, topics: set[str]) -> None:
        """Asks for the size limits of topics that are new here; a smaller one than ever needs another producer."""
        before = self._limits.smallest()
        if self._limits.learn(topics) and self._limits.smallest() != before:
            self.rebuild()

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        self._waiting += 1
        self._turn.acquire()
        self._waiting -= 1
        try:
            yield
        finally:
            self._turn.release()

    def _send(self, rows: Sequence[Row], indexes: Sequence[int], reports: Reports, fence_at: float) -> None:
        """Hands rows to librdkafka, in order, looking at the clock and at reports after each chunk."""
        if self._dead:
            self.rebuild()
        callbacks = reports.callbacks
        with self._in_turn():
            producer = self._producer
            for start in range(0, len(indexes), CHUNK_ROWS):
                if self._clock() > fence_at:
                    self._purge(producer)
                    raise FencedError
                for index in indexes[start : start + CHUNK_ROWS]:
                    _, _, _, topic, key, headers, event_id, payload, _ = rows[index]
                    parts = iter(headers.split(SEPARATOR))
                    reports.pending += 1
                    try:
                        producer.produce(
                            topic,
                            payload,
                            key,
                            on_delivery=callbacks[index],
                            headers=[("event_id", event_id), *zip(parts, parts, strict=False)],
                        )
                    except BaseException as error:
                        self._produce_failed(producer, error, rows[index], index, reports, fence_at)
                self._serve(producer, 0)
        failpoint("after_produce")

    def _produce_failed(
        self,
        producer: Producer,
        error: BaseException,
        row: Row,
        index: int,
        reports: Reports,
        fence_at: float,
    ) -> None:
        """Settles a row that librdkafka did not take. A full queue is no failure: it takes the row when there is room."""
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise error
        while isinstance(error, BufferError):
            self._serve(producer, 0.01)
            if self._clock() > fence_at:
                reports.pending -= 1
                self._purge(producer)
                raise FencedError
            try:
                parts = iter(row[5].split(SEPARATOR))
                headers = [("event_id", row[6]), *zip(parts, parts, strict=False)]
                producer.produce(row[3], row[7], row[4], on_delivery=reports.callback(index), headers=headers)
                return
            except BaseException as again:
                error = again
        reports.pending -= 1
        kafka_error = error.args[0] if isinstance(error, KafkaException) else error
        if not isinstance(kafka_error, KafkaError):
            kafka_error = KafkaError(KafkaError._FAIL)
        if kafka_error.fatal() or kafka_error.code() == KafkaError._FATAL:
            self._dead = True
        reports.errors[index] = kafka_error

    def _serve(self, producer: Producer, seconds: float) -> None:
        """Serves delivery reports. librdkafka's fatal errors arrive as KafkaException, as KafkaError (which is no
        Exception) or as SystemError, depending on what the callback did: all of them mean a dead producer."""
        try:
            producer.poll(seconds)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            self._dead = True

    def _await(self, reports: Reports, fence_at: float) -> None:
        """Waits until all sent rows are reported. librdkafka gives each up after its time-out; a little later so do we."""
        until = min(fence_at, self._clock() + self._timeout + 2.0)
        while reports.pending and not self._dead:
            if self._clock() > until:
                with self._in_turn():
                    self._purge(self._producer)
                if self._clock() > fence_at:
                    raise FencedError
                return
            if self._waiting:
                # Another worker wants to produce. It serves our reports as it goes.
                reports.last.wait(0.002)
                continue
            with self._in_turn():
                self._serve(self._producer, 0.002 if reports.pending else 0)

    def _send_queues(self, rows: Sequence[Row], queues: list[list[int]], reports: Reports, fence_at: float) -> None:
        """One row of each queue at a time. A row that may be too large travels alone, so that it can fail alone."""
        queues = [list(reversed(queue)) for queue in queues]
        while queues and not self._dead:
            heads = [queue.pop() for queue in queues]
            alone = [index for index in heads if self._limits.is_risky(rows[index])]
            apart = set(alone)
            for group in [[index for index in heads if index not in apart], *[[index] for index in alone]]:
                if group:
                    self._send(rows, group, reports, fence_at)
                    self._await(reports, fence_at)
            queues = [queue for queue, head in zip(queues, heads, strict=True) if queue and reports.delivered[head]]

    def _purge(self, producer: Producer) -> None:
        """Throws away what is queued and serves the reports that say so. What is on the wire stays unknown."""
        with contextlib.suppress(KafkaException):
            producer.purge(in_queue=True, in_flight=True, blocking=True)
        self._serve(producer, 0)

    def rebuild(self) -> None:
        """Replaces the producer. Rows that were on their way with the old one are unknown to their callers."""
        with self._in_turn():
            old, self._dead = self._producer, False
            self._purge(old)
            self._producer = self._new_producer()
            self.rebuilds += 1

    def is_available(self) -> bool:
        """Whether Kafka answers, and what we sent before has come to an end."""
        if self._dead:
            self.rebuild()
        with self._in_turn():
            self._serve(self._producer, 0)
            try:
                self._producer.list_topics(timeout=PROBE_SECONDS)
            except KafkaException:
                return False
            return len(self._producer) == 0

    def can_write(self, topic: str) -> bool:
        """Whether the topic exists, as far as metadata tells."""
        try:
            found = self._producer.list_topics(topic, timeout=PROBE_SECONDS).topics.get(topic)
        except KafkaException:
            return False
        return found is not None and found.error is None and bool(found.partitions)

    def forget(self, topic: str) -> None:
        """Asks for the topic's limits anew: it came back, perhaps as another."""
        self._limits.forget(topic)

    def close(self) -> None:
        """Ends the producer. Whatever it still holds has been given up by its unit."""
        with self._in_turn():
            self._purge(self._producer)
