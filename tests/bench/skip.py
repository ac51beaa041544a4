"""From a start to the first event of a healthy topic, with twelve million rows in the way.

Two kinds of rows: events that wait for a topic that is missing, and events that were delivered while somebody keeps an
old snapshot, so that no vacuum can clean up behind the relay. Both again after the database has ended all sessions of
the relay, since a relay forgets with them what it had proven.
"""

from __future__ import annotations

import time

import psycopg

from tests.bench.holders import snapshot
from tests.bench.load import EMIT
from tests.bench.parts import SCALE, Bench, bench, execute, fill, report
from tests.support.nemesis import end_sessions
from tests.support.relay_process import NOTHING, RelayProcess
from tests.support.scenario import ask
from tests.support.topic import count_records

ROWS = max(20_000, int(12_000_000 * SCALE))
BAR_SECONDS = 5.0
GIVE_UP_SECONDS = 120.0
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'relay %'"


def first_event(setup: Bench, connection: psycopg.Connection) -> tuple[float, int]:
    """Seconds from the commit of one event to its arrival, and the most sessions that the relay had meanwhile."""
    topic = setup.topic()
    connection.execute(EMIT, (topic, "key", "x" * 240))
    committed, sessions = time.monotonic(), 0
    while not count_records(setup.kafka.bootstrap, topic):
        sessions = max(sessions, ask(setup.dsn, SESSIONS))
        if time.monotonic() > committed + GIVE_UP_SECONDS:
            break
    return time.monotonic() - committed, sessions


def measure(setup: Bench, name: str, empty: float | None = None) -> float:
    """Starts a relay on what is there, and ends its sessions once; prints both figures and returns the first."""
    with (
        psycopg.connect(setup.dsn, autocommit=True) as connection,
        RelayProcess(setup.dsn, setup.kafka.bootstrap, base=NOTHING) as relay,
    ):
        relay.wait_started()
        found = {"first event": first_event(setup, connection)}
        end_sessions(setup.dsn, relay)
        found["reconnected"] = first_event(setup, connection)
    limit = empty or found["first event"][0]
    for when, (seconds, sessions) in found.items():
        figure = f"{seconds:.1f} s" if seconds < GIVE_UP_SECONDS else f"none in {GIVE_UP_SECONDS:.0f} s"
        print(f"  {name}, {when}: at most {sessions} sessions", flush=True)
        report(
            f"{name}, {when}", figure, f"empty outbox {limit:.1f} s", seconds / limit,
            f"<= {BAR_SECONDS:g} s", seconds <= BAR_SECONDS,
        )  # fmt: skip
    return found["first event"][0]


def skip() -> None:
    """An empty outbox, then one full of events without a topic, then one full of what was delivered."""
    with bench() as setup:
        empty = measure(setup, "empty")
        fill(setup.dsn, "bench-missing", ROWS)
        execute(setup.dsn, "VACUUM ANALYZE relay.outbox")
        measure(setup, f"{ROWS / 1e6:g} M waiting", empty)
        with snapshot(setup):
            # Autovacuum comes long before so many rows are dead. Whoever reads a page first after its rows were deleted
            # writes it back: a plain count(*) of these takes 46 s then, as long as the disk needs.
            execute(setup.dsn, "DELETE FROM relay.outbox", "VACUUM relay.outbox", "CHECKPOINT")
            measure(setup, f"{ROWS / 1e6:g} M delivered", empty)
        measure(setup, "snapshot ended", empty)
