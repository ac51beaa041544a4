"""The two relays: real `relay run` processes, started again when they die, and what their logs say about them."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from relay.demo.children import Child

Condition = Literal["starting", "working", "frozen", "dead", "stopped"]

ROWS_MAX: Final = 100
UNITS_IN_FLIGHT: Final = 2
IN_FLIGHT_MAX: Final = ROWS_MAX * UNITS_IN_FLIGHT
"""So many events of one relay may be on their way at once: what its death may repeat."""
TAKEOVER_SECONDS: Final = 6
RESTART_SECONDS: Final = 1.5
"""How long the supervisor takes; an orchestrator takes longer."""

#: Shorter than the defaults, so that a fault shows its effect while somebody looks.
SETTINGS: Final[Mapping[str, str]] = {
    "RELAY_DAEMON__ROWS_MAX": str(ROWS_MAX),
    "RELAY_DAEMON__UNITS_IN_FLIGHT": str(UNITS_IN_FLIGHT),
    "RELAY_DAEMON__PUBLISH_TIMEOUT_SECONDS": "3",
    "RELAY_DAEMON__TAKEOVER_SECONDS": str(TAKEOVER_SECONDS),
    "RELAY_DAEMON__SHUTDOWN_SECONDS": "10",
    "RELAY_DATABASE__DEADLINE_SECONDS": "5",
    "RELAY_HTTP__ENABLED": "false",
    "RELAY_LOG__FORMAT": "json",
}

SAYINGS: Final[Mapping[str, str]] = {
    "kafka.lost": "Kafka is gone ({code}), events wait in the outbox",
    "kafka.back": "Kafka is back after {away_s} s",
    "database.lost": "its connection to Postgres is gone ({code})",
    "database.back": "connected to Postgres again after {away_s} s",
    "relay.fenced": "stood still for {frozen_s} s, drops its old unit",
    "topic.paused": "the topic cannot be written ({code})",
    "topic.resumed": "the topic can be written again",
    "row.moved": "a row was changed by hand: its unit goes again",
    "floor.breached": "found a row below a proven floor: that is a bug",
    "worker.failed": "ends by itself: {kind} in {where}",
}
"""What a log event means, for somebody who watches."""

PROBLEMS: Final[dict[str, str]] = {
    "kafka.lost": "no Kafka",
    "database.lost": "no database",
    "topic.paused": "topic refused",
}
SOLVED: Final[dict[str, str]] = {
    "kafka.back": "no Kafka",
    "database.back": "no database",
    "topic.resumed": "topic refused",
}


class Relay:
    """One place for a relay process, with a name. What it is and does now are its attributes."""

    def __init__(self, name: str, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
        self.name = name
        self._environ = {**environ, **SETTINGS}
        self._say = say
        self._recent: deque[tuple[float, int]] = deque(maxlen=2000)
        self._problems: set[str] = set()
        self._lock = threading.Lock()
        self.units = 0
        self.lanes = 0
        self.starts = 0
        self.condition: Condition = "starting"
        self._died_at = 0.0
        self._child = self._start()

    @property
    def pid(self) -> int:
        """The process id of now."""
        return self._child.pid

    @property
    def is_running(self) -> bool:
        """Whether the process exists, frozen or not."""
        return self._child.exit_code is None

    @property
    def problem(self) -> str:
        """What keeps it from working, as its log says; empty if nothing does."""
        return ", ".join(sorted(self._problems)) if self.condition == "working" else ""

    @property
    def rate(self) -> float:
        """Events a second that it published, over the last two seconds."""
        since = time.monotonic() - 2
        with self._lock:
            return sum(rows for at, rows in self._recent if at > since) / 2

    @property
    def last_words(self) -> str:
        """Why it ended by itself, as far as it said so."""
        return self._child.last_words

    def stop_short(self) -> None:
        """Holds it where it is, for a moment or for long."""
        self._child.send(signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets it run again."""
        self._child.send(signal.SIGCONT)
        if self.condition == "frozen":
            self.condition = "working"

    def mark_frozen(self) -> None:
        """It stays where it is until `go_on`."""
        self.condition = "frozen"

    def kill(self) -> None:
        """kill -9, and waits until it is gone."""
        self._child.send(signal.SIGKILL)
        self._child.wait(5)
        self._note_death()

    def supervise(self) -> None:
        """Notices that it has died, and starts it again a moment later."""
        if self.condition == "stopped" or self.is_running:
            return
        if self.condition != "dead":
            words = self.last_words
            self._note_death()
            self._say(f"{self.name} ended by itself with {self._child.exit_code}" + (f": {words}" if words else ""))
        elif time.monotonic() - self._died_at > RESTART_SECONDS:
            self._child.close()
            self._child = self._start()
            self._say(f"{self.name} started again by its supervisor")

    def stop(self, seconds: float) -> int | None:
        """SIGTERM, as in a rolling deploy; the exit code, None if it did not stop in time."""
        self.condition = "stopped"
        self._child.send(signal.SIGCONT)
        self._child.send(signal.SIGTERM)
        return self._child.exit_code if self._child.wait(seconds) else None

    def close(self) -> None:
        """Ends it without ceremony. May be called twice."""
        self.condition = "stopped"
        self._child.close()

    def _start(self) -> Child:
        self.condition = "starting"
        self._problems.clear()
        self.starts += 1
        return Child(["relay", "run"], self._environ, self._on_line)

    def _note_death(self) -> None:
        self.condition = "dead"
        self.lanes = 0
        self._died_at = time.monotonic()

    def _on_line(self, line: str) -> bool:
        try:
            fields = json.loads(line)
            event = fields["event"]
        except (ValueError, KeyError, TypeError):
            return False
        self._take(event, fields)
        return True

    def _take(self, event: str, fields: Mapping[str, Any]) -> None:
        if event == "unit.settled":
            self.units += 1
            self.lanes = fields["lanes"]
            with self._lock:
                self._recent.append((time.monotonic(), fields["rows"]))
        elif event == "relay.started" and self.condition == "starting":
            self.condition = "working"
        before = set(self._problems)
        if event in PROBLEMS:
            self._problems.add(PROBLEMS[event])
        if event in SOLVED:
            self._problems.discard(SOLVED[event])
        # Each of its workers says so; once is enough for whoever watches.
        is_news = self._problems != before or event not in PROBLEMS | SOLVED
        if event in SAYINGS and is_news:
            self._say(f"{self.name}: {SAYINGS[event].format_map(fields)}")
