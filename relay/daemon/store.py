"""The outbox as one worker sees it: lock lanes, read their rows, remove what was delivered, all in one transaction.

A unit's transaction is open while Kafka acknowledges. The lane locks and the deletion share it, so a relay that lost
its connection cannot remove anything, and a relay that died has locked nothing.
"""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import ConnStatus, Format
from psycopg.types.string import ByteaBinaryLoader

from relay.core.event import Row
from relay.daemon import queries
from relay.daemon.failpoints import failpoint, is_armed
from relay.daemon.floors import Floors, View
from relay.database import Connection

TID_ARRAY = 1010
TID = 27


class Tids(bytes):
    """A `tid[]` in the wire's binary form."""

    @classmethod
    def of(cls, ctids: Sequence[bytes]) -> Tids:
        """From the six bytes that the database sent for each. Empty arrays have no dimension."""
        head = struct.pack(">iii", 1, 0, TID) + struct.pack(">ii", len(ctids), 1)
        return cls(head + b"".join([b"\0\0\0\6" + ctid for ctid in ctids]))


class TidsDumper(Dumper):
    """Sends Tids as they are."""

    format = Format.BINARY
    oid = TID_ARRAY

    def dump(self, obj: Any) -> bytes:
        """The bytes themselves."""
        return bytes(obj)


@dataclass(slots=True)
class Unit:
    """One unit of work: locked lanes, and their first rows in id order per lane."""

    view: View
    lanes: list[int]
    rows: list[Row]
    """In the shape of Row, as plain tuples: naming the columns of each row would cost a tenth of the drain rate."""
    claimed_at: float
    """Monotonic, before the lanes were locked."""
    oldest_seconds: float
    blocked: dict[tuple[str, bytes], int] = field(default_factory=dict)
    """Keys that a parked event blocks, with that event's id."""
    parked: dict[tuple[str, bytes], list[int]] = field(default_factory=dict)
    """Keys with parked events that are not marked as overtaken yet."""


def content_bytes(row: Row) -> int:
    """The bytes of key, headers and payload, whether they were read or left behind. Takes plain tuples as well."""
    _, _, _, _, key, headers, _, payload, large_bytes = row
    return large_bytes if large_bytes is not None else len(key or b"") + len(headers) + len(payload or b"")


def _completed(row: Row, key: bytes | None, headers: str, payload: bytes | None) -> Row:
    """The row with what READ left behind. `large_bytes` is that of the payload from here on."""
    return Row(*row[:4], key, headers, row[6], payload, len(payload or b""))


class MovedError(Exception):
    """A row of a locked lane was changed by somebody else. The unit was rolled back; nothing was removed."""


class Store:
    """One worker's connection to the outbox. Not thread-safe. Every method may raise psycopg.Error: discard it then."""

    def __init__(
        self,
        connection: Connection,
        floors: Floors,
        *,
        rows_max: int,
        bytes_max: int,
        lanes_max: int,
        takeover_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._floors = floors
        self._rows_max = rows_max
        self._bytes_max = bytes_max
        self._lanes_max = lanes_max
        self._clock = clock
        self._row_bytes = 256.0
        self._start = 0
        begin = queries.BEGIN.format(takeover_ms=int(takeover_seconds * 1000))
        self._begin = "; ".join(filter(None, [begin, connection.local_pins])).encode()
        connection.adapters.register_dumper(Tids, TidsDumper)
        # Keys and event ids go to Kafka as they come: decoding and encoding them again would be work for nothing.
        connection.adapters.register_loader("text", ByteaBinaryLoader)

    def close(self) -> None:
        """Ends the session; what was locked is free."""
        self._connection.close()

    def confirm(self) -> int:
        """Returns the database's time in milliseconds. The answer proves that the session, and every lock, is there."""
        return int(self._one(queries.CONFIRM, {})[0])

    def is_alive(self) -> bool:
        """Whether the session has not ended, as far as its socket tells without a round trip."""
        pgconn = self._connection.pgconn
        poll = select.poll()
        try:
            poll.register(pgconn.socket, select.POLLIN)
            while poll.poll(0) and pgconn.status == ConnStatus.OK:
                # What comes unasked is a notice, or the reason and then the end of the session.
                pgconn.consume_input()
        except psycopg.OperationalError:
            return False
        return bool(pgconn.status == ConnStatus.OK)

    def has_work(self) -> bool:
        """Whether any lane has a row, be it locked by another relay. One statement, no transaction is left open."""
        view = self._floors.view()
        found = bool(self._one(queries.PROBE, {"floors": view.floors, "paused": view.paused})[0])
        if not found:
            self._floors.raise_all(view)
        return found

    def is_empty(self) -> bool:
        """Whether the outbox holds no visible row at all, paused topics and floors aside."""
        # A transaction, since through a pooler only that has our settings, and a policy could hide rows without them.
        with self._connection.transaction():
            return bool(self._one("SELECT NOT EXISTS (SELECT FROM relay.outbox)", {})[0])

    def claim(self) -> Unit | None:
        """Locks free lanes that have work and reads their rows; None if there are none, with nothing left open."""
        claimed_at = self._clock()
        view = self._floors.view()
        self._connection.execute(self._begin)
        heads = self._all(
            queries.CLAIM,
            {
                "floors": view.floors,
                "paused": view.paused,
                "start": self._start,
                "lanes_max": min(self._lanes_max, self._rows_max),
            },
        )
        if not heads:
            self.abandon()
            return None
        lanes = [head[0] for head in heads]
        self._start = lanes[-1] + 1
        rows = self._read(view, lanes)
        if view.pins and self._floors.pins_ended(view, self.writers()):
            # Rows of a long writer have become visible below the floors: they may belong before what was just read.
            self.abandon()
            return self.claim()
        # Before large rows are left behind: a floor must not rise past what waits for a later unit.
        self._raise_floors(view, lanes, rows)
        if any(row[8] is not None for row in rows):
            rows = self._with_large(rows)
        if not rows:
            self.abandon()
            return None
        unit = Unit(view, lanes, rows, claimed_at, max(head[3] for head in heads))
        if any(head[1] for head in heads):
            self._note_parked(unit)
        failpoint("after_claim")
        return unit

    def _read(self, view: View, lanes: list[int]) -> list[Row]:
        limit = max(1, min(self._rows_max, int(self._bytes_max / self._row_bytes)))
        rows = self._all(
            queries.READ,
            {
                "lanes": lanes,
                "floors": [view.floors[lane] for lane in lanes],
                "paused": view.paused,
                "rows_per_lane": max(1, limit // len(lanes)),
            },
        )
        if rows:
            size = sum(map(content_bytes, rows)) / len(rows) + 128
            self._row_bytes += (size - self._row_bytes) * (0.5 if size < self._row_bytes else 1.0)
        return rows

    def _with_large(self, rows: list[Row]) -> list[Row]:
        """Fetches large rows until the unit is full. If a row does not fit, the later rows of its lane stay behind as
        well, to keep order."""
        kept: list[Row] = []
        large: list[bytes] = []
        full: set[int] = set()
        total = 0
        for row in rows:
            lane, size = row[0], content_bytes(row)
            if lane in full or (kept and total + size > self._bytes_max):
                full.add(lane)
                continue
            total += size
            kept.append(row)
            if row[8] is not None:
                large.append(row[2])
        fetched = self._all(queries.READ_LARGE, {"ctids": Tids.of(large)}) if large else []
        contents = {id_: content for id_, *content in fetched}
        # A row that vanished by hand in between is not published.
        return [
            row if row[8] is None else _completed(row, *contents[row[1]])
            for row in kept
            if row[8] is None or row[1] in contents
        ]

    def _raise_floors(self, view: View, lanes: list[int], rows: list[Row]) -> None:
        first: dict[int, int | None] = dict.fromkeys(lanes)
        for row in rows:
            if first[row[0]] is None:
                first[row[0]] = row[1]
        self._floors.raise_to(view, first)

    def raise_floors_behind(self, unit: Unit) -> None:
        """After the commit of a unit that was delivered whole: the next look need not walk over what was removed."""
        # Rows come in id order per lane, so the last one of each lane wins.
        self._floors.raise_to(unit.view, {row[0]: row[1] + 1 for row in unit.rows})

    def _note_parked(self, unit: Unit) -> None:
        for id_, topic, key, blocks, overtaken in self._all(queries.PARKED_KEYS, {"lanes": unit.lanes}):
            name = (topic.decode(), key)
            if blocks:
                unit.blocked[name] = id_
            elif not overtaken:
                unit.parked.setdefault(name, []).append(id_)

    def remove(self, rows: Sequence[Row]) -> None:
        """Removes exactly these rows of the open unit.

        Raises:
            MovedError: somebody changed a row by hand, or a trigger kept it. The transaction has to be given up.
        """
        if not rows:
            return
        count, total = self._one(queries.DELETE, {"ctids": Tids.of([row[2] for row in rows])})
        if count != len(rows) or total != sum([row[1] for row in rows]):
            raise MovedError

    def park(self, rows: Sequence[Row], *, policy: str, waits: bool, code: str, reason: str, attempts: int) -> None:
        """Moves rows of the open unit to the parked events."""
        parameters = {"lanes": [row[0] for row in rows], "ids": [row[1] for row in rows], "policy": policy}
        statement = queries.PARK if self._one(queries.HAS_PARK, {})[0] else queries.PARK_BEFORE_3
        self._connection.execute(
            statement, {**parameters, "waits": waits, "code": code, "reason": reason, "attempts": attempts}
        )
        failpoint("in_parking")

    def mark_overtaken(self, ids: list[int]) -> None:
        """Notes that later events of the keys of these parked events are being published."""
        self._connection.execute(queries.MARK_OVERTAKEN, {"ids": ids})

    def commit(self) -> None:
        """Ends the unit. Raises psycopg.Error if it is unknown whether it did: the next look will tell."""
        failpoint("after_delete")
        if is_armed("in_commit"):
            self._connection.pgconn.send_query(b"COMMIT")
        failpoint("in_commit")
        self._connection.execute("COMMIT")
        failpoint("after_commit")

    def set_savepoint(self) -> None:
        """Begins a try within the unit. What it changes goes with `back_to_savepoint`."""
        self._connection.execute("SAVEPOINT try")

    def back_to_savepoint(self) -> None:
        """Takes back what was done since the savepoint. The lanes stay locked."""
        self._connection.execute("ROLLBACK TO SAVEPOINT try")

    def abandon(self) -> None:
        """Ends the unit and changes nothing."""
        self._connection.execute("ROLLBACK")

    def writers(self) -> list[str]:
        """Who holds a write lock on the outbox now."""
        return [row[0].decode() for row in self._all(queries.WRITERS, {})]

    def _all(self, query: Any, parameters: dict[str, Any]) -> list[Any]:
        with self._connection.cursor(binary=True) as cursor:
            return cursor.execute(query, parameters, prepare=True).fetchall()

    def _one(self, query: Any, parameters: dict[str, Any]) -> Any:
        return self._all(query, parameters)[0]
