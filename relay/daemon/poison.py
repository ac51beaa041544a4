"""Events that Kafka refuses, each by the policy of its topic: out of the way, in the way, or to a dead-letter topic.

A refusal may be the fault of a neighbour in the same batch, so each refused row is tried once more alone before the
policy applies. `park` moves it aside and its key goes on. `block` moves it aside and its key's later events wait behind
it, aside as well: left in the outbox they would fill the lane's window and stop its other keys. `topic` publishes it to
the dead-letter topic.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from relay.config import Settings
from relay.core.event import SEPARATOR, Outcome, Row
from relay.daemon.publisher import Publisher, Report
from relay.daemon.store import Store, Unit
from relay.daemon.tenure import Tenure
from relay.logs import Logger
from relay.metrics import Metrics

ALONE_SECONDS = 5.0
"""How long a unit may spend on trying refused rows alone; what is left over is tried in the next one."""


class Poison:
    """Applies the policies, within the unit's transaction."""

    def __init__(self, publisher: Publisher, settings: Settings, metrics: Metrics, log: Logger) -> None:
        self._publisher = publisher
        self._settings = settings
        self._metrics = metrics
        self._log = log

    def waiting(self, unit: Unit) -> list[Row]:
        """Rows whose key is blocked by a parked event."""
        if not unit.blocked:
            return []
        return [row for row in unit.rows if (row[3], row[4]) in unit.blocked]

    def park_waiting(self, store: Store, unit: Unit, rows: Sequence[Row]) -> None:
        """Moves rows behind the parked event that blocks their key."""
        store.park(
            rows,
            policy="block",
            waits=True,
            code="RLY-704",
            reason="an earlier event blocks the key",
            attempts=0,
        )
        self._metrics.parked_total.labels("block").inc(len(rows))

    def treat(
        self, store: Store, refused: Sequence[Row], report: Report, tenure: Tenure, *, is_careful: bool
    ) -> tuple[list[Row], list[Row]]:
        """Retries each refused row by itself, then applies the topic's policy.

        Args:
            report: of the unit, with Kafka's words about each row.
            is_careful: a row that the database does not let be parked stays where it is, instead of failing the unit.
        Returns:
            The rows to treat as delivered, and those that could not be parked.
        """
        delivered: list[Row] = []
        stuck: list[Row] = []
        until = time.monotonic() + ALONE_SECONDS
        for row in refused:
            if time.monotonic() > until or report.unanswered:
                break
            alone = self._publisher.publish([row], tenure)
            report.unanswered |= alone.unanswered
            if alone.outcomes is None:
                delivered.append(row)
            elif alone.outcomes == [Outcome.REFUSED]:
                words = alone.reason(row) or report.reason(row)
                if is_careful and not self._can_park(store, row, words):
                    stuck.append(row)
                elif self._apply(store, row, words, tenure):
                    delivered.append(row)
        return delivered, stuck

    def _can_park(self, store: Store, row: Row, words: str) -> bool:
        """Whether the database lets the row be parked."""
        return store.allows(
            lambda: store.park([row], policy="park", waits=False, code="RLY-703", reason=words, attempts=2)
        )

    def _apply(self, store: Store, row: Row, words: str, tenure: Tenure) -> bool:
        """Applies the policy to one row. Returns True if it is to be removed like a delivered one."""
        policy = self._settings.topic(row.topic)
        reason = f"Kafka refuses the event: {words}" if words else "Kafka refuses the event"
        event_id = row.event_id.decode()
        if policy.poison == "topic":
            dead_letter = policy.dead_letter or f"{row.topic}.dead"
            origin = f"relay-origin-topic{SEPARATOR}{row.topic}{SEPARATOR}relay-error{SEPARATOR}RLY-703{SEPARATOR}"
            dead = row._replace(topic=dead_letter, headers=row.headers + origin)
            report = self._publisher.publish([dead], tenure)
            if report.outcomes is None:
                self._log.error(
                    "event.dead_lettered",
                    event_id=event_id, topic=row.topic, dead_letter=dead_letter, code="RLY-703", reason=reason,
                )  # fmt: skip
                self._metrics.parked_total.labels("topic").inc()
                return True
            why = report.reason(dead) or report.troubles.get(dead_letter) or report.words or "no answer"
            reason = f"{reason}. The dead-letter topic {dead_letter} did not take it: {why}"
        store.park([row], policy=policy.poison, waits=False, code="RLY-703", reason=reason, attempts=2)
        self._metrics.parked_total.labels(policy.poison).inc()
        self._log.error(
            "event.parked",
            event_id=event_id,
            topic=row.topic,
            policy=policy.poison,
            code="RLY-703",
            reason=reason,
            waiting=0,
        )
        return False
