"""The steps themselves, without a connection: what they are, and how they read as one script."""

from __future__ import annotations

from importlib import resources

VERSION = 1
"""The schema version that this code is written for; the number of the last step."""

LOCK_ID = 7236835
"""Advisory lock that lets one upgrade run at a time (the ids 7236835 to 7236837 belong to Relay)."""

BASE = """\
CREATE SCHEMA IF NOT EXISTS relay;
-- Which steps have run: a table, because a comment is lost in some restores and a lost version repeats every step.
CREATE TABLE IF NOT EXISTS relay.schema_version (
    version    integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);
"""


def step(version: int) -> str:
    """The SQL of one step, as it was released; its last statement notes it. A released step never changes."""
    return resources.files("relay.schema").joinpath("steps", f"{version:04d}.sql").read_text(encoding="utf-8")


def script(after: int = 0, upto: int = VERSION) -> str:
    """One transaction of plain SQL that takes a database from schema version `after` to `upto`, for psql or a DBA."""
    parts = [
        "-- Relay: schema versions " + (f"{after + 1} to {upto}" if upto > after + 1 else str(upto)),
        "BEGIN;",
        "SET LOCAL lock_timeout = '5s';",
        "SET LOCAL search_path = pg_catalog, pg_temp;",
        "SELECT pg_advisory_xact_lock(" + str(LOCK_ID) + ");",
        *([BASE] if after == 0 else []),
    ]
    parts += [step(version) for version in range(after + 1, upto + 1)]
    return "\n".join([*parts, "COMMIT;", ""])
