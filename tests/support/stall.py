"""The database ends a relay's sessions while Kafka stalls: the unit's records are on the wire, and its lanes are free.

    relay                      proxy                     broker
      unit of 0…49 ───────────▶ held
      session ends, lanes free
      unit of 0…49, 50…54 ────▶ held
                                thaws ──────────────────▶ 0…49 must not land behind 50…54

Each round has a relay of its own, so that a failpoint can be armed for it, and a key of its own, so that nothing later
covers up what its log ends on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from relay.demo.postgres import EmbeddedPostgres
from tests.support import nemesis, scenario
from tests.support.kafka import KafkaCluster
from tests.support.relay_process import FOR_TESTS, SHORT, RelayProcess, eventually
from tests.support.topic import count_records
from tests.support.workload import Held, Journal

Ending = Literal["terminate", "idle", "restart"]
"""How the database ends sessions: on an administrator's word, by its time-out for idle transactions, by restarting."""

OLD, NEW = 50, 5
"""Events on the wire when the session ends, and events that are committed after that."""

POINTS = ("after_claim", "after_produce", "flushing", "after_ack", "after_delete", "in_commit")
"""Steps of the unit at which the session ends; `flushing` is where a stalled Kafka keeps it by itself."""

HAS_RECORDS = ("after_ack", "after_delete", "in_commit")
"""Steps that a unit reaches only while Kafka answers: the stall begins there, and hits what goes again."""

PATIENT: Mapping[str, str] = {**FOR_TESTS, "RELAY_DATABASE__DEADLINE_SECONDS": "3"}
"""Settings under which no publish time-out ends within the stall."""


@dataclass(kw_only=True)
class Stall:
    """One round: what is hurt, where and how."""

    server: EmbeddedPostgres
    dsn: str
    cluster: KafkaCluster
    topic: str
    point: str
    how: Ending
    draw: random.Random
    settings: Mapping[str, str]
    cuts: float = 0.3
    """How often the stall ends with the connections. What they carried may then arrive without a report."""

    def play(self, key: str) -> Journal:
        """One stall with a relay of its own; returns when everything was published and the relay has stopped.

        Raises:
            AssertionError: events are left, the relay did not stop cleanly, or nothing went wrong at all.
        """
        failpoints = "" if self.point == "flushing" else f"{self.point}=sleep:2@2"
        settings = SHORT if self.how == "idle" else self.settings
        relay = RelayProcess(self.dsn, self.cluster.bootstrap, settings=settings, failpoints=failpoints)
        with relay:
            relay.wait_started()
            journal = self._write("r:warm", 1)
            scenario.wait_empty(self.dsn, 30)
            journal = journal.joined(self._hurt(relay, key))
            scenario.wait_empty(self.dsn, 60)
            assert self.point == "in_commit" or relay.events("database.lost"), "no session was lost"
            assert relay.stop() == 0, relay.said()
        return journal

    def play_two(self, key: str, *, both: bool) -> Journal:
        """One stall with two relays: the first claims, loses its sessions, and the second publishes what it had.

        Args:
            both: Kafka stalls for both relays. Otherwise only for the first, as when its host's network does.
        """
        direct = ",".join(f"127.0.0.1:{broker.internal_port}" for broker in self.cluster.brokers)
        first = RelayProcess(self.dsn, self.cluster.bootstrap, settings=self.settings)
        second = RelayProcess(self.dsn, self.cluster.bootstrap if both else direct, settings=self.settings)
        with second:
            # Its producer has to know the brokers before they stall.
            second.wait_started()
            journal = self._write("t:second", 1)
            scenario.wait_empty(self.dsn, 30)
            second.pause()
            with first:
                first.wait_started()
                journal = journal.joined(self._write("t:first", 1))
                scenario.wait_empty(self.dsn, 30)
                stalled_at = self._stall()
                journal = journal.joined(self._write(key, OLD))
                eventually(lambda: scenario.ask(self.dsn, scenario.HELD_UP), 30, "a unit that waits")
                second.resume()
                nemesis.end_sessions(self.dsn, first)
                journal = journal.joined(self._write(key, NEW))
                self._thaw(stalled_at)
                scenario.wait_empty(self.dsn, 60)
                assert (first.stop(), second.stop()) == (0, 0), first.said() + second.said()
        return journal

    def _hurt(self, relay: RelayProcess, key: str) -> Journal:
        if self.point in HAS_RECORDS:
            return self._hurt_late(relay, key)
        stalled_at = self._stall()
        old = self._write(key, OLD)
        eventually(lambda: scenario.ask(self.dsn, scenario.HELD_UP), 30, "a unit that waits")
        self._end_sessions(relay)
        new = self._write(key, NEW)
        self._thaw(stalled_at)
        return old.joined(new)

    def _hurt_late(self, relay: RelayProcess, key: str) -> Journal:
        """The stall begins behind the acknowledgements. It holds what goes again, and sessions end once more."""
        before = count_records(self.cluster.bootstrap, self.topic)
        journal = self._write(key, OLD)
        eventually(lambda: count_records(self.cluster.bootstrap, self.topic) >= before + OLD, 30, "the first unit")
        stalled_at = self._stall()
        self._end_sessions(relay)
        journal = journal.joined(self._write(key, NEW))
        eventually(lambda: scenario.ask(self.dsn, scenario.HELD_UP), 30, "a second unit that waits")
        self._end_sessions(relay)
        journal = journal.joined(self._write(key, NEW))
        self._thaw(stalled_at)
        return journal

    def _thaw(self, stalled_at: float) -> None:
        """Ends the stall two to four seconds after it began, now and then with the connections."""
        time.sleep(max(0.0, stalled_at + self.draw.uniform(2, 4) - time.monotonic()))
        for proxy in self.cluster.proxies:
            if self.draw.random() < self.cuts:
                proxy.cut()
            proxy.thaw()

    def _write(self, key: str, count: int) -> Journal:
        held = Held(self.dsn, f"{self.draw.random()}", [self.topic], [key] * count)
        held.commit()
        return held.journal

    def _stall(self) -> float:
        for proxy in self.cluster.proxies:
            proxy.freeze()
        return time.monotonic()

    def _end_sessions(self, relay: RelayProcess) -> None:
        if self.how == "terminate":
            nemesis.end_sessions(self.dsn)
        elif self.how == "restart":
            nemesis.stop_postgres(self.server, "fast")
        else:
            relay.pause()
            eventually(lambda: not scenario.ask(self.dsn, scenario.HELD_OPEN), 30, "the database's time-out")
            relay.resume()


def settled(bootstrap: str, topic: str) -> None:
    """Returns when no record has landed for a second: what a closed connection still delivers comes late."""
    count, since = -1, time.monotonic()
    while time.monotonic() < since + 1:
        now = count_records(bootstrap, topic)
        if now != count:
            count, since = now, time.monotonic()
        time.sleep(0.1)
