"""What goes on beside the workers, on one connection of its own: wake-ups, the horizon, paused topics.

Waking up. Polling is the truth; a notification is a hint. A notification in every commit would serialise commits (up to
80 % of a database's insert rate), so writers notify only while a relay sleeps. The sleeper holds an advisory lock
exclusively; a writer tries to share it, which fails only then, and keeps its share until it commits. So:

    the sleeper gets the lock     every writer from now on notifies, and no writer has an event that it did not announce
    it looks once more            what was committed before is found now
    it waits                      for a notification, or a second

If somebody writes without end the lock is not to be had, and the relay goes on polling. If a notification is lost, or
the sleeper dies, the next look comes after `daemon.idle_seconds` all the same.

A sleeper that stands still would keep the lock, and every commit would go on notifying, for nobody. So the server ends
its session when nothing was asked in it for the takeover time; a sleeper that is well asks more often than that.

Behind a pooler there is neither lock nor notification: each would stay in a session that is another client's the next
moment. Asleep then only means to look every `daemon.idle_seconds`.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any, LiteralString

import psycopg

from relay.config import Settings
from relay.core.backoff import backoff_seconds
from relay.daemon import queries
from relay.daemon.brokers import PROBE_SECONDS, Brokers
from relay.daemon.floors import Floors
from relay.daemon.observer import Observer
from relay.daemon.sight import hidden
from relay.daemon.state import State
from relay.daemon.unanswered import Unanswered
from relay.database import Connection
from relay.errors import RelayError
from relay.logs import Logger
from relay.metrics import Metrics

TICK_SECONDS = 1.0
BUSY_TICK_SECONDS = 0.1
DROWSY_SECONDS = 1.0
"""How long there must have been nothing to do before the relay tries to sleep."""
SIGHT_SECONDS = 5.0
"""The pause between two looks at what the relay sees at all. Asleep it is at most a quarter of the takeover time, since
these looks are what keeps the session."""


class Watch:
    """Runs in a thread of its own until the relay stops. Nothing that the workers promise depends on it."""

    def __init__(
        self,
        *,
        open_connection: Callable[[], Connection],
        brokers: Brokers,
        unanswered: Unanswered,
        floors: Floors,
        lanes: int,
        settings: Settings,
        state: State,
        metrics: Metrics,
        log: Logger,
        drain: bool = False,
    ) -> None:
        self._open_connection = open_connection
        self._brokers = brokers
        self._unanswered = unanswered
        self._floors = floors
        self._lanes = lanes
        self._settings = settings
        self._state = state
        self._metrics = metrics
        self._log = log
        self._observer = Observer(floors, clock=state.clock, ring=state.ring, metrics=metrics, log=log)
        self._holds_lock = False
        self._is_bounded = False
        self._drain = drain
        self._sight_seconds = min(SIGHT_SECONDS, settings.daemon.takeover_seconds / 4)
        self._next_sight = 0.0
        self._broken_at = 0.0
        self._has_said_pooled = False

    def run(self) -> None:
        """Watches until the relay stops. A lost connection is opened anew; the workers say so in the log."""
        losses = 0
        while not self._state.stop.is_set():
            connection: Connection | None = None
            try:
                connection = self._open_connection()
                if connection.is_pooled:
                    self._say_pooled()
                else:
                    connection.execute("LISTEN relay_wake")
                losses = 0
                while not self._state.stop.is_set():
                    self._step(connection)
                self._observer.save(connection)
            except (psycopg.Error, RelayError):
                losses += 1
            finally:
                self._wake_up()
                self._is_bounded = False
                if connection is not None:
                    with contextlib.suppress(psycopg.Error):
                        connection.close()
            self._state.stop.wait(backoff_seconds(losses, random.random()))  # noqa: S311

    def _step(self, connection: Connection) -> None:
        """One turn, a second at most."""
        now = self._state.clock()
        self._look_at_topics(now)
        self._look_for_all(connection)
        # A sleeper observes nothing. What a long writer keeps back would stay below the floors after its commit until
        # something else is written, and every look would walk what was removed since the last proof.
        is_busy = self._state.idle_for() < DROWSY_SECONDS or bool(len(self._unanswered))
        if is_busy or not self._state.kafka_up or not self._floors.is_settled:
            self._wake_up(connection)
            self._observer.observe(connection)
            # Every look walks what was removed since the last proof, and while an old snapshot is open nothing marks
            # those entries as dead: at a proof a second a backlog was drained at 0.7 of the rate without a snapshot.
            is_busy = self._state.idle_for() < TICK_SECONDS or not self._floors.view().proven
            self._state.stop.wait(BUSY_TICK_SECONDS if is_busy else TICK_SECONDS)
        elif self._fall_asleep(connection):
            self._observer.save(connection)
            self._doze(connection)
        else:
            self._state.stop.wait(TICK_SECONDS / 4)

    def _fall_asleep(self, connection: Connection) -> bool:
        """Whether writers will notify from now on, because this relay or another one holds the lock, or never can."""
        if not self._holds_lock and not connection.is_pooled:
            takeover = self._settings.daemon.takeover_seconds
            bounds: dict[str, object] = {
                "takeover_ms": int(takeover * 1000), "probe_seconds": max(1, int(takeover / 4)),
            }  # fmt: skip
            self._is_bounded = True
            got, other = self._all(connection, queries.SLEEP, bounds)[0][:2]
            self._holds_lock = bool(got)
            if not (got or other):
                return False
        if not self._state.asleep.is_set():
            self._state.asleep.set()
            # What was committed before the lock was had has not been announced: look once more.
            self._state.ring()
        return True

    def _doze(self, connection: Connection) -> None:
        """Waits for a notification. The lock of another sleeper is asked for every other second."""
        seconds = (
            self._settings.daemon.idle_seconds if self._holds_lock else max(2.0, self._settings.daemon.idle_seconds)
        )
        until = self._state.clock() + seconds
        while not self._state.stop.is_set() and self._state.clock() < until and self._state.asleep.is_set():
            self._look_for_all(connection)
            # As a list: inside of the loop psycopg holds the connection's lock, and waking up needs the connection.
            if connection.is_pooled:
                self._state.stop.wait(0.2)
            elif list(connection.notifies(timeout=0.2, stop_after=1)):
                self._state.found_work()
                self._wake_up(connection)
                self._state.ring()
                return
            if self._state.idle_for() < DROWSY_SECONDS:
                return

    def _wake_up(self, connection: Connection | None = None) -> None:
        """Lets writers be silent again. Without a connection the lock has gone with it."""
        self._state.asleep.clear()
        if self._is_bounded and connection is not None:
            connection.execute(queries.AWAKE, {"holds_lock": self._holds_lock})
            self._is_bounded = False
        self._holds_lock = False

    def _look_for_all(self, connection: Connection) -> None:
        """Says when lanes or rows are out of this relay's sight: to the workers the outbox looks empty then."""
        now = self._state.clock()
        if now < self._next_sight:
            return
        self._next_sight = now + self._sight_seconds
        problem = hidden(connection)
        if problem:
            self._state.problems["schema"] = str(problem)
            if self._state.schema_ok:
                self._broken_at = now
                self._log.error("schema.broken", code=problem.code, reason=problem.message)
        elif not self._state.schema_ok:
            # A look at all lanes that finds nothing raises all floors, also above what could not be seen.
            self._floors.forget()
            self._state.problems.pop("schema", None)
            self._log.info("schema.mended", broken_s=round(now - self._broken_at, 1))
            self._state.ring()
        self._state.schema_ok = problem is None
        if problem and self._drain:
            self._state.failure = problem
            self._state.stop.set()
            self._state.ring()

    def _say_pooled(self) -> None:
        """Once: the operator may not know what stands between."""
        if not self._has_said_pooled:
            self._has_said_pooled = True
            hint = "connect relays directly: through a pooler an idle one sees an event after up to daemon.idle_seconds"
            self._log.warning("database.pooled", code="RLY-803", hint=hint)

    def _look_at_topics(self, now: float) -> None:
        """Takes topics up again that can be written now, or whose records all have an outcome."""
        for topic in self._unanswered.serve():
            self._resumed(topic)
        due = self._floors.due(now)
        troubles = self._brokers.inquire(due).answer(PROBE_SECONDS) if due else {}
        for topic in due:
            if troubles is not None and topic not in troubles:
                self._brokers.forget(topic)
                self._floors.resume(topic)
                self._resumed(topic)
            else:
                self._floors.pause(topic, now + self._settings.daemon.topic_retry_seconds)
                self._say_still_paused(topic, (troubles or {}).get(topic, "the brokers do not answer"))

    def _say_still_paused(self, topic: str, reason: str) -> None:
        """Names a topic that has not been said to be paused: a relay before this one did that."""
        if f"topic {topic}" not in self._state.problems:
            self._state.problems[f"topic {topic}"] = f"RLY-702: the topic cannot be written: {reason}"
            hint = "create the topic, grant Write on it, or bring its brokers back; its events wait"
            self._log.error("topic.paused", topic=topic, code="RLY-702", reason=reason, hint=hint)

    def _resumed(self, topic: str) -> None:
        if topic in self._floors.view().paused:
            return
        self._state.problems.pop(f"topic {topic}", None)
        self._log.info("topic.resumed", topic=topic)
        self._state.ring()

    @staticmethod
    def _all(connection: Connection, query: LiteralString, parameters: dict[str, object] | None = None) -> list[Any]:
        return connection.execute(query, parameters).fetchall()
