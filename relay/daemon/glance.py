"""One look at everything that moves, cheap enough for every second: no count walks more than 100,000 rows.

What is written and removed per second is read from the server's own statistics of the table, which sessions report
about once a second: no relay has to be asked, and no row is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import IsolationLevel
from psycopg.rows import class_row

from relay.daemon import queries
from relay.daemon.overview import LANES, SESSIONS
from relay.daemon.whereabouts import WRITERS, Holder
from relay.database import Connection, explain

ESTIMATED_MAX = 100_000
SHOWN_MAX = 20

MOVED: LiteralString = """\
SELECT extract(epoch FROM clock_timestamp())::float8, coalesce(n_tup_ins, 0), coalesce(n_tup_del, 0)
FROM pg_catalog.pg_stat_user_tables WHERE relid = 'relay.outbox'::regclass"""

PARKED: LiteralString = """\
SELECT topic, code, count(*) AS events,
       extract(epoch FROM clock_timestamp() - min(parked_at))::float8 AS oldest_seconds
FROM relay.parked GROUP BY topic, code ORDER BY events DESC, topic, code LIMIT %(limit)s"""


@dataclass(frozen=True, slots=True)
class ParkedGroup:
    """Parked events of one topic with one code."""

    topic: str
    code: str
    events: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Glance:
    """One moment."""

    at: float
    """The database's clock, in seconds."""
    inserted: int
    deleted: int
    topics: dict[str, int]
    """Events that wait, by topic; of ESTIMATED_MAX rows at most."""
    oldest_seconds: float
    lanes: int
    holders: dict[str, int]
    """Session name to the number of lanes that it holds."""
    relays: list[str]
    parked: list[ParkedGroup]
    writers: list[Holder]
    """Open transactions that have written to the outbox, the oldest first."""

    @property
    def hides_writers(self) -> bool:
        """Whether since when some of them are open is hidden from this role, as it lacks pg_read_all_stats."""
        return any(one.is_hidden for one in self.writers)

    @property
    def waiting(self) -> int:
        """Events in the outbox, ESTIMATED_MAX at most."""
        return sum(self.topics.values())

    @property
    def waiting_is_least(self) -> bool:
        """Whether there are that many or more."""
        return self.waiting >= ESTIMATED_MAX


def glance(connection: Connection) -> Glance:
    """Looks once, in one transaction that locks nothing.

    Raises:
        SchemaError, GrantError, UnreachableError: as `relay.database.explain` says.
    """
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    limit = {"limit": SHOWN_MAX}
    try:
        with connection.transaction():
            at, inserted, deleted = connection.execute(MOVED).fetchone() or (0.0, 0, 0)
            topics = dict(connection.execute(queries.BACKLOG_ESTIMATE).fetchall())
            lanes = connection.execute(LANES).fetchall()
            oldest = connection.execute(queries.OLDEST, {"floors": [0] * len(lanes)}).fetchone() or (0.0,)
            sessions = dict(connection.execute(SESSIONS).fetchall())
            with connection.cursor(row_factory=class_row(ParkedGroup)) as cursor:
                parked = cursor.execute(PARKED, limit).fetchall()
            with connection.cursor(row_factory=class_row(Holder)) as holders:
                writers = holders.execute(WRITERS, limit).fetchall()
    except psycopg.Error as error:
        raise explain(error) from None
    held: dict[str, int] = {}
    for _lane, pid in lanes:
        if pid is not None:
            name = sessions.get(pid) or f"pid {pid}"
            held[name] = held.get(name, 0) + 1
    return Glance(
        at=at,
        inserted=inserted,
        deleted=deleted,
        topics=topics,
        oldest_seconds=oldest[0],
        lanes=len(lanes),
        holders=held,
        relays=sorted({name.split(" ")[-1] for name in sessions.values() if name and name.startswith(WORKERS)}),
        parked=parked,
        writers=writers,
    )


WORKERS = ("relay worker ", "relay watch ")


def rates(glances: Sequence[Glance]) -> tuple[float, float]:
    """Events written and removed per second, from the first to the last of these; 0 if there is only one."""
    if len(glances) < 2:
        return 0.0, 0.0
    first, last = glances[0], glances[-1]
    seconds = last.at - first.at
    # Statistics go back to zero when somebody resets them, and after a crash of the server.
    if seconds <= 0 or last.inserted < first.inserted or last.deleted < first.deleted:
        return 0.0, 0.0
    return (last.inserted - first.inserted) / seconds, (last.deleted - first.deleted) / seconds
