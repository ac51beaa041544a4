"""Everything that runs, in one place, and what may be done to it. The script and the keys both act through this.

application ──▶ Postgres ──▶ relay a, relay b ──▶ Kafka ──▶ reader
     │                                              │         │
     │                              consumer ◀──────┤         │
     │                                 └──▶ Redis ◀── services│
     └──────────────── journal ──▶ ledger ◀─────────┴─────────┘
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.engine import URL

from relay.demo.brokers import PARTITIONS, Brokers
from relay.demo.children import Child, clean_environ
from relay.demo.copies import Copies
from relay.demo.databases import Database
from relay.demo.ledger import Ledger
from relay.demo.outbox_gauge import OutboxGauge
from relay.demo.reader import Reader
from relay.demo.redis_servers import RedisServer
from relay.demo.relays import IN_FLIGHT_MAX, TAKEOVER_SECONDS, Relay
from relay.errors import OperatorError, RelayError

RATE: Final = 160.0
START_SECONDS: Final = 30.0
EMPTY_SECONDS: Final = 30.0
CATCH_ATTEMPTS: Final = 60
STARTS_MAX: Final = 40
DATABASE_AWAY_SECONDS: Final = 1.0
CALM_AFTER_SECONDS: Final = 0.5
NEWEST_SECONDS: Final = 5.0

FAULTS: Final = ("kill", "freeze", "flush", "consumer", "brokers", "database")


class Stage:
    """The running demo. Faults return at once; `tick`, called a few times a second, sees to what follows from them."""

    def __init__(self, database: Database, brokers: Brokers, say: Callable[[str], None]) -> None:
        self.database = database
        self.brokers = brokers
        self.say = say
        self.ledger = Ledger(brokers.topic)
        self.repeats_max = 0
        self.faults = dict.fromkeys(FAULTS, 0)
        self._crashing: threading.Thread | None = None
        self._frozen_at: float | None = None
        self._well_since: float | None = None
        self.behind = 0
        """Accounts that some service still read in an old version when everything was over; -1: nobody could tell."""
        self.relays: list[Relay] = []
        self.application: Child | None = None
        self.reader: Reader | None = None
        self.copies: Copies | None = None
        self.gauge = OutboxGauge(database.url)

    def start_relays(self, environ: Mapping[str, str]) -> None:
        """Starts both and returns when both work.

        Raises:
            OperatorError: one did not start; carries what it said.
        """
        for name in ("relay a", "relay b"):
            self.relays.append(Relay(name, environ, self.say))
        until = time.monotonic() + START_SECONDS
        while any(relay.condition == "starting" for relay in self.relays):
            for relay in self.relays:
                if not relay.is_running:
                    raise OperatorError("RLY-604", f"{relay.name} did not start: {relay.last_words}")
            if time.monotonic() > until:
                raise OperatorError("RLY-604", f"the relays were not ready in {START_SECONDS:g} s")
            time.sleep(0.02)

    def start_reader(self) -> None:
        """Reads from the beginning, before anything is there."""
        self.reader = Reader(self.brokers.client, self.brokers.topic, PARTITIONS, self.ledger.read)

    def start_application(self) -> None:
        """Starts the writers and returns with their first event.

        Raises:
            OperatorError: none came; carries what the application said.
        """
        environ = clean_environ() | {
            "DEMO_DATABASE": _for_sqlalchemy(self.database.url),
            "DEMO_TOPIC": self.brokers.topic,
            "DEMO_RATE": str(RATE),
        }
        self.application = Child(["relay.demo.application"], environ, self._on_journal)
        until = time.monotonic() + START_SECONDS
        while not self.ledger.written:
            if self.application.exit_code is not None or time.monotonic() > until:
                words = self.application.last_words
                raise OperatorError("RLY-604", f"the application did not start: {words}")
            time.sleep(0.02)

    def start_copies(self, redis: RedisServer) -> None:
        """Starts what reads through copies: the consumer of Redis, and two services.

        Raises:
            OperatorError: a part did not start; carries what it said.
        """
        url = _for_sqlalchemy(self.database.url)
        self.copies = Copies(self.brokers.client, self.brokers.topic, url, redis, self.say)
        self.copies.start()

    def tick(self) -> None:
        """Starts dead relays again, and tells when the frozen one has lost its lanes."""
        if self.copies is not None:
            self.copies.tick()
            self._note_calm(self.copies)
        for relay in self.relays:
            relay.supervise()
            if relay.starts > STARTS_MAX:
                raise OperatorError("RLY-604", f"{relay.name} does not stay alive: {relay.last_words}")
        frozen = self.frozen
        if frozen is None or self._frozen_at is None or not self.database_is_up:
            return
        if not self.gauge.open_units(frozen.pid):
            seconds = time.monotonic() - self._frozen_at
            self.say(f"Postgres took {frozen.name}'s lanes away after {seconds:.1f} s: the other goes on")
            self._frozen_at = None

    @property
    def frozen(self) -> Relay | None:
        """The relay that stands still, if one does."""
        return next((relay for relay in self.relays if relay.condition == "frozen"), None)

    @property
    def lanes_are_stuck(self) -> bool:
        """Whether a frozen relay still holds lanes."""
        return self._frozen_at is not None

    @property
    def database_is_up(self) -> bool:
        """Whether the server answers."""
        return self.gauge.waiting.is_up and not self.is_crashing

    @property
    def is_crashing(self) -> bool:
        """Whether the server has been killed and is not back yet."""
        return self._crashing is not None and self._crashing.is_alive()

    @property
    def is_well(self) -> bool:
        """Whether every part works and nothing has piled up."""
        parts = self.brokers.is_up and self.database_is_up
        relays = all(relay.condition == "working" and not relay.problem for relay in self.relays)
        copies = self.copies is None or self.copies.is_well
        return parts and relays and copies and self.gauge.waiting.count < RATE / 2

    @property
    def possible(self) -> list[str]:
        """The faults that these parts allow. Somebody else's server or cluster is not ours to break."""
        allowed = {
            "brokers": self.brokers.can_go_away,
            "database": self.database.can_crash,
            "flush": self.copies is not None and self.copies.redis.can_flush,
        }
        return [name for name in FAULTS if allowed.get(name, True)]

    def kill(self) -> None:
        """kill -9 for a working relay, in the middle of a unit if that can be had."""
        working = [relay for relay in self.relays if relay.condition == "working"]
        if not working:
            self.say("no relay works just now: there is nothing to kill")
            return
        relay = working[self.faults["kill"] % len(working)]
        units = self._catch(relay)
        relay.kill()
        self._count("kill", 1)
        self.say(f"kill -9 {relay.name}{_with_units(units)}: its lanes are free at once")

    def freeze(self) -> None:
        """SIGSTOP for a working relay, in the middle of a unit; the second call lets it go on."""
        frozen = self.frozen
        if frozen is not None:
            frozen.go_on()
            self._frozen_at = None
            self.say(f"{frozen.name} thaws")
            return
        working = [relay for relay in self.relays if relay.condition == "working"]
        if not working:
            self.say("no relay works just now: there is nothing to freeze")
            return
        relay = working[-1]
        units = self._catch(relay)
        relay.stop_short()
        relay.mark_frozen()
        self._frozen_at = time.monotonic() if units else None
        self._count("freeze", 1)
        after = f", loses its lanes in {TAKEOVER_SECONDS} s" if units else ""
        self.say(f"{relay.name} is frozen{_with_units(units)}{after}")

    def toggle_brokers(self) -> None:
        """Takes all brokers away, or brings them back."""
        if self.brokers.is_up:
            self.brokers.take_away()
            self._count("brokers", len(self.relays))
            self.say("all three brokers are gone: connections are refused")
        else:
            self.brokers.bring_back()
            self.say("the brokers are back")

    def crash_database(self) -> None:
        """kill -9 for the whole server; it starts again a second later, in a thread, since recovery takes a moment."""
        if self.is_crashing:
            return
        self._count("database", len(self.relays))
        self._crashing = threading.Thread(target=self._crash_and_restart, name="crash", daemon=True)
        self._crashing.start()

    def flush(self) -> None:
        """Empties Redis."""
        if self.copies is not None:
            self._count("flush", 0)
            self.copies.flush()

    def toggle_consumer(self) -> None:
        """Freezes the consumer, or lets it go on."""
        if self.copies is not None:
            if not self.copies.is_frozen:
                self._count("consumer", 0)
            self.copies.toggle_consumer()

    def repair(self) -> None:
        """Undoes what was done: the end of the demo is not a fault."""
        if self.frozen is not None:
            self.freeze()
        if not self.brokers.is_up:
            self.toggle_brokers()
        if self._crashing is not None:
            self._crashing.join(60)
        if self.copies is not None:
            self.copies.repair()

    def finish(self) -> int:
        """Stops the writers, waits for an empty outbox, stops the relays, reads the rest; the events that are left.

        The relays stop as in a rolling deploy: nothing may be repeated by that.
        """
        self.repair()
        if self.application is not None:
            self.application.tell("stop")
            self.application.wait(10)
        if self.copies is not None:
            self.copies.staleness.end(time.time())
        left = self._await_empty()
        for relay in self.relays:
            code = relay.stop(15)
            self.say(f"{relay.name} stopped with SIGTERM" + ("" if code == 0 else f", and ended with {code}"))
        if self.reader is not None and not self.reader.finish(20):
            self.say("the topic could not be read to its end")
        if self.copies is not None:
            self.behind = -1
            with contextlib.suppress(psycopg.Error, RelayError):
                self.behind = self.copies.await_newest(self.gauge.newest(), NEWEST_SECONDS)
            self.copies.finish()
        return left

    def close(self) -> None:
        """Ends all processes and threads of the demo, but not Postgres and Kafka. May be called twice."""
        if self.application is not None:
            self.application.close()
        for relay in self.relays:
            relay.close()
        if self.copies is not None:
            self.copies.close()
        if self._crashing is not None:
            self._crashing.join(60)
        self.gauge.close()
        if self.reader is not None:
            self.reader.close()

    def _on_journal(self, line: str) -> bool:
        if not line.startswith("{"):
            return False
        told = json.loads(line)
        self.ledger.wrote(told)
        if self.copies is not None:
            self.copies.staleness.wrote(told)
        return True

    def _count(self, fault: str, relays: int) -> None:
        """A fault may repeat what the relays that it hits have in flight, and no more."""
        self.faults[fault] += 1
        self.repeats_max += IN_FLIGHT_MAX * relays
        if self.copies is not None:
            self.copies.staleness.turn(time.time(), is_calm=False)
            self._well_since = None

    def _note_calm(self, copies: Copies) -> None:
        """Calm is when everything has been well for a while."""
        now = time.monotonic()
        if not self.is_well:
            self._well_since = None
            copies.staleness.turn(time.time(), is_calm=False)
        elif self._well_since is None:
            self._well_since = now
        elif now - self._well_since > CALM_AFTER_SECONDS:
            copies.staleness.turn(time.time(), is_calm=True)

    def _catch(self, relay: Relay) -> int:
        """Stops the relay while it has a unit open, so that the fault means something; leaves it stopped."""
        for _ in range(CATCH_ATTEMPTS):
            relay.stop_short()
            units = self.gauge.open_units(relay.pid)
            if units or not self.database_is_up:
                return units
            relay.go_on()
            time.sleep(0.003)
        return 0

    def _crash_and_restart(self) -> None:
        self.say("kill -9 for Postgres and all its sessions")
        self.database.crash()
        time.sleep(DATABASE_AWAY_SECONDS)
        started_at = time.monotonic()
        self.database.restart()
        self.say(f"Postgres has recovered and runs again ({time.monotonic() - started_at:.1f} s)")

    def _await_empty(self) -> int:
        """The events that are still there when the time is over; says what it waits for."""
        until = time.monotonic() + EMPTY_SECONDS
        say_at = time.monotonic() + 2
        left = -1
        while left and time.monotonic() < until:
            self.tick()
            with contextlib.suppress(psycopg.Error, RelayError):
                left = self.gauge.ask().count
            if time.monotonic() > say_at:
                say_at += 5
                self.say(f"waiting until the outbox is empty: {left} events left")
            time.sleep(0.05 if left else 0)
        return left


def _with_units(units: int) -> str:
    if not units:
        return ""
    return " in the middle of a unit" if units == 1 else f" in {units} open units"


def _for_sqlalchemy(url: str) -> str:
    """SQLAlchemy wants a URL with its driver; libpq's key-value pairs travel as they are."""
    parts = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
    dbname = parts.pop("dbname", None)
    return URL.create("postgresql+psycopg", database=dbname, query=parts).render_as_string(hide_password=False)
