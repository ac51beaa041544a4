"""The watch's part in the floors: it observes the horizon, looks below them, and leaves hints for later relays."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from relay.daemon import queries
from relay.daemon.floors import EVERY_TOPIC, Floors, Hint, Server
from relay.daemon.lookout import Net
from relay.database import Connection
from relay.logs import Logger
from relay.metrics import Metrics

NET_SECONDS = 10.0
HINT_SECONDS = 5.0


class Observer:
    """Belongs to the watch's thread. Every method may raise psycopg.Error."""

    def __init__(
        self, floors: Floors, *, clock: Callable[[], float], ring: Callable[[], None], metrics: Metrics, log: Logger
    ) -> None:
        self._floors = floors
        self._clock = clock
        self._ring = ring
        self._metrics = metrics
        self._log = log
        self._net = Net()
        self._next_net = 0.0
        self._next_hint = 0.0
        self._saved: list[Hint] = []

    def observe(self, connection: Connection) -> None:
        """One observation of the horizon; now and then a step of the net, and a hint."""
        now = self._clock()
        # Through a pooler two statements may reach two servers, unless they are of one transaction.
        with connection.transaction() if connection.is_pooled else contextlib.nullcontext():
            view = self._floors.view()
            ((started, origin, last_id),) = connection.execute(queries.SERVER)
            # A statement of its own, after the first: the order is the proof.
            writers = [row[0] for row in connection.execute(queries.WRITERS)]
        if self._floors.observe(view, Server(started, origin), last_id, writers, now):
            self._ring()
        if now >= self._next_net:
            self._next_net = now + NET_SECONDS
            self._look_below(connection)
        if now >= self._next_hint:
            self.save(connection)

    def _look_below(self, connection: Connection) -> None:
        def ask(query: Any, parameters: dict[str, Any]) -> list[Any]:
            return connection.execute(query, parameters).fetchall()

        with connection.transaction():
            connection.execute(queries.PLANS)
            breach = self._net.step(ask, self._floors, self._clock)
        if breach:
            lane, below = breach
            self._metrics.floor_breaches.inc()
            self._log.error("floor.breached", lane=lane, below=below)
            self._ring()

    def save(self, connection: Connection) -> None:
        """Leaves hints for the relay that starts next, if there is anything new to tell it."""
        self._next_hint = self._clock() + HINT_SECONDS
        server, last_id, hints = self._floors.hints()
        if server is None or hints == self._saved:
            return
        with connection.transaction():
            # A hint that a crash takes away is no loss, and whatever it tells of was written before it.
            connection.execute("SET LOCAL synchronous_commit = off")
            if connection.execute(queries.HINTS_ALLOWED).fetchone() != (True,):
                return
            for hint in hints:
                parameters = {
                    "slot": 0 if hint.topics == EVERY_TOPIC else 1,
                    "paused": sorted(hint.topics),
                    "floors": hint.floors,
                    "proven": hint.proven,
                    "last_id": last_id,
                    **server._asdict(),
                }
                connection.execute(queries.SAVE_HINT, parameters)
        self._saved = hints
