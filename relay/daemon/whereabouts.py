"""Where one event, or the events of one key, are in the database, and who stands in their way. Reads, locks nothing.

What a transaction has written and not committed is seen by nobody, and nothing tells which events it holds. What can be
told: who holds the lock of a key, and who has written to the outbox at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, LiteralString, TypeVar
from uuid import UUID

import psycopg
from psycopg import IsolationLevel
from psycopg.rows import class_row

from relay.daemon.overview import SESSIONS
from relay.database import Connection, explain

T = TypeVar("T")

SHOWN_MAX = 20
OTHERS = "what sessions of other roles do, and since when (GRANT pg_read_all_stats shows it)"

# Walks the backlog: there is no index on event_id, since it would cost every event more than this costs one question.
BY_EVENT: LiteralString = """\
SELECT id, event_id::text, topic, lane, extract(epoch FROM clock_timestamp() - created_at)::float8 AS age_seconds,
       (SELECT count(*) FROM relay.outbox AS b WHERE b.lane = o.lane AND b.id < o.id) AS before_in_lane
FROM relay.outbox AS o WHERE event_id = %(event)s"""

# outbox_pkey: the events of a key are in one lane.
BY_KEY: LiteralString = """\
SELECT id, event_id::text, topic, lane, extract(epoch FROM clock_timestamp() - created_at)::float8 AS age_seconds,
       (SELECT count(*) FROM relay.outbox AS b WHERE b.lane = o.lane AND b.id < o.id) AS before_in_lane
FROM relay.outbox AS o
WHERE lane = (hashtextextended(%(key)s, 0) & (SELECT count(*) - 1 FROM relay.lane))::smallint
  AND key = %(key)s AND (%(topic)s::text IS NULL OR topic = %(topic)s)
ORDER BY id LIMIT %(limit)s"""

LANE_OF_KEY: LiteralString = """\
SELECT (hashtextextended(%(key)s, 0) & (SELECT count(*) - 1 FROM relay.lane))::integer"""

# parked has an index by (topic, key); by event it is small enough to be walked.
PARKED_BY_EVENT: LiteralString = """\
SELECT id, event_id::text, topic, policy, waits, code, reason,
       extract(epoch FROM clock_timestamp() - parked_at)::float8 AS parked_seconds
FROM relay.parked WHERE event_id = %(event)s"""

PARKED_BY_KEY: LiteralString = """\
SELECT id, event_id::text, topic, policy, waits, code, reason,
       extract(epoch FROM clock_timestamp() - parked_at)::float8 AS parked_seconds
FROM relay.parked WHERE key = %(key)s AND (%(topic)s::text IS NULL OR topic = %(topic)s) ORDER BY id LIMIT %(limit)s"""

# The broken event whose policy stops the key of an event that waits.
BLOCKER: LiteralString = """\
SELECT p.id FROM relay.outbox AS o JOIN relay.parked AS p ON p.topic = o.topic AND p.key = o.key
WHERE o.lane = %(lane)s AND o.id = %(id)s AND NOT p.waits AND p.policy = 'block' ORDER BY p.id LIMIT 1"""

# Who locked the row of a lane is in its xmax; see relay.daemon.overview.
LANE_HOLDER: LiteralString = """\
SELECT k.pid, a.application_name AS session, a.usename::text AS role, a.state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds
FROM pg_catalog.pg_locks AS k LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = k.pid
JOIN relay.lane AS l ON k.transactionid = l.xmax
WHERE k.locktype = 'transactionid' AND k.mode = 'ExclusiveLock' AND k.granted AND l.lane = %(lane)s"""

# The lock that emit takes of a key (relay.append_event), by its two halves.
KEY_HOLDERS: LiteralString = """\
SELECT k.pid, a.application_name AS session, a.usename::text AS role, a.state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds
FROM pg_catalog.pg_locks AS k LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = k.pid
WHERE k.locktype = 'advisory' AND k.granted AND k.objsubid = 1
  AND k.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
  AND k.classid = ((hashtextextended(%(key)s, 7236837) >> 32) & 4294967295)::oid
  AND k.objid = (hashtextextended(%(key)s, 7236837) & 4294967295)::oid"""

# The row that touch locks of an entity whose key this is.
VERSION_HOLDERS: LiteralString = """\
SELECT k.pid, a.application_name AS session, a.usename::text AS role, a.state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds
FROM pg_catalog.pg_locks AS k LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = k.pid
JOIN relay.entity_version AS v ON k.transactionid = v.xmax
WHERE k.locktype = 'transactionid' AND k.mode = 'ExclusiveLock' AND k.granted
  AND v.entity = split_part(%(key)s, ':', 1) AND v.id = substr(%(key)s, strpos(%(key)s, ':') + 1)"""

# Whoever has written to the outbox keeps this lock to the end of the transaction. So do relays, which remove from it.
WRITERS: LiteralString = """\
SELECT k.pid, a.application_name AS session, a.usename::text AS role, a.state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds
FROM pg_catalog.pg_locks AS k LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = k.pid
WHERE k.locktype = 'relation' AND k.relation = 'relay.outbox'::regclass AND k.granted
  AND k.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
  AND k.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
  AND coalesce(a.application_name, '') NOT LIKE 'relay worker %%'
ORDER BY seconds DESC NULLS LAST LIMIT %(limit)s"""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A committed event that Kafka has not acknowledged, as far as the database knows."""

    id: int
    event_id: str
    topic: str
    lane: int
    age_seconds: float
    before_in_lane: int


@dataclass(frozen=True, slots=True)
class Aside:
    """A parked event."""

    id: int
    event_id: str
    topic: str
    policy: str
    waits: bool
    code: str
    reason: str
    parked_seconds: float


@dataclass(frozen=True, slots=True)
class Holder:
    """A session that holds a lock, and its transaction; None where this role may not see it, or nobody is connected."""

    pid: int | None
    session: str | None
    role: str | None
    state: str | None
    seconds: float | None

    @property
    def is_hidden(self) -> bool:
        """Whether it is the session of another role, of which this one may not see more."""
        return self.pid is not None and self.seconds is None


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """What the database tells, in one snapshot; locks and sessions are from just after it."""

    waiting: list[Waiting]
    parked: list[Aside]
    lane: int | None
    lane_holders: list[Holder]
    blocked_by: int | None
    """The parked event that blocks the key of the first that waits."""
    key_holders: list[Holder]
    writers: list[Holder]
    relays: int
    """Sessions of relays that are connected."""
    hidden: list[str]
    """What this role may not see."""


def find(connection: Connection, *, event: UUID | None, key: str | None, topic: str | None) -> Whereabouts:
    """Looks for one event, or for all of a key.

    Raises:
        SchemaError, GrantError, UnreachableError: as `relay.database.explain` says.
    """
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    given = {"event": event, "key": key, "topic": topic, "limit": SHOWN_MAX}
    try:
        with connection.transaction():
            return _find(_Reader(connection, given), by_key=key is not None)
    except psycopg.Error as error:
        raise explain(error) from None


class _Reader:
    """Runs queries with the same parameters, and notes what may not be read."""

    def __init__(self, connection: Connection, given: Mapping[str, Any]) -> None:
        self._connection = connection
        self._given = given
        self.hidden: list[str] = []

    def all(self, query: LiteralString, cls: type[T], **more: Any) -> list[T]:
        """Every row as an object of this class."""
        with self._connection.cursor(row_factory=class_row(cls)) as cursor:
            return cursor.execute(query, {**self._given, **more}).fetchall()

    def value(self, query: LiteralString, **more: Any) -> Any:
        """The first column of the first row, None if there is none."""
        row = self._connection.execute(query, {**self._given, **more}).fetchone()
        return row[0] if row else None

    def names(self) -> list[str]:
        """Of the sessions of this database."""
        return [name or "" for _, name in self._connection.execute(SESSIONS)]

    def allowed(self, what: str, otherwise: T, read: Callable[[], T]) -> T:
        """What `read` returns, or `otherwise` if this role has no right to it."""
        try:
            with self._connection.transaction():
                return read()
        except psycopg.errors.InsufficientPrivilege:
            self.hidden.append(what)
            return otherwise


def _find(read: _Reader, *, by_key: bool) -> Whereabouts:
    waiting = read.all(BY_KEY if by_key else BY_EVENT, Waiting)
    parked = read.all(PARKED_BY_KEY if by_key else PARKED_BY_EVENT, Aside)
    lane = waiting[0].lane if waiting else read.value(LANE_OF_KEY) if by_key else None
    blocked_by = None
    if waiting:
        first = waiting[0]
        blocked_by = read.allowed(
            "parked events of its key", None, lambda: read.value(BLOCKER, lane=first.lane, id=first.id)
        )
    key_holders: list[Holder] = []
    if by_key:
        nobody: list[Holder] = []
        key_holders = read.all(KEY_HOLDERS, Holder)
        key_holders += read.allowed("who changes its entity", nobody, lambda: read.all(VERSION_HOLDERS, Holder))
    lane_holders = read.all(LANE_HOLDER, Holder, lane=lane) if lane is not None else []
    writers = read.all(WRITERS, Holder)
    if any(one.is_hidden for one in (*lane_holders, *key_holders, *writers)):
        read.hidden.append(OTHERS)
    return Whereabouts(
        waiting=waiting,
        parked=parked,
        lane=lane,
        lane_holders=lane_holders,
        blocked_by=blocked_by,
        key_holders=key_holders,
        writers=writers,
        relays=sum(name.startswith(("relay worker ", "relay watch ")) for name in read.names()),
        hidden=read.hidden,
    )
