"""The steps themselves, without a connection: what they are, and how they read as one script."""

from __future__ import annotations

from importlib import resources

VERSION = 3
"""The schema version that this code is written for; the number of the last step."""

OLDEST_SCHEMA = 1
"""The oldest schema version that this code works with, so that it may be rolled out before the schema is upgraded."""

LOCK_ID = 7236835
"""Advisory lock that lets one upgrade run at a time (the ids 7236835 to 7236838 belong to Relay)."""

BASE = """\
CREATE SCHEMA IF NOT EXISTS relay;
-- Which steps have run: a table, because a comment is lost in some restores and a lost version repeats every step.
-- oldest_code is the VERSION of the oldest code that works with the step: what only adds names an old one.
CREATE TABLE IF NOT EXISTS relay.schema_version (
    version     integer PRIMARY KEY,
    oldest_code integer NOT NULL CHECK (oldest_code <= version),
    applied_at  timestamptz NOT NULL DEFAULT now()
);
-- Which Alembic histories have brought the schema, and how far: it goes away with the last one that is downgraded.
CREATE TABLE IF NOT EXISTS relay.alembic_history (
    version_table text PRIMARY KEY,
    version       integer NOT NULL
);
"""


def step(version: int) -> str:
    """The SQL of one step, as it was released; its last statement notes it. A released step never changes.

    It must run as one statement of many, too: no transaction commands, no CONCURRENTLY (`relay.schema.blocks`).
    """
    return resources.files("relay.schema").joinpath("steps", f"{version:04d}.sql").read_text(encoding="utf-8")


def step_back(version: int) -> str | None:
    """The SQL that undoes one step without losing events; None if nothing can. The first goes with the schema."""
    file = resources.files("relay.schema").joinpath("steps", f"{version:04d}.down.sql")
    return file.read_text(encoding="utf-8") if file.is_file() else None


def script(after: int = 0, upto: int = VERSION) -> str:
    """One transaction of plain SQL that takes a database from schema version `after` to `upto`, for psql or a DBA."""
    parts = [
        "-- Relay: schema versions " + (f"{after + 1} to {upto}" if upto > after + 1 else str(upto)),
        "-- It waits a second for each lock, so that no writer queues up behind it for longer. After a lock time-out,",
        "-- as after any other error, nothing has changed: run it again.",
        "BEGIN ISOLATION LEVEL READ COMMITTED;",
        "SET LOCAL lock_timeout = '1s';",
        "SET LOCAL search_path = pg_catalog, pg_temp;",
        "SET LOCAL plpgsql.extra_errors = 'none';",
        "SELECT pg_advisory_xact_lock(" + str(LOCK_ID) + ");",
        *([BASE] if after == 0 else []),
    ]
    parts += [step(version) for version in range(after + 1, upto + 1)]
    return "\n".join([*parts, "COMMIT;", ""])
