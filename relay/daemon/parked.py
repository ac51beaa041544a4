"""Parked events as an operator sees and treats them. What changes anything is one SQL function, `relay.unpark`.

Each event goes back in a transaction of its own, so a command that is interrupted has done some of its work and none by
half. Payloads, keys and header values are read only where the caller says `reveal`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from relay.core.event import SEPARATOR
from relay.database import Connection, explain
from relay.errors import OperatorError

# parked_pkey gives the order. Two of the lengths tell how large an event is, not what is in it.
LIST: LiteralString = """\
SELECT id, event_id, topic, policy, waits, code, reason, attempts, created_at, parked_at, overtaken_at,
       octet_length(key) AS key_bytes, octet_length(payload) AS payload_bytes
FROM relay.parked
WHERE (%(topic)s::text IS NULL OR topic = %(topic)s) AND (%(id)s::bigint IS NULL OR id = %(id)s)
ORDER BY id"""

HEADERS: LiteralString = "SELECT headers FROM relay.parked WHERE id = %(id)s"

CONTENT: LiteralString = "SELECT key, payload FROM relay.parked WHERE id = %(id)s"

# parked_key. Who blocks the key of an event: the broken event that its policy left in the key's way, if it is another.
BLOCKER: LiteralString = """\
SELECT b.id FROM relay.parked AS e
JOIN relay.parked AS b
     ON b.topic = e.topic AND b.key = e.key AND hashtextextended(b.key, 0) = hashtextextended(e.key, 0)
WHERE e.id = %(id)s AND b.id <> e.id AND NOT b.waits AND b.policy = 'block' ORDER BY b.id LIMIT 1"""

UNPARK: LiteralString = "SELECT relay.unpark(%(id)s, %(drop)s)"

PATIENCE_SECONDS = 15.0
"""How long a command tries to get the lock of a key: transactions that write it go first."""


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    """One parked event, without its content."""

    id: int
    event_id: UUID
    topic: str
    policy: str
    waits: bool
    """It is not broken itself: an earlier event blocks its key."""
    code: str
    reason: str
    attempts: int
    created_at: datetime
    parked_at: datetime
    overtaken_at: datetime | None
    """Since when events of its key have been published that came after it."""
    key_bytes: int | None
    payload_bytes: int | None


@dataclass(frozen=True, slots=True)
class Content:
    """What is in an event. Not for logs."""

    key: str | None
    headers: list[tuple[str, str]]
    payload: bytes | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """An event that was left alone, and why."""

    id: int
    error: OperatorError


@dataclass(frozen=True, slots=True)
class Result:
    """What became of the events that a command was to treat."""

    treated: list[int]
    """Went back, or are gone."""
    moved: int
    """Events that entered the outbox anew: those that went back, those that waited behind them, and those of their
    keys that have to stay behind."""
    refused: list[Refusal]


def find_all(connection: Connection, topic: str | None = None) -> list[ParkedEvent]:
    """All parked events in id order, of one topic if it is named."""
    return _events(connection, {"topic": topic, "id": None})


def find(connection: Connection, id_: int) -> ParkedEvent:
    """One parked event.

    Raises:
        OperatorError: RLY-601, there is none with this id.
    """
    found = _events(connection, {"topic": None, "id": id_})
    if not found:
        raise _unknown(id_)
    return found[0]


def header_names(connection: Connection, id_: int) -> list[str]:
    """The names of its headers. Their values may hold the entity's id, and belong to the content."""
    return [name for name, _ in _headers(connection, id_)]


def reveal(connection: Connection, id_: int) -> Content:
    """What is in it."""
    row = _one(connection, CONTENT, {"id": id_})
    if row is None:
        raise _unknown(id_)
    return Content(row[0], _headers(connection, id_), None if row[1] is None else bytes(row[1]))


def retry(connection: Connection, id_: int, *, even_if_overtaken: bool) -> Result:
    """Sends one parked event to the outbox again, before the events of its key that came after it.

    Raises:
        OperatorError: RLY-601, 602, 603 or 605, and nothing was changed.
    """
    refusal = _refusal(connection, find(connection, id_), even_if_overtaken=even_if_overtaken)
    if refusal:
        raise refusal
    return Result([id_], _unpark(connection, id_, drop=False), [])


def drop(connection: Connection, id_: int) -> Result:
    """Deletes one parked event for good; those that waited behind it go on.

    Raises:
        OperatorError: RLY-601, 603 or 605, and nothing was changed.
    """
    refusal = _refusal(connection, find(connection, id_), even_if_overtaken=True)
    if refusal:
        raise refusal
    return Result([id_], _unpark(connection, id_, drop=True), [])


def retry_all(connection: Connection, topic: str | None, *, even_if_overtaken: bool) -> Result:
    """As `retry` for each broken event, in id order; what waits behind one goes with it."""
    # Looked at once, before the first goes back: as soon as it is published, it counts as an event that overtook the
    # next parked one of its key, which it did not.
    return _each(connection, topic, drop=False, even_if_overtaken=even_if_overtaken)


def drop_all(connection: Connection, topic: str | None) -> Result:
    """As `drop` for each broken event, in id order; what waits behind one is not broken, and goes on."""
    return _each(connection, topic, drop=True, even_if_overtaken=True)


def _each(connection: Connection, topic: str | None, *, drop: bool, even_if_overtaken: bool) -> Result:
    treated: list[int] = []
    refused: list[Refusal] = []
    moved = 0
    for event in find_all(connection, topic):
        if event.waits and _blocker(connection, event.id) is not None:
            continue
        try:
            refusal = _refusal(connection, event, even_if_overtaken=even_if_overtaken)
            if refusal:
                raise refusal
            moved += _unpark(connection, event.id, drop=drop)
            treated.append(event.id)
        except OperatorError as error:
            # Gone in between: it went along with the one it waited for, or somebody else treated it.
            if error.code != "RLY-601":
                refused.append(Refusal(event.id, error))
    return Result(treated, moved, refused)


def _refusal(connection: Connection, event: ParkedEvent, *, even_if_overtaken: bool) -> OperatorError | None:
    """Why this event has to be left alone, if it has to."""
    blocker = _blocker(connection, event.id)
    if blocker is not None:
        return OperatorError(
            "RLY-603",
            f"parked event {event.id} waits for event {blocker} of its key",
            f"treat {blocker} first: `relay parked retry {blocker}` or `relay parked drop {blocker} --yes`",
        )
    if event.overtaken_at is not None and not even_if_overtaken:
        return OperatorError(
            "RLY-602",
            f"parked event {event.id} has been overtaken: other events of its key were published"
            f" since {event.overtaken_at:%Y-%m-%d %H:%M:%S %Z}",
            "drop it, or add --even-if-overtaken if its consumers compare versions",
        )
    return None


def _unpark(connection: Connection, id_: int, *, drop: bool) -> int:
    """Waits for the key in small portions: see relay.unpark, which needs the isolation level of this transaction."""
    until = time.monotonic() + PATIENCE_SECONDS
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    while True:
        try:
            with connection.transaction():
                row = connection.execute(UNPARK, {"id": id_, "drop": drop}).fetchone()
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() < until:
                continue
            raise OperatorError(
                "RLY-605",
                f"parked event {id_} cannot be treated now: a transaction that writes its key, or a relay, is at it",
                "try again when that has ended",
            ) from None
        except psycopg.Error as error:
            raise explain(error) from None
        if row is None or row[0] is None:
            raise _unknown(id_)
        return int(row[0])


def _unknown(id_: int) -> OperatorError:
    return OperatorError("RLY-601", f"there is no parked event {id_}", "see `relay parked list`")


def _blocker(connection: Connection, id_: int) -> int | None:
    row = _one(connection, BLOCKER, {"id": id_})
    return None if row is None else int(row[0])


def _headers(connection: Connection, id_: int) -> list[tuple[str, str]]:
    row = _one(connection, HEADERS, {"id": id_})
    parts = iter(str(row[0]).split(SEPARATOR) if row else [])
    return list(zip(parts, parts, strict=False))


def _events(connection: Connection, parameters: dict[str, Any]) -> list[ParkedEvent]:
    try:
        with connection.cursor(row_factory=class_row(ParkedEvent)) as cursor:
            return cursor.execute(LIST, parameters).fetchall()
    except psycopg.Error as error:
        raise explain(error) from None


def _one(connection: Connection, query: LiteralString, parameters: dict[str, Any]) -> Any:
    try:
        return connection.execute(query, parameters).fetchone()
    except psycopg.Error as error:
        raise explain(error) from None
