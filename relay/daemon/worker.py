"""The loop of one worker: claim a unit, publish it, settle it, commit. Two of them hide the broker's round trip.

                     nothing there
           ┌────────────────────────────┐
           ▼                            │
wait for work ──▶ claim ──▶ publish ──▶ settle ──▶ commit
     ▲              │          │                      │
     │   connection lost       │ not all delivered    │
     └───── reconnect ◀────────┴── keep the prefix, ──┘
                                   wait for Kafka
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence

import psycopg

from relay.config import Settings
from relay.core.backoff import backoff_seconds
from relay.core.event import Outcome, Row
from relay.daemon.brokers import Brokers
from relay.daemon.clocks import clocks
from relay.daemon.failpoints import failpoint
from relay.daemon.floors import Floors
from relay.daemon.lanes import LaneBook
from relay.daemon.poison import Poison
from relay.daemon.presence import Presence
from relay.daemon.publisher import Publisher, Report
from relay.daemon.settling import Settler
from relay.daemon.state import State
from relay.daemon.store import MovedError, Store, Unit
from relay.daemon.tenure import Tenure
from relay.daemon.unsettled import Unsettled, is_connection_lost
from relay.database import explain
from relay.errors import RelayError, UnreachableError
from relay.logs import Logger
from relay.metrics import Metrics

SETTLE_SECONDS = 2.5
"""How long a relay waits after Kafka is back: twice librdkafka's longest pause between two attempts to connect."""


class Worker:
    """Owns one connection. `run` returns when the relay stops, or when a drain finds the outbox empty."""

    def __init__(
        self,
        index: int,
        *,
        open_store: Callable[[], Store],
        publisher: Publisher,
        brokers: Brokers,
        presence: Presence,
        floors: Floors,
        lane_book: LaneBook,
        unsettled: Unsettled,
        settings: Settings,
        state: State,
        metrics: Metrics,
        log: Logger,
        drain: bool = False,
    ) -> None:
        self._index = index
        self._open_store = open_store
        self._publisher = publisher
        self._brokers = brokers
        self._presence = presence
        self._floors = floors
        self._lane_book = lane_book
        self._unsettled = unsettled
        self._settings = settings
        self._daemon = settings.daemon
        self._state = state
        self._metrics = metrics
        self._log = log
        self._drain = drain
        self._poison = Poison(publisher, settings, metrics, log)
        self._settler = Settler(self._poison)
        self._pause = 0.001
        self._in_vain = 0
        """Units in a row that Kafka answered for reasons of its own, with nothing delivered."""
        self._rebuilds = 0
        self._losses = 0
        self._lost_at = 0.0

    def run(self) -> None:
        """Works until it is told to stop. A lost database is waited for; anything unexpected ends the process."""
        while not self._state.stop.is_set():
            # Waiting for a lost database is work too: a restart of this process would not bring it back.
            self._state.beat()
            store: Store | None = None
            try:
                store = self._open_store()
                self._database_is_back()
                self._loop(store)
                return
            except (psycopg.Error, RelayError) as error:
                self._database_is_lost(error)
            finally:
                if store is not None:
                    with contextlib.suppress(psycopg.Error):
                        store.close()
            self._losses += 1
            self._state.stop.wait(backoff_seconds(self._losses, random.random()))  # noqa: S311

    def _loop(self, store: Store) -> None:
        while not self._state.stop.is_set():
            self._state.beat()
            if not self._state.kafka_up:
                self._wait_for_kafka()
                continue
            if (seconds := self._unsettled.seconds_left(self._state.clock())) > 0:
                self._state.stop.wait(min(seconds, 1.0))
                continue
            self._state.work.clear()
            if self._run_unit(store):
                self._pause = 0.001
                continue
            if self._drain and store.is_empty():
                return
            self._wait_for_work(store)

    def _run_unit(self, store: Store) -> bool:
        """Works on one unit; False if there was none."""
        claimed = clocks()
        unit = store.claim()
        if unit is None:
            return False
        try:
            is_whole = self._leave_alone(unit)
            if not unit.rows:
                store.abandon()
                self._state.stop.wait(self._pause)
                return False
            self._state.found_work()
            self._state.ring()
            # Well before the takeover time: a relay that stood still for longer may have lost its lanes.
            tenure = Tenure(store, unit, claimed, self._daemon.takeover_seconds * 0.75)
            self._work(store, unit, tenure, is_whole=is_whole)
        finally:
            # What may still be on the wire is held by its topic from here on.
            self._lane_book.give_back(self._index)
        return True

    def _leave_alone(self, unit: Unit) -> bool:
        """Takes rows out that this process may not send now; returns whether the unit is as it was claimed."""
        lanes = self._lane_book.take(self._index, unit.lanes)
        held = self._floors.held
        if not lanes and not held:
            return True
        rows = [row for row in unit.rows if row[0] not in lanes and row[3] not in held]
        is_whole = len(rows) == len(unit.rows)
        unit.rows = rows
        return is_whole

    def _work(self, store: Store, unit: Unit, tenure: Tenure, *, is_whole: bool) -> None:
        """Publishes a unit and settles it."""
        clock = self._state.clock
        publishing_at = clock()
        waiting = self._poison.waiting(unit)
        rows = [row for row in unit.rows if (row[3], row[4]) not in unit.blocked] if waiting else unit.rows
        report = self._publisher.publish(rows, tenure)
        published_at = clock()
        if report.outcomes is None:
            self._lane_book.give_back(self._index)
        failpoint("after_ack")
        self._say_held(report)
        try:
            is_careful = self._unsettled.is_careful
            delivered, stuck = self._settler.settle(
                store, unit, rows=rows, waiting=waiting, report=report, tenure=tenure, is_careful=is_careful
            )
            store.commit()
        except (psycopg.Error, MovedError) as error:
            self._metrics.possible_repeats.inc(len(rows))
            self._not_settled(store, unit, error)
            return
        if report.outcomes is None and is_whole and not stuck:
            store.raise_floors_behind(unit)
        self._metrics.units.labels("settled" if report.outcomes is None and not stuck else "held").inc()
        self._report(unit, delivered, publishing_at, published_at, clock())
        self._say_rebuilt()
        self._note_settled(rows if delivered else (), stuck)
        if report.outcomes is not None:
            self._react(rows, report, tenure, clock() - unit.claimed_at, delivered)

    def _not_settled(self, store: Store, unit: Unit, error: psycopg.Error | MovedError) -> None:
        """Handles a unit that was published and not settled. Raises the error if it ended the connection."""
        now = self._state.clock()
        if isinstance(error, psycopg.Error) and is_connection_lost(error):
            if seconds := self._unsettled.lost(now):
                self._say_unsettled(unit, "the connection was lost between publishing and the commit", seconds)
            raise error
        store.abandon()
        if isinstance(error, MovedError):
            self._log.error("row.moved", lanes=unit.lanes)
            reason = "a row was changed by hand, or a trigger kept it"
        else:
            reason = explain(error).message
        self._say_unsettled(unit, reason, self._unsettled.refused(now))

    def _say_unsettled(self, unit: Unit, reason: str, seconds: float) -> None:
        self._metrics.units.labels("unsettled").inc()
        self._state.problems["settling"] = f"RLY-705: {reason}"
        self._log.error("unit.unsettled", rows=len(unit.rows), code="RLY-705", reason=reason, retry_s=round(seconds, 1))

    def _note_settled(self, rows: Sequence[Row], stuck: Sequence[Row]) -> None:
        """Takes in which rows the database would not let go, and when the trouble is over."""
        topics = {row[3] for row in stuck}
        if topics:
            seconds = self._unsettled.stuck(topics)
            for topic in topics:
                self._floors.pause(topic, self._state.clock() + seconds)
            reason = "the database refuses to remove or park events"
            self._state.problems["settling"] = f"RLY-705: {reason} of {', '.join(sorted(topics))}"
            self._log.error("unit.unsettled", rows=len(stuck), code="RLY-705", reason=reason, retry_s=round(seconds, 1))
        if rows and self._unsettled.settled({row[3] for row in rows} - topics):
            self._state.problems.pop("settling", None)

    def _say_rebuilt(self) -> None:
        if self._publisher.rebuilds != self._rebuilds:
            self._rebuilds = self._publisher.rebuilds
            self._metrics.rebuilds.inc()
            because = self._publisher.rebuilt_because
            self._log.warning("producer.rebuilt", rebuilds=self._rebuilds, reason=because)

    def _report(self, unit: Unit, delivered: int, publishing_at: float, published_at: float, now: float) -> None:
        """One line and a handful of numbers per unit."""
        m = self._metrics
        m.published.inc(delivered)
        m.unit_rows.observe(len(unit.rows))
        m.unit_seconds.observe(now - unit.claimed_at)
        m.publish_seconds.observe(published_at - publishing_at)
        m.wait_seconds.observe(unit.oldest_seconds)
        self._state.published += delivered
        self._log.info(
            "unit.settled",
            rows=delivered,
            lanes=len(unit.lanes),
            oldest_s=round(unit.oldest_seconds, 4),
            publish_s=round(published_at - publishing_at, 4),
            duration_s=round(now - unit.claimed_at, 4),
        )

    def _react(self, rows: Sequence[Row], report: Report, tenure: Tenure, took: float, delivered: int) -> None:
        """Takes in what the next unit has to know: topics to leave alone, and whether Kafka is there at all."""
        outcomes = report.outcomes or []
        counts = {outcome: outcomes.count(outcome) for outcome in Outcome}
        unknown = counts[Outcome.UNKNOWN]
        self._metrics.possible_repeats.inc(unknown)
        code = "RLY-701" if unknown else "RLY-702" if report.troubles else "RLY-703"
        self._log.warning("unit.held", rows=len(rows), **{o.value: n for o, n in counts.items()}, code=code)
        if tenure.is_over:
            self._metrics.fenced.inc()
            self._log.warning("relay.fenced", frozen_s=round(took, 1))
        for topic, reason in report.troubles.items():
            self._pause_topic(topic, reason)
        if report.gave_up or unknown:
            self._ask_kafka(report, unknown, delivered)
        else:
            self._in_vain = 0

    def _say_held(self, report: Report) -> None:
        """Says which topics wait for the outcome of their records, also where the unit fails afterwards."""
        for topic in report.unanswered - report.troubles.keys():
            self._state.problems[f"topic {topic}"] = "RLY-702: records of the topic are not answered yet"
            self._log.error(
                "topic.paused", topic=topic, code="RLY-702", reason=report.words or self._publisher.rebuilt_because,
                hint="records of it may be on the wire; its events wait until their outcome is known",
            )  # fmt: skip

    def _pause_topic(self, topic: str, reason: str) -> None:
        """Leaves a topic alone that cannot be written."""
        self._state.problems[f"topic {topic}"] = f"RLY-702: the topic cannot be written: {reason}"
        if self._floors.pause(topic, self._state.clock() + self._daemon.topic_retry_seconds):
            hint = "create the topic, grant Write on it, or bring its brokers back; its events wait"
            self._log.error("topic.paused", topic=topic, code="RLY-702", reason=reason, hint=hint)

    def _ask_kafka(self, report: Report, unknown: int, delivered: int) -> None:
        """Finds out whether Kafka as a whole is away, or only what was not answered."""
        words = self._brokers.ask()
        if words is not None:
            self._presence.lost(words)
            return
        if report.unanswered or report.troubles:
            # Held or paused topic by topic: the others go on.
            return
        self._in_vain = 0 if delivered else self._in_vain + 1
        if unknown:
            self._presence.lost(report.cause or report.words)
        self._state.stop.wait(backoff_seconds(self._in_vain + 1, random.random()))  # noqa: S311

    def _wait_for_kafka(self) -> None:
        """Waits until Kafka is reachable, without an open transaction. Only one worker asks; the others wait for it."""
        if self._index:
            self._state.stop.wait(0.1)
            return
        attempt = 1
        while not self._state.stop.is_set():
            self._state.beat()
            if self._presence.answers():
                break
            if self._drain and self._presence.lost_for >= self._daemon.publish_timeout_seconds:
                self._give_up()
                return
            self._state.stop.wait(backoff_seconds(attempt, random.random(), cap=1.0))  # noqa: S311
            attempt += 1
        else:
            return
        if self._presence.lost_for:
            # What this and other relays had in flight when Kafka went away arrives as soon as they are connected again.
            self._state.stop.wait(SETTLE_SECONDS)
        self._presence.back()

    def _give_up(self) -> None:
        """Ends a drain that cannot be done."""
        cause = self._brokers.words
        self._state.failure = UnreachableError(
            "RLY-304",
            "the Kafka brokers cannot be reached" + (f": {cause}" if cause else ""),
            "check kafka.bootstrap.servers and the login, then run it again; nothing was lost",
        )
        self._state.stop.set()
        self._state.ring()

    def _wait_for_work(self, store: Store) -> None:
        """Looks again after a pause that grows from one millisecond; sleeps when there has been nothing for a while."""
        state = self._state
        while not state.stop.is_set() and state.kafka_up:
            state.beat()
            self._publisher.serve()
            asleep = state.asleep.is_set()
            # The first worker looks; the others are rung when it finds something, and look seldom.
            seconds = self._daemon.idle_seconds if asleep or (self._index and self._pause > 0.02) else self._pause
            rung = state.work.wait(seconds)
            if rung or (not (asleep and self._index) and store.has_work()):
                return
            if self._drain and store.is_empty():
                return
            self._pause = min(self._pause * 1.5, self._daemon.poll_seconds_max)

    def _database_is_lost(self, error: psycopg.Error | RelayError) -> None:
        reason = explain(error) if isinstance(error, psycopg.Error) else error
        if self._state.database_up or not self._lost_at:
            self._lost_at = self._state.clock()
            self._state.database_up = False
            self._metrics.database_losses.inc()
            self._state.problems["database"] = str(reason)
            self._log.error("database.lost", code=reason.code, reason=reason.message)

    def _database_is_back(self) -> None:
        if self._lost_at:
            self._log.info("database.back", away_s=round(self._state.clock() - self._lost_at, 1))
        self._lost_at, self._losses = 0.0, 0
        self._state.database_up = True
        self._state.problems.pop("database", None)
