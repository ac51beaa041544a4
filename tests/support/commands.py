"""The command line as operators start it: a process of its own, with only the settings that a test names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType

import psycopg

NOTHING: Mapping[str, str] = MappingProxyType({})

#: What `relay.daemon.queries.PARK` writes, for tests without a daemon.
PARK = """\
WITH moved AS (DELETE FROM relay.outbox WHERE id = ANY (%(ids)s) RETURNING *), parked AS (
    INSERT INTO relay.parked (id, lane, event_id, created_at, topic, key, headers, payload,
                              policy, waits, code, reason, attempts)
    SELECT id, lane, event_id, created_at, topic, key, headers, payload, %(policy)s, %(waits)s,
           CASE WHEN %(waits)s THEN 'RLY-704' ELSE 'RLY-703' END, 'Kafka refuses the event', 2 FROM moved
    RETURNING lane
), counted AS (SELECT lane, count(*) AS n FROM parked GROUP BY lane)
UPDATE relay.lane AS l SET parked = l.parked + c.n FROM counted AS c WHERE l.lane = c.lane"""


def relay(
    *arguments: str, settings: Mapping[str, str] = NOTHING, seconds: float = 60, cwd: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m relay ...` to its end."""
    # Nor what whoever runs the tests has set for Python: users' stdout is buffered.
    foreign = ("RELAY_", "PYTHONUNBUFFERED")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        env={**clean, **settings},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
    )


def emit(connection: psycopg.Connection, key: str | None, payload: str, topic: str = "t") -> int:
    """Writes one event and returns its id, which is read before a relay can have removed it."""
    with connection.transaction():
        statement = "SELECT relay.emit(%s::text, %s::text, %s::text)"
        event_id = connection.execute(statement, (topic, key, payload)).fetchone()[0]
        return connection.execute("SELECT id FROM relay.outbox WHERE event_id = %s", (event_id,)).fetchone()[0]


def park(connection: psycopg.Connection, *ids: int, policy: str = "park", waits: bool = False) -> None:
    """Parks events as the daemon does."""
    connection.execute(PARK, {"ids": list(ids), "policy": policy, "waits": waits})


def outbox(connection: psycopg.Connection) -> list[str]:
    """The payloads in the order in which a relay would read those of one key."""
    return [bytes(row[0]).decode() for row in connection.execute("SELECT payload FROM relay.outbox ORDER BY id")]
