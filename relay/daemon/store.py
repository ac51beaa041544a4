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
from relay.core.reach import ID_MAX, ends_of
from relay.daemon import queries
from relay.daemon.clocks import clocks
from relay.daemon.failpoints import failpoint, is_armed
from relay.daemon.floors import Floors, Server, View
from relay.daemon.lookout import FalteredError, Lookout, VoidError
from relay.daemon.unsettled import is_connection_lost
from relay.database import Connection

TID_ARRAY = 1010
TID = 27
BIGINT_ARRAY = 1016
BIGINT = 20
BY_LANE = {"floors", "ends"}
"""The parameters that are one number for each lane."""
CLAIMS_MAX = 3
"""How often a claim starts again at once, when what it relied on does not hold."""


class Tids(bytes):
    """A `tid[]` in the wire's binary form."""

    @classmethod
    def of(cls, ctids: Sequence[bytes]) -> Tids:
        """From the six bytes that the database sent for each. Empty arrays have no dimension."""
        head = struct.pack(">iii", 1, 0, TID) + struct.pack(">ii", len(ctids), 1)
        return cls(head + b"".join([b"\0\0\0\6" + ctid for ctid in ctids]))


class Ids(bytes):
    """A `bigint[]` in the wire's binary form: psycopg takes a tenth of a claim to write one floor and end per lane."""

    @classmethod
    def of(cls, ids: Sequence[int]) -> Ids:
        """From numbers; at least one."""
        parts = [part for id_ in ids for part in (8, id_)]
        return cls(struct.pack(">iiiii" + "iq" * len(ids), 1, 0, BIGINT, len(ids), 1, *parts))


class TidsDumper(Dumper):
    """Sends Tids as they are."""

    format = Format.BINARY
    oid = TID_ARRAY

    def dump(self, obj: Any) -> bytes:
        """The bytes themselves."""
        return bytes(obj)


class IdsDumper(TidsDumper):
    """Sends Ids as they are."""

    oid = BIGINT_ARRAY


@dataclass(slots=True)
class Unit:
    """One unit of work: locked lanes, and their first rows in id order per lane."""

    view: View
    lanes: list[int]
    rows: list[Row]
    """In the shape of Row, as plain tuples: naming the columns of each row would cost a tenth of the drain rate."""
    claimed_at: float
    """Monotonic, before the lanes were locked."""
    asked: tuple[float, ...]
    """All clocks, right before the question whose answer are the rows."""
    now_ms: int
    """The database's time as of the claim."""
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
        connection.adapters.register_dumper(Ids, IdsDumper)
        # Keys and event ids go to Kafka as they come: decoding and encoding them again would be work for nothing.
        connection.adapters.register_loader("text", ByteaBinaryLoader)
        self._lookout = Lookout(self._all, floors, clock)
        if not connection.is_pooled:
            # For looks, which open no transaction.
            connection.execute(queries.PLANS.replace("SET LOCAL", "SET").encode())

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
        """Whether any lane has a row, be it locked by another relay; True as well if there is more to look through.

        No transaction is left open, and none is opened without a pooler.
        """
        is_pooled = self._connection.is_pooled
        if is_pooled:
            self._connection.execute(self._begin)
        try:
            sight = self._lookout.search()
        except (VoidError, FalteredError):
            return True
        finally:
            if is_pooled:
                self.abandon()
        return bool(sight.heads) or not (sight.has_seen_all or sight.is_stuck)

    def is_empty(self) -> bool:
        """Whether the outbox holds no visible row at all, paused topics and floors aside."""
        is_pooled = self._connection.is_pooled
        if is_pooled:
            self._connection.execute(self._begin)
        try:
            return not self._lookout.finds_any()
        finally:
            if is_pooled:
                self.abandon()

    def claim(self) -> Unit | None:
        """Locks free lanes that have work and reads their rows; None if there are none, with nothing left open."""
        for _ in range(CLAIMS_MAX):
            claimed_at = self._clock()
            self._connection.execute(self._begin)
            try:
                unit = self._claim(claimed_at)
            except (VoidError, FalteredError):
                self.abandon()
                continue
            if unit is None:
                self.abandon()
            return unit
        return None

    def _claim(self, claimed_at: float) -> Unit | None:
        view, ends = self._where_to_look()
        parameters = {"start": self._start, "lanes_max": min(self._lanes_max, self._rows_max)}
        with self._lookout.faltering(view):
            heads = self._all(queries.CLAIM, {**parameters, "floors": view.floors, "ends": ends, "paused": view.paused})
        if not heads:
            return None
        now_ms, started, origin, last_id = heads[0][4:]
        if not self._floors.is_still(view, Server(started, origin), last_id):
            raise VoidError
        lanes = [head[0] for head in heads]
        self._start = lanes[-1] + 1
        asked = clocks()
        rows = self._read(view, {head[0]: head[2] for head in heads})
        if any(row[8] is not None for row in rows):
            rows = self._with_large(rows)
        if not rows:
            return None
        unit = Unit(view, lanes, rows, claimed_at, asked, now_ms, max(head[3] for head in heads))
        if any(head[1] for head in heads):
            self._note_parked(unit)
        failpoint("after_claim")
        return unit

    def _where_to_look(self) -> tuple[View, list[int]]:
        """What is known, and how far to look in each lane.

        If that is not far enough to see everything, a look that locks nothing goes first. It raises the floors of the
        lanes that it walked through, and says which have a row: the claim would only return those that it locks.
        """
        view = self._lookout.view()
        if view.is_near:
            return view, [ID_MAX] * len(view.floors)
        sight = self._lookout.search()
        view = self._lookout.view()
        return view, [sight.heads.get(lane, -1) + 1 for lane in range(len(view.floors))]

    def _read(self, view: View, heads: dict[int, int]) -> list[Row]:
        """The first rows of the locked lanes, in id order per lane. Raises the floors to what it has seen."""
        limit = max(1, min(self._rows_max, int(self._bytes_max / self._row_bytes)))
        # Rows may have become visible since the claim, before the head and earlier in its key. Not below what is
        # proven: what the claim has walked there need not be walked again.
        floors = [max(view.floors[lane], min(head, view.proven + 1)) for lane, head in heads.items()]
        ends = [ID_MAX] * len(heads) if view.is_near else ends_of(floors, view.reach)
        rows_per_lane = max(1, limit // len(heads))
        began = self._clock()
        with self._lookout.faltering(view):
            rows = self._all(
                queries.READ,
                {
                    "lanes": list(heads),
                    "floors": floors,
                    "ends": ends,
                    "paused": view.paused,
                    "rows_per_lane": rows_per_lane,
                },
            )
        if view.pins and self._floors.pins_ended(view, self.writers()):
            # Rows of a long writer have become visible below the floors: they may belong before what was just read.
            raise VoidError
        if len(rows) < rows_per_lane * len(heads) and not view.is_near:
            self._floors.looked(view, self._clock() - began, has_seen_all=False)
        # Before large rows are left behind: a floor must not rise past what waits for a later unit.
        first = dict(zip(heads, ends, strict=True))
        for row in reversed(rows):
            first[row[0]] = row[1]
        self._floors.raise_to(view, first)
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
        # The words of others, into a database of any encoding: no character may keep an event from being parked.
        reason = reason.replace("\0", " ").encode("ascii", "backslashreplace").decode("ascii")
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

    def allows(self, change: Callable[[], None]) -> bool:
        """Tries a change of the open unit and takes it back; False if the database refuses it. The lanes stay locked.

        Raises:
            psycopg.Error: the connection is lost.
        """
        self._connection.execute("SAVEPOINT try")
        try:
            change()
        except MovedError:
            return False
        except psycopg.Error as error:
            if is_connection_lost(error):
                raise
            return False
        finally:
            if self.is_alive():
                self._connection.execute("ROLLBACK TO SAVEPOINT try")
        return True

    def abandon(self) -> None:
        """Ends the unit and changes nothing."""
        self._connection.execute("ROLLBACK")

    def writers(self) -> list[str]:
        """Who holds a write lock on the outbox now."""
        return [row[0].decode() for row in self._all(queries.WRITERS, {})]

    def _all(self, query: Any, parameters: dict[str, Any]) -> list[Any]:
        given = {name: Ids.of(value) if name in BY_LANE else value for name, value in parameters.items()}
        with self._connection.cursor(binary=True) as cursor:
            return cursor.execute(query, given, prepare=True).fetchall()

    def _one(self, query: Any, parameters: dict[str, Any]) -> Any:
        return self._all(query, parameters)[0]
