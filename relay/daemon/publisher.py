"""Publishing: all rows of a unit in flight at once, each one accounted for.

A publisher sends with one `Sender` at a time. It waits for every record, for as long as its worker may wait; then it
settles for what is known. Records that were never sent are purged. If others may still be on the wire, the sender goes
to `Unanswered`, which keeps it until their outcome is known, and the publisher goes on with a new one.

How long it waits:

    nothing answers                     daemon.publish_timeout_seconds
    a topic cannot take a record now    until the other topics are done; the brokers are asked after SLOW_SECONDS
    only some topics answer             PARTIAL_SECONDS
    the session or the fence is lost    not at all

Small units go by an exact sender, large ones by a fast one, and for a while after a trouble all by an exact one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from relay.core.event import Outcome, Row
from relay.core.waves import plan
from relay.daemon.brokers import Brokers, Inquiry
from relay.daemon.failpoints import failpoint
from relay.daemon.kafka_errors import outcome_of
from relay.daemon.sender import Pending, Sender
from relay.daemon.tenure import Tenure
from relay.daemon.unanswered import Unanswered
from relay.kafka_words import words_of

CHUNK_ROWS = 64
"""So many rows are produced between two looks at the clocks: what a relay that was frozen in between may still send."""

WATCH_SECONDS = 0.05
"""How long a session may have ended before the publisher that waits for Kafka sees it."""

SLOW_SECONDS = 0.2
"""After this long without the last answer, the publisher asks the brokers what is wrong."""

PARTIAL_SECONDS = 3.0
"""How long topics without an answer may keep those waiting that have one."""

EXACT_ROWS = 1000
"""Units of fewer rows go by an exact sender."""

EXACT_SECONDS = 60.0
"""After a trouble all units go by an exact sender for so long."""

INQUIRE_SECONDS = 1.0
"""The pause between two such questions."""

SETTLE_SECONDS = 0.5
"""How long records on the wire may take to be answered after the rest was purged."""


@dataclass(slots=True)
class Report:
    """What became of the rows of a unit."""

    outcomes: list[Outcome] | None = None
    """None if Kafka acknowledged every one."""
    troubles: dict[str, str] = field(default_factory=dict)
    """Topics that cannot be written now, with the reason in Kafka's words."""
    unanswered: set[str] = field(default_factory=set)
    """Topics with records that may still be on the wire. They are held until their outcome is known."""
    reasons: dict[tuple[str, bytes | None, bytes | None], str] = field(default_factory=dict)
    """Kafka's words about rows that it refused, by topic, key and value."""
    gave_up: str = ""
    """Why records were not waited for any longer, empty if all have an answer."""
    cause: str = ""
    """Kafka's words about a row whose outcome is unknown, empty if it only did not answer."""
    words: str = ""
    """The last error of the connection to Kafka, empty if there was none."""

    def reason(self, row: Row) -> str:
        """Returns Kafka's words about a refused row."""
        return self.reasons.get((row[3], row[4], row[7]), "")


class Publisher:
    """Sends the units of one worker. Not thread-safe."""

    def __init__(
        self,
        properties: Mapping[str, Any],
        brokers: Brokers,
        unanswered: Unanswered,
        *,
        is_strict: Callable[[str], bool],
        publish_timeout_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._properties = properties
        self._brokers = brokers
        self._unanswered = unanswered
        self._is_strict = is_strict
        self._timeout = publish_timeout_seconds
        self._clock = clock
        self._exact_until = 0.0
        self._senders: dict[bool, Sender] = {}
        self._sender = self._choose(0)
        self._report = Report()
        self.rebuilds = 0
        """Senders replaced, because librdkafka gave them up, or because they have to be kept."""
        self.rebuilt_because = ""

    def _choose(self, rows: int) -> Sender:
        """Returns the sender for a unit of so many rows: the exact or the fast one, made new where it cannot go on."""
        is_exact = rows < EXACT_ROWS or self._clock() < self._exact_until
        sender = self._senders.get(is_exact)
        batch_bytes = self._batch_bytes_max()
        if sender is not None and sender.is_dead:
            self._count("it failed for good")
        if sender is None or sender.is_dead or sender.batch_bytes != batch_bytes:
            sender = self._unanswered.take_spare(batch_bytes, is_exact=is_exact) or Sender(
                self._properties, batch_bytes=batch_bytes, is_exact=is_exact, clock=self._clock
            )
            self._senders[is_exact] = sender
        return sender

    def _batch_bytes_max(self) -> int:
        """A batch above a topic's limit is refused whole, with every innocent row in it."""
        own = int(self._properties.get("batch.size", 1_000_000))
        smallest = self._brokers.smallest_limit()
        return own if smallest is None else min(own, smallest)

    def publish(self, rows: Sequence[Row], tenure: Tenure) -> Report:
        """Sends the rows of a unit in order, and waits until each is acknowledged or can be waited for no longer.

        Args:
            rows: in id order per lane, as plain tuples in the shape of Row.
            tenure: the unit's hold on its lanes. Nothing is sent without asking it.
        Raises:
            psycopg.Error: the session is lost. Nothing was sent.
        """
        self._report = Report()
        topics = {row[3] for row in rows}
        self._report.troubles.update(self._brokers.learn(topics))
        self._sender = self._choose(len(rows))
        tenure.confirm()
        if self._report.troubles:
            return self._publish_others(rows, tenure)
        return self._finished(self._publish_all(rows, topics, tenure))

    def _publish_others(self, rows: Sequence[Row], tenure: Tenure) -> Report:
        """Sends what goes to topics that can be written."""
        can = [index for index, row in enumerate(rows) if row[3] not in self._report.troubles]
        outcomes = [Outcome.TOPIC] * len(rows)
        if can:
            others = [rows[index] for index in can]
            results = self._publish_all(others, {row[3] for row in others}, tenure)
            for index, outcome in zip(can, results or [Outcome.DELIVERED] * len(can), strict=True):
                outcomes[index] = outcome
        return self._finished(outcomes)

    def _finished(self, outcomes: list[Outcome] | None) -> Report:
        self._report.outcomes = outcomes
        self._report.words = self._report.words or self._sender.words.words
        return self._report

    def _publish_all(self, rows: Sequence[Row], topics: set[str], tenure: Tenure) -> list[Outcome] | None:
        if self._needs_waves(rows, topics):
            return self._publish_waves(rows, tenure)
        return self._publish_together(rows, tenure)

    def _needs_waves(self, rows: Sequence[Row], topics: set[str]) -> bool:
        if any(map(self._is_strict, topics)) or any(map(self._brokers.wants_keys, topics)):
            return True
        # Only rows that were fetched apart can be too large, unless a topic takes hardly anything.
        return self._sender.batch_bytes < 16_384 or any(row[8] is not None for row in rows)

    def _publish_together(self, rows: Sequence[Row], tenure: Tenure) -> list[Outcome] | None:
        """Sends all rows; None if all were delivered."""
        sender = self._sender
        sender.begin()
        sent = self._send(rows, tenure)
        pending = Pending(sender, rows[:sent], self._clock)
        self._await(pending, tenure)
        if sent == len(rows) and not sender.pending and not sender.failures and not sender.is_dead:
            return None
        return self._outcomes(pending, rows, sent)

    def _outcomes(self, pending: Pending, rows: Sequence[Row], sent: int) -> list[Outcome]:
        """Rows by the failures that were reported. Two rows alike in topic, key and value share a failure: repeating
        one that was delivered is allowed, forgetting one that was not is not."""
        failed: dict[tuple[str | None, bytes | None, bytes | None], Outcome] = {}
        for error, topic, key, value in pending.sender.failures:
            outcome = failed[topic, key, value] = outcome_of(error)
            if topic is not None and outcome is Outcome.REFUSED:
                self._report.reasons[topic, key, value] = words_of(error, self._properties)
            elif topic is not None and outcome is Outcome.TOPIC:
                self._report.troubles.setdefault(topic, words_of(error, self._properties))
            elif outcome is Outcome.UNKNOWN:
                self._report.cause = words_of(error, self._properties)
        left = pending.left()
        unknown = pending.topics if left is None or pending.sender.is_dead else left
        rest = {topic: Outcome.UNKNOWN if topic in unknown else Outcome.DELIVERED for topic in pending.topics}
        outcomes = [failed.get((row[3], row[4], row[7])) or rest[row[3]] for row in rows[:sent]]
        return outcomes + [Outcome.HELD] * (len(rows) - sent)

    def _publish_waves(self, rows: Sequence[Row], tenure: Tenure) -> list[Outcome] | None:
        """Most rows together, then those of strict topics and those that may fail alone one at a time per key."""
        waves = plan(rows, self._is_strict, self._brokers.may_refuse)
        outcomes = [Outcome.HELD] * len(rows)
        self._send_group(rows, waves.together, outcomes, tenure)
        stopped = {(rows[i][3], rows[i][4]) for i in waves.together if outcomes[i] is not Outcome.DELIVERED}
        queues = [
            list(reversed(queue))
            for queue in waves.queues
            if rows[queue[0]][4] is None or (rows[queue[0]][3], rows[queue[0]][4]) not in stopped
        ]
        while queues and self._goes_on(tenure):
            heads = [queue.pop() for queue in queues]
            alone = [index for index in heads if self._brokers.may_refuse(rows[index])]
            apart = set(alone)
            self._send_group(rows, [index for index in heads if index not in apart], outcomes, tenure)
            for index in alone:
                self._send_group(rows, [index], outcomes, tenure)
            delivered = [outcomes[head] is Outcome.DELIVERED for head in heads]
            queues = [queue for queue, goes_on in zip(queues, delivered, strict=True) if queue and goes_on]
        return None if all(outcome is Outcome.DELIVERED for outcome in outcomes) else outcomes

    def _goes_on(self, tenure: Tenure) -> bool:
        """Whether a further wave may be sent: the lanes are ours, and the last wave was answered."""
        return not (self._sender.is_dead or self._report.unanswered or tenure.is_over) and tenure.is_alive()

    def _send_group(self, rows: Sequence[Row], indexes: list[int], outcomes: list[Outcome], tenure: Tenure) -> None:
        """Sends some rows and notes what became of them."""
        if not indexes or not self._goes_on(tenure):
            return
        group = [rows[index] for index in indexes]
        results = self._publish_together(group, tenure)
        for index, outcome in zip(indexes, results or [Outcome.DELIVERED] * len(group), strict=True):
            outcomes[index] = outcome

    def _send(self, rows: Sequence[Row], tenure: Tenure) -> int:
        """Hands rows to librdkafka in order; returns how many. Fewer than all: stop, the lanes may not be ours."""
        for start in range(0, len(rows), CHUNK_ROWS):
            if not tenure.holds():
                return start
            chunk = rows[start : start + CHUNK_ROWS]
            taken = self._sender.produce(chunk, tenure.timestamp_ms)
            if taken < len(chunk):
                return start + taken
        failpoint("after_produce")
        return len(rows)

    def _await(self, pending: Pending, tenure: Tenure) -> None:
        """Waits until nothing is pending, or until it is no use."""
        sender, started = pending.sender, self._clock()
        inquire_at = started + SLOW_SECONDS
        inquiry: Inquiry | None = None
        sick: dict[str, str] = {}
        why = ""
        while sender.pending and not why:
            sender.flush(WATCH_SECONDS)
            now = self._clock()
            if inquiry is None and now >= inquire_at:
                inquiry, inquire_at = self._brokers.inquire(pending.topics), now + INQUIRE_SECONDS
            if inquiry is not None and (answer := inquiry.answer()) is not None:
                sick, inquiry = answer, None
                self._report.troubles.update(sick)
            if sender.is_dead:
                why = "it failed for good"
            elif not tenure.is_alive() or tenure.is_over:
                why = "the lanes were lost while records were on the wire"
            elif now - started > self._timeout:
                why = "records were not answered in time"
            elif sick and (sender.may_purge or pending.only(sick)):
                why = "a topic cannot be written"
            elif now - started > PARTIAL_SECONDS and pending.is_partial():
                why = "a topic does not answer"
                sick = dict.fromkeys(pending.left() or (), why)
        if sender.pending:
            self._give_up(pending, why, sick)

    def _give_up(self, pending: Pending, why: str, sick: Collection[str]) -> None:
        """Stops waiting. Purges what was never sent; what may be on the wire stays with its sender, which is kept."""
        sender = pending.sender
        self._report.gave_up = why
        self._exact_until = self._clock() + EXACT_SECONDS
        sender.purge_unsent()
        until = self._clock() + SETTLE_SECONDS
        while sick and sender.pending and self._clock() < until and not sender.is_dead:
            # What was refused for now went back into the queue.
            sender.flush(WATCH_SECONDS)
            sender.purge_unsent()
        if sender.pending:
            held = pending.left()
            if held is None:
                held = set(sick) if sick and not sender.may_purge else pending.topics
            self._report.unanswered.update(held)
            self._unanswered.keep(pending, held)
        elif sender.may_go_on:
            return
        self._report.words = sender.words.words
        del self._senders[sender.is_exact]
        self._sender = self._choose(0)
        self._count(why)

    def _count(self, why: str) -> None:
        self.rebuilds += 1
        self.rebuilt_because = why

    def serve(self) -> None:
        """Serves callbacks while there is nothing to send."""
        for sender in self._senders.values():
            sender.serve()
