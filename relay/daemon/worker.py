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
from relay.core.settlement import Settlement, settle
from relay.daemon.brokers import Brokers
from relay.daemon.failpoints import failpoint
from relay.daemon.floors import Floors
from relay.daemon.poison import Poison
from relay.daemon.presence import Presence
from relay.daemon.publisher import Publisher
from relay.daemon.state import State
from relay.daemon.store import MovedError, Store, Unit
from relay.database import explain
from relay.errors import RelayError, UnreachableError
from relay.logs import Logger
from relay.metrics import Metrics


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
        self._settings = settings
        self._daemon = settings.daemon
        self._state = state
        self._metrics = metrics
        self._log = log
        self._drain = drain
        self._poison = Poison(publisher, settings, metrics, log)
        self._pause = 0.001
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
            self._state.work.clear()
            if self._run_unit(store):
                self._pause = 0.001
                continue
            if self._drain and store.is_empty():
                return
            self._wait_for_work(store)

    def _run_unit(self, store: Store) -> bool:
        """One unit of work; False if there was none to be had."""
        unit = store.claim()
        if unit is None:
            return False
        self._state.found_work()
        self._state.ring()
        clock = self._state.clock
        publishing_at = clock()
        waiting = self._poison.waiting(unit)
        rows = [row for row in unit.rows if (row[3], row[4]) not in unit.blocked] if waiting else unit.rows
        # Well before the takeover time: a relay that stood still for longer may have lost its lanes, and must not send.
        fence_at = unit.claimed_at + self._daemon.takeover_seconds * 0.75
        outcomes = self._publisher.publish(rows, fence_at)
        published_at = clock()
        failpoint("after_ack")
        try:
            delivered = self._settle(store, unit, rows, waiting, outcomes)
            store.commit()
            if outcomes is None:
                store.raise_floors_behind(unit)
        except (psycopg.Error, MovedError) as error:
            self._metrics.possible_repeats.inc(len(rows))
            if isinstance(error, MovedError):
                self._log.error("row.moved", lanes=unit.lanes)
                return True
            raise
        self._metrics.units.labels("settled" if outcomes is None else "held").inc()
        self._report(unit, delivered, publishing_at, published_at, clock())
        if self._publisher.rebuilds != self._rebuilds:
            self._rebuilds = self._publisher.rebuilds
            self._metrics.rebuilds.inc()
            self._log.warning("producer.rebuilt", rebuilds=self._rebuilds)
        if outcomes is not None:
            self._react(rows, outcomes, clock() > fence_at, clock() - unit.claimed_at)
        return True

    def _settle(
        self,
        store: Store,
        unit: Unit,
        rows: Sequence[Row],
        waiting: list[Row],
        outcomes: list[Outcome] | None,
    ) -> int:
        """Removes what was delivered and parks what its topic's policy says; returns how many were delivered."""
        settlement = Settlement(rows, []) if outcomes is None else settle([Row(*row) for row in rows], outcomes)
        delivered = [*settlement.delivered, *self._poison.treat(store, settlement.refused)]
        store.remove(delivered)
        if waiting:
            self._poison.park_waiting(store, unit, waiting)
        if unit.parked:
            overtaken = {(row[3], row[4]) for row in delivered if row[4] is not None}
            ids = [id_ for key, parked in unit.parked.items() if key in overtaken for id_ in parked]
            if ids:
                store.mark_overtaken(ids)
        return len(delivered)

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

    def _react(self, rows: Sequence[Row], outcomes: list[Outcome], late: bool, took: float) -> None:
        """What the next unit has to know: topics to leave alone, and whether Kafka is there at all."""
        counts = {outcome: outcomes.count(outcome) for outcome in Outcome}
        unknown = counts[Outcome.UNKNOWN]
        self._metrics.possible_repeats.inc(unknown)
        code = "RLY-701" if unknown else "RLY-702" if counts[Outcome.TOPIC] else "RLY-703"
        self._log.warning("unit.held", rows=len(rows), **{o.value: n for o, n in counts.items()}, code=code)
        if late:
            self._metrics.fenced.inc()
            self._log.warning("relay.fenced", frozen_s=round(took, 1))
        until = self._state.clock() + self._daemon.topic_retry_seconds
        for topic in {row[3] for row, outcome in zip(rows, outcomes, strict=True) if outcome is Outcome.TOPIC}:
            if self._floors.pause(topic, until):
                hint = "create the topic or grant Write on it; its events wait"
                self._state.problems[f"topic {topic}"] = "RLY-702: the topic cannot be written"
                self._log.error("topic.paused", topic=topic, code="RLY-702", hint=hint)
        if unknown:
            self._presence.lost(self._brokers.words)

    def _wait_for_kafka(self) -> None:
        """Asks whether Kafka is there, with no transaction open. The first worker asks, the others wait for it."""
        if self._index:
            self._state.stop.wait(0.1)
            return
        attempt = 1
        while not self._state.stop.is_set():
            self._state.beat()
            if self._presence.answers() and self._publisher.is_idle():
                break
            if self._drain and self._presence.lost_for >= self._daemon.publish_timeout_seconds:
                self._give_up()
                return
            self._state.stop.wait(backoff_seconds(attempt, random.random(), cap=1.0))  # noqa: S311
            attempt += 1
        else:
            return
        if self._presence.lost_for:
            # What other relays had on the wire when Kafka went away is being settled now; let it.
            self._state.stop.wait(0.5)
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
        self._floors.forget()
        reason = explain(error) if isinstance(error, psycopg.Error) else error
        if self._state.database_up or not self._lost_at:
            self._lost_at = self._state.clock()
            self._state.database_up = False
            self._metrics.database_losses.inc()
            self._metrics.database_up.set(0)
            self._state.problems["database"] = str(reason)
            self._log.error("database.lost", code=reason.code, reason=reason.message)

    def _database_is_back(self) -> None:
        if self._lost_at:
            self._log.info("database.back", away_s=round(self._state.clock() - self._lost_at, 1))
        self._lost_at, self._losses = 0.0, 0
        self._state.database_up = True
        self._metrics.database_up.set(1)
        self._state.problems.pop("database", None)
