"""Looks at the outbox from beside it: how many events wait, how old the oldest is, and who holds a unit open."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg

from relay.database import Connection, connect
from relay.errors import RelayError

PAUSE_SECONDS: Final = 0.2
PAUSE_AFTER_LOSS_SECONDS: Final = 0.1

WAITING: LiteralString = """\
SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8 FROM relay.outbox"""

#: A worker that has locked lanes has a transaction id, and is idle in it while Kafka acknowledges.
OPEN_UNITS: LiteralString = """\
SELECT count(*) FROM pg_stat_activity
WHERE application_name LIKE 'relay worker%%' AND application_name LIKE %(instance)s AND backend_xid IS NOT NULL"""

NEWEST: LiteralString = "SELECT id::bigint, version FROM relay.entity_version WHERE entity = 'account'"

PARKED: LiteralString = "SELECT event_id::text FROM relay.parked"


@dataclass(frozen=True, slots=True)
class Waiting:
    """The outbox at one moment, `oldest` in seconds. While the database is away, what was seen last."""

    count: int = 0
    oldest: float = 0.0
    is_up: bool = True


class OutboxGauge:
    """One thread with one connection, which it opens anew whenever the database comes back."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.waiting = Waiting()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gauge", daemon=True)
        self._thread.start()

    def ask(self) -> Waiting:
        """The outbox of now, asked on a connection of its own; raises RelayError or psycopg.Error."""
        return _waiting(self._one(WAITING, {}))

    def open_units(self, pid: int) -> int:
        """How many units this relay process holds open; 0 if the database does not say."""
        with contextlib.suppress(psycopg.Error, RelayError):
            return int(self._one(OPEN_UNITS, {"instance": f"%-{pid}"})[0])
        return 0

    def parked(self) -> set[str]:
        """The ids of parked events."""
        with connect(self._url, "relay demo", deadline_seconds=5) as connection:
            return {row[0] for row in connection.execute(PARKED).fetchall()}

    def newest(self) -> dict[int, int]:
        """The newest version of each account."""
        with connect(self._url, "relay demo", deadline_seconds=5) as connection:
            return {int(id_): int(version) for id_, version in connection.execute(NEWEST).fetchall()}

    def close(self) -> None:
        """Ends the thread. May be called twice."""
        self._stop.set()
        self._thread.join(3)

    def _one(self, query: LiteralString, parameters: dict[str, object]) -> Sequence[Any]:
        with connect(self._url, "relay demo", deadline_seconds=3) as connection:
            row: Sequence[Any] = connection.execute(query, parameters).fetchone() or (0, 0.0)
            return row

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(psycopg.Error, RelayError):
                with connect(self._url, "relay demo gauge", deadline_seconds=3) as connection:
                    self._look(connection)
            self.waiting = Waiting(self.waiting.count, self.waiting.oldest, is_up=False)
            self._stop.wait(PAUSE_AFTER_LOSS_SECONDS)

    def _look(self, connection: Connection) -> None:
        while not self._stop.is_set():
            self.waiting = _waiting(connection.execute(WAITING).fetchone() or (0, 0.0))
            self._stop.wait(PAUSE_SECONDS)


def _waiting(row: Sequence[Any]) -> Waiting:
    return Waiting(int(row[0]), float(row[1]))
