"""What an operator sees of one database at one moment: backlog, parked events, and who holds which lanes.

Locks nothing and needs no more than reading. Who holds a lane is written in its row: `xmax` is the transaction that
locked it, and pg_locks says which session that transaction belongs to. (Trying to lock the lanes with SKIP LOCKED would
count the free ones, but take them from the relays for that moment.) What a relay knows of Kafka is in its own /readyz.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import IsolationLevel

from relay.database import Connection, explain

# Walks the whole backlog, which is what counting it means: 10 million events take seconds.
TOPICS: LiteralString = """\
SELECT topic, count(*), extract(epoch FROM clock_timestamp() - min(created_at))::float8
FROM relay.outbox GROUP BY topic ORDER BY topic"""

PARKED: LiteralString = """\
SELECT count(*) FILTER (WHERE NOT waits), count(*) FILTER (WHERE waits),
       extract(epoch FROM clock_timestamp() - min(parked_at))::float8
FROM relay.parked"""

# A lock that has ended leaves its xmax behind; its transaction is in pg_locks no more.
LANES: LiteralString = """\
SELECT l.lane, k.pid FROM relay.lane AS l
LEFT JOIN pg_catalog.pg_locks AS k
  ON k.locktype = 'transactionid' AND k.transactionid = l.xmax AND k.mode = 'ExclusiveLock' AND k.granted
ORDER BY l.lane"""

# Pids and names of sessions are shown to any role; what they do is not, and is not asked for.
SESSIONS: LiteralString = """\
SELECT pid, application_name FROM pg_catalog.pg_stat_activity WHERE datname = current_database()"""


@dataclass(frozen=True, slots=True)
class TopicBacklog:
    """The events of one topic that Kafka has not acknowledged."""

    topic: str
    events: int
    oldest_age_seconds: float


@dataclass(frozen=True, slots=True)
class Overview:
    """One database, in one snapshot."""

    topics: list[TopicBacklog]
    parked_broken: int
    """Events that Kafka refused."""
    parked_waiting: int
    """Events that only wait behind one of those."""
    parked_oldest_age_seconds: float | None
    lanes: int
    holders: dict[str, int]
    """Session name to the number of lanes that it holds; `pid N` where there is no name."""
    relays: list[str]
    """Relay processes that are connected, by host and process id."""

    @property
    def backlog(self) -> int:
        """All events that wait for Kafka."""
        return sum(topic.events for topic in self.topics)

    @property
    def oldest_age_seconds(self) -> float:
        """The age of the oldest of them, 0 if there are none."""
        return max((topic.oldest_age_seconds for topic in self.topics), default=0.0)

    @property
    def lanes_held(self) -> int:
        """Lanes whose events are being published at this moment."""
        return sum(self.holders.values())


def look(connection: Connection) -> Overview:
    """The overview of one moment. Backlog and parked events are from one snapshot, sessions from just after it.

    Raises:
        SchemaError, GrantError, UnreachableError: as `relay.database.explain` says.
    """
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    try:
        with connection.transaction():
            topics = [TopicBacklog(*row) for row in connection.execute(TOPICS)]
            parked = connection.execute(PARKED).fetchone() or (0, 0, None)
            lanes = connection.execute(LANES).fetchall()
            sessions = dict(connection.execute(SESSIONS).fetchall())
    except psycopg.Error as error:
        raise explain(error) from None
    holders: dict[str, int] = {}
    for _lane, pid in lanes:
        if pid is not None:
            name = sessions.get(pid) or f"pid {pid}"
            holders[name] = holders.get(name, 0) + 1
    # "relay worker 0 HOST-PID": each process has several sessions and counts once.
    workers = (name for name in sessions.values() if name and name.startswith(("relay worker ", "relay watch ")))
    return Overview(
        topics=topics,
        parked_broken=parked[0],
        parked_waiting=parked[1],
        parked_oldest_age_seconds=parked[2],
        lanes=len(lanes),
        holders=holders,
        relays=sorted({name.split(" ")[-1] for name in workers}),
    )
