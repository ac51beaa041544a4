"""One librdkafka producer, and everything that it says of the records it was given.

librdkafka reports only failures here. That everything else was acknowledged is proven by the producer being empty, for
what fails leaves a report behind. A report per row, served in Python, cost a tenth of the drain rate and proved the
same. While a producer is not empty, its statistics tell for which topics a record is still on its way.

A record that may be on the wire must never be given up: an idempotent producer that goes on retrying appends each batch
once and in order, even when the bytes of the first try arrive late, because the broker knows producer id and sequence.
Purged, timed out, or sent again by another producer, the same late bytes are appended behind newer records. So:

- librdkafka's own time-out for messages is off. Its patience must not end before we know the outcome.
- Only a record that was never sent may be purged. After a connection was lost, the queue also holds records that were
  sent before, and nothing tells them apart: then nothing is purged.
- A purge leaves a gap in the sequence, so librdkafka takes a new producer id. A record that was on the wire then, and
  whose connection is lost later, is sent again under that new id: `late_until` says until when its first copy may come.
- A sender that is not empty is never dropped: see relay.daemon.unanswered.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from relay.core.event import SEPARATOR, Row
from relay.kafka_words import LastWords

Failure = tuple[KafkaError, str | None, bytes | None, bytes | None]
"""An error, and the topic, key and value of the row that it hit: librdkafka tells no more."""

STATISTICS_MS = 1000
SUPPRESSED_SECONDS = 35.0
"""librdkafka repeats an identical connection error only every 30 seconds: one that was noted counts for that long."""

LATE_SECONDS = 30.0
"""For so long after a lost connection its bytes may still reach a broker that does not know them as a repetition."""

ENDED = {KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN, KafkaError.NETWORK_EXCEPTION}
"""After one of these a connection may have ended with records on it."""


class Sender:
    """A producer of one worker. Not thread-safe; whoever holds it may pass it on."""

    def __init__(
        self, properties: Mapping[str, Any], *, batch_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self.words = LastWords(properties)
        self.batch_bytes = batch_bytes
        self.failures: list[Failure] = []
        self.is_dead = False
        """Whether librdkafka has given this producer up for good."""
        self._trouble_at: float | None = None
        self._purged_at: float | None = None
        self._statistics = ""
        self._producer = Producer(
            {
                **properties,
                "batch.size": batch_bytes,
                "message.timeout.ms": 0,
                "statistics.interval.ms": STATISTICS_MS,
                "delivery.report.only.error": True,
                "on_delivery": self._on_failure,
                "error_cb": self._on_error,
                "stats_cb": self._on_statistics,
                "log_level": 0,
            }
        )

    def _on_failure(self, error: KafkaError | None, message: Message) -> None:
        """Must not raise: that makes librdkafka lose its place."""
        if error is not None:
            self.failures.append((error, message.topic(), message.key(), message.value()))

    def _on_error(self, error: KafkaError) -> None:
        """Having a callback also keeps librdkafka from writing to stderr."""
        self.words.note(error)
        self.is_dead = self.is_dead or error.fatal()
        if error.code() in ENDED:
            self._trouble_at = self._clock()

    def _on_statistics(self, text: str) -> None:
        """Keeps the text: reading it costs something, and is wanted seldom."""
        self._statistics = text

    @property
    def pending(self) -> int:
        """Records without an outcome."""
        return len(self._producer)

    def produce(self, rows: Sequence[Row], timestamp_ms: int) -> int:
        """Hands rows to librdkafka in order. What it refuses becomes a failure; anything it raises is translated.

        Returns:
            How many rows were handed over. Fewer than all: its queue stays full, and the rest was not sent.
        """
        produce = self._producer.produce
        for taken, row in enumerate(rows):
            _, _, _, topic, key, headers, event_id, payload, _ = row
            parts = iter(headers.split(SEPARATOR))
            try:
                produce(
                    topic,
                    payload,
                    key,
                    timestamp=timestamp_ms,
                    headers=[("event_id", event_id), *zip(parts, parts)],  # noqa: B905
                )
            except BaseException as error:
                if not self._not_taken(error, row, timestamp_ms):
                    return taken
        return len(rows)

    def _not_taken(self, error: BaseException, row: Row, timestamp_ms: int) -> bool:
        """Handles a row that librdkafka rejected; False if its queue stays full.

        A full queue is not a failure: it takes the row once there is room. The wait has an end, so that a frozen broker
        cannot hold the caller for ever.
        """
        until = self._clock() + 1.0
        while isinstance(error, BufferError) and self._clock() < until:
            self.serve(0.05)
            parts = iter(row[5].split(SEPARATOR))
            headers: list[Any] = [("event_id", row[6]), *zip(parts, parts)]  # noqa: B905
            try:
                self._producer.produce(row[3], row[7], row[4], timestamp=timestamp_ms, headers=headers)
                return True
            except BaseException as again:
                error = again
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise error
        if isinstance(error, BufferError):
            return False
        cause = error.args[0] if isinstance(error, KafkaException) else error
        kafka_error = cause if isinstance(cause, KafkaError) else KafkaError(KafkaError._FAIL)
        self.is_dead = self.is_dead or kafka_error.fatal() or kafka_error.code() == KafkaError._FATAL
        self.failures.append((kafka_error, row[3], row[4], row[7]))
        return True

    def flush(self, seconds: float) -> None:
        """Waits until nothing is pending, or the time is over."""
        self._guarded(self._producer.flush, seconds)

    def serve(self, seconds: float = 0.0) -> None:
        """Serves reports and callbacks that are waiting."""
        self._guarded(self._producer.poll, seconds)

    def _guarded(self, call: Callable[[float], int], seconds: float) -> None:
        """Runs a call of the producer. A fatal error arrives as KafkaException, as KafkaError (which is no Exception)
        or as SystemError, depending on what a callback did: all of them mean a dead producer."""
        try:
            call(seconds)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            self.is_dead = True

    @property
    def may_purge(self) -> bool:
        """Whether everything in the queue was never sent: no connection has ended that could have carried it."""
        return self._trouble_at is None or self._clock() - self._trouble_at > SUPPRESSED_SECONDS

    def purge_unsent(self) -> None:
        """Throws away what was never sent, and serves the reports that say so. What is on the wire stays."""
        self.serve()
        if self.may_purge:
            with contextlib.suppress(KafkaException):
                self._producer.purge(in_queue=True, in_flight=False, blocking=True)
            self._purged_at = self._clock()
            self.serve()

    @property
    def late_until(self) -> float:
        """Until when a copy of a record may still be appended although its outcome is known. Zero: none can be."""
        if self._purged_at is None or self._trouble_at is None or self._trouble_at < self._purged_at:
            return 0.0
        return self._trouble_at + LATE_SECONDS

    def forget_statistics(self) -> None:
        """The next statistics that are seen are newer than this call."""
        self.serve()
        self._statistics = ""

    def pending_topics(self) -> set[str] | None:
        """Returns the topics with a pending record by the statistics since `forget_statistics`; None if none came.

        Source: librdkafka, STATISTICS.md, `topics.partitions`.
        """
        if not self._statistics:
            return None
        topics = json.loads(self._statistics)["topics"]
        return {
            name
            for name, topic in topics.items()
            if any(
                partition["msgq_cnt"] or partition["xmit_msgq_cnt"] or partition["msgs_inflight"]
                for partition in topic["partitions"].values()
            )
        }
