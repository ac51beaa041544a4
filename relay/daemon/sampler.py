"""What the database says of the outbox when somebody asks, on a connection of its own that nobody else waits for.

A figure that is stored by one part and shown by another one outlives the moment that it is about as soon as the first
one sleeps, waits or fails. So these are taken when they are asked for, and what cannot be had in time is absent.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, LiteralString

import psycopg

from relay.daemon import queries
from relay.daemon.floors import Floors
from relay.database import Connection
from relay.errors import RelayError

FRESH_SECONDS = 1.0
"""For so long an answer serves those who ask after it."""
WAIT_SECONDS = 2.0
"""How long somebody who asks waits for the database. A statement gets as long."""

Figure = Mapping[tuple[str, ...], float]
"""Values by labels; a figure without labels has one value, under the empty tuple."""


class Sampler:
    """Samples the outbox on request. Safe from any thread; one sample is taken at a time."""

    def __init__(
        self,
        open_connection: Callable[[], Connection],
        floors: Floors,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_connection = open_connection
        self._floors = floors
        self._clock = clock
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._figures: dict[str, tuple[float, Figure]] = {}
        self._running: threading.Thread | None = None
        self._taken_at = float("-inf")

    def figures(self) -> Mapping[str, Figure]:
        """Returns what is known of this moment, by name of the metric. Takes WAIT_SECONDS at most."""
        asked_at = self._clock()
        with self._lock:
            if asked_at - self._taken_at > FRESH_SECONDS and self._running is None:
                self._running = threading.Thread(target=self._run, name="sampler", daemon=True)
                self._running.start()
            running = self._running
        if running is not None:
            running.join(WAIT_SECONDS)
        with self._lock:
            # What was taken while we waited, or shortly before; never what an earlier sample left behind.
            return {name: figure for name, (at, figure) in self._figures.items() if asked_at - at <= FRESH_SECONDS}

    def _run(self) -> None:
        try:
            self._sample()
        finally:
            with self._lock:
                self._running = None

    def _sample(self) -> None:
        started_at = self._clock()
        # An idle connection may have ended since the last time: that is worth another try, a slow database is not.
        for connection in (self._connection, None):
            try:
                self._connection = connection or self._open_connection()
                self._take(self._connection)
            except (psycopg.Error, RelayError):
                self._close()
                if self._clock() - started_at > FRESH_SECONDS:
                    return
            else:
                self._taken_at = self._clock()
                return

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
        self._connection = None

    def _take(self, connection: Connection) -> None:
        """The cheapest first: each is there as soon as it is known, and stays if a later one takes too long."""
        self._keep("relay_parked_now_events", {(): float(self._all(connection, queries.PARKED_COUNT)[0][0])})
        # Floors that skip nothing: the events of a paused topic are the oldest ones.
        floors = self._floors.whole_view().floors
        self._keep(
            "relay_oldest_event_age_seconds", {(): self._all(connection, queries.OLDEST, {"floors": floors})[0][0]}
        )
        backlog = self._all(connection, queries.BACKLOG_ESTIMATE)
        self._keep("relay_backlog_events", {(topic,): float(count) for topic, count in backlog})

    def _keep(self, name: str, figure: Figure) -> None:
        with self._lock:
            self._figures[name] = (self._clock(), figure)

    @staticmethod
    def _all(connection: Connection, query: LiteralString, parameters: dict[str, object] | None = None) -> list[Any]:
        # Through a pooler only a transaction has our settings.
        with connection.transaction():
            return connection.execute(query, parameters).fetchall()
