"""One librdkafka producer, and everything that it says of the records it was given.

There are two kinds. A fast sender has librdkafka report only failures. That everything else was acknowledged is proven
by the producer being empty, for what fails leaves a report behind; while it is not, nothing tells which records are
pending. (Its statistics leave out the queues of the brokers' threads.) An exact sender has a report for each record,
served in Python, and knows the topics without an answer. That costs a tenth of the drain rate, and nothing that can be
measured in small units.

A record that may be on the wire must never be given up: an idempotent producer that goes on retrying appends each batch
once and in order, even when the bytes of the first try arrive late, because the broker knows producer id and sequence.
Purged, timed out, or sent again by another producer, the same late bytes are appended behind newer records. So:

- librdkafka's own time-out for messages is off. Its patience must not end before we know the outcome.
- Only a record that is not on the wire may be purged. A connection that the broker ended carries nothing any more. One
  that librdkafka gave up after a time-out may: its bytes wait in a frozen broker or in the network. From then on the
  queue also holds records that were sent before, nothing tells them apart, and nothing is purged until it is empty.
- A purge leaves a gap in the sequence, so librdkafka takes a new producer id. A record that was on the wire then, and
  whose connection times out later, is sent again under that new id: `late_until` says until when its first copy counts.
- A sender that is not empty is never dropped: see relay.daemon.unanswered.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from relay.core.event import SEPARATOR, Row
from relay.kafka_words import LastWords

Failure = tuple[KafkaError, str | None, bytes | None, bytes | None]
"""An error, and the topic, key and value of the row that it hit: librdkafka tells no more."""

STATISTICS_MS = 1000
FRESH_SECONDS = 1.5
"""How old the statistics may be that say that no request has timed out."""

LATE_SECONDS = 30.0
"""For so long after a lost connection its bytes may still reach a broker that does not know them as a repetition."""

STABLE_SECONDS = 1.0
"""For so long no record has been answered before those left are taken for the records of topics in trouble."""


class Sender:
    """A producer of one worker. Not thread-safe; whoever holds it may pass it on."""

    def __init__(
        self,
        properties: Mapping[str, Any],
        *,
        batch_bytes: int,
        is_exact: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self.is_exact = is_exact
        self.answered: Counter[str | None] = Counter()
        """Records with an outcome since `begin`, by topic. Only an exact sender counts those that were delivered."""
        self.words = LastWords(properties)
        self.batch_bytes = batch_bytes
        self.failures: list[Failure] = []
        self.is_dead = False
        """Whether librdkafka has given this producer up for good."""
        self._patience = float(properties.get("socket.timeout.ms", 60_000)) / 1000
        self._begun_at = clock()
        self._statistics = ""
        self._seen_at = 0.0
        self._timeouts = 0
        self._timeouts_before = 0
        self._timed_out_at: float | None = None
        self._purged_at: float | None = None
        self._producer = Producer(
            {
                **properties,
                "batch.size": batch_bytes,
                "message.timeout.ms": 0,
                "statistics.interval.ms": STATISTICS_MS,
                "stats_cb": self._on_statistics,
                **({} if is_exact else {"delivery.report.only.error": True}),
                "on_delivery": self._on_report,
                "error_cb": self._on_error,
                "log_level": 0,
            }
        )

    def begin(self) -> None:
        """Forgets the outcomes of the last records. To be called while nothing is pending."""
        self.failures.clear()
        self.answered.clear()
        self._begun_at = self._clock()
        self._timeouts_before = self._timeouts
        self._timed_out_at = None

    def _on_report(self, error: KafkaError | None, message: Message) -> None:
        """Must not raise: that makes librdkafka lose its place."""
        topic = message.topic()
        self.answered[topic] += 1
        if error is not None:
            self.failures.append((error, topic, message.key(), message.value()))

    def _on_error(self, error: KafkaError) -> None:
        """Having a callback also keeps librdkafka from writing to stderr."""
        self.words.note(error)
        self.is_dead = self.is_dead or error.fatal()

    def _on_statistics(self, text: str) -> None:
        """Keeps the text: reading it costs something, and is wanted seldom."""
        self._statistics, self._seen_at = text, self._clock()

    def _has_timed_out(self) -> bool:
        """Whether a request was given up since `begin`. Nothing else tells: the error callback hears of no time-out.

        Source: librdkafka, STATISTICS.md, `brokers.req_timeouts`.
        """
        if self._statistics:
            self._timeouts = sum(broker["req_timeouts"] for broker in json.loads(self._statistics)["brokers"].values())
            self._statistics = ""
        if self._timeouts != self._timeouts_before and self._timed_out_at is None:
            self._timed_out_at = self._seen_at
        return self._timed_out_at is not None

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
        self.answered[row[3]] += 1
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
        """Whether nothing in the queue may be on the wire as well: no request has timed out since the sender was empty.

        None can have before the time-out of a socket is over; from then on the latest statistics must say so.
        """
        if self._has_timed_out():
            return False
        now = self._clock()
        return now - self._begun_at < self._patience or now - self._seen_at < FRESH_SECONDS

    def purge_unsent(self) -> None:
        """Throws away what is not on the wire, and serves the reports that say so. What is on the wire stays."""
        self.serve()
        before = self.pending
        if before and self.may_purge:
            with contextlib.suppress(KafkaException):
                self._producer.purge(in_queue=True, in_flight=False, blocking=True)
            self.serve()
            if self.pending < before:
                self._purged_at = self._clock()

    @property
    def may_go_on(self) -> bool:
        """Whether more may be given to it. After a purge it waits for a new producer id, and what it is given then was
        seen neither to be sent nor to be thrown away."""
        return not self.is_dead and self._purged_at is None

    @property
    def late_until(self) -> float:
        """Until when a copy of a record may still be appended although its outcome is known. Zero: none can be."""
        if self._purged_at is None or self._timed_out_at is None or self._timed_out_at < self._purged_at:
            return 0.0
        return self._timed_out_at + LATE_SECONDS


class Pending:
    """The records of one unit that a sender has no outcome for, and the topics that they may belong to."""

    def __init__(self, sender: Sender, rows: Sequence[Row], clock: Callable[[], float] = time.monotonic) -> None:
        self.sender = sender
        self._rows = Counter(row[3] for row in rows)
        self._clock = clock
        self._last = sender.pending
        self._since = clock()

    @property
    def topics(self) -> set[str]:
        """All topics of the unit."""
        return set(self._rows)

    def left(self) -> set[str] | None:
        """Returns the topics with a record that has no outcome; None if that cannot be told."""
        if not self.sender.is_exact:
            return None if self.sender.pending else set()
        return {topic for topic, rows in self._rows.items() if self.sender.answered[topic] < rows}

    def is_partial(self) -> bool:
        """Whether some topics have all their answers, and others do not."""
        left = self.left()
        return left is not None and left != self.topics

    def only(self, sick: Collection[str]) -> bool:
        """Whether nothing but records of these topics is left.

        A fast sender can only guess: there are no more than the unit had for them, and for a while no other topic has
        answered. That is no proof, so a record of another topic counts as unknown after that, never as delivered.
        """
        if (left := self.left()) is not None:
            return left <= set(sick)
        now = self._clock()
        if self.sender.pending != self._last:
            self._last, self._since = self.sender.pending, now
        mine = sum(self._rows[topic] for topic in sick)
        return 0 < self._last <= mine and now - self._since >= STABLE_SECONDS
