"""Installing the schema: idempotent, and safe from any number of processes at once."""

from __future__ import annotations

import time
from typing import LiteralString, NamedTuple

import psycopg
from psycopg import sql

from relay.database import Connection, connect, explain
from relay.errors import GrantError, SchemaError
from relay.schema.steps import BASE, LOCK_ID, OLDEST_SCHEMA, VERSION, step

LOCK_ATTEMPTS = 20

# plpgsql.extra_errors refuses what is right, as a variable that has the name of a parameter.
PINS: LiteralString = """\
SET LOCAL lock_timeout = '1s'; SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL plpgsql.extra_errors = 'none'"""

INSTALLED: LiteralString = "SELECT coalesce(max(version), 0), coalesce(max(oldest_code), 0) FROM relay.schema_version"


def upgrade(url: str) -> list[int]:
    """Takes the database to this code's schema version; returns the steps that were run, empty if there were none.

    Raises:
        SchemaError: the schema is newer than this code, or a lock could not be had. Nothing was changed.
        UnreachableError, GrantError: as they say. Nothing was changed.
    """
    with connect(url, "relay db upgrade", deadline_seconds=600) as connection:
        for attempt in range(1, LOCK_ATTEMPTS + 1):
            try:
                return _upgrade(connection)
            except psycopg.errors.LockNotAvailable:
                # Waiting longer in one go would queue every later statement of the application behind us.
                time.sleep(0.1 * attempt)
            except psycopg.errors.InsufficientPrivilege as error:
                what = (error.diag.message_primary or "").removeprefix("permission denied for ")
                raise GrantError(
                    "RLY-501",
                    f"the database role may not install or upgrade the schema: no right on {what}",
                    "use the database's owner, or the role that installed the schema relay",
                ) from None
            except (psycopg.errors.DuplicateTable, psycopg.errors.DuplicateFunction) as error:
                raise SchemaError(
                    "RLY-404",
                    f"the schema relay holds something else already: {error.diag.message_primary}",
                    "rename or drop it; Relay needs the schema relay for itself",
                ) from None
            except psycopg.Error as error:
                raise explain(error) from None
        raise SchemaError(
            "RLY-404",
            "the schema could not be upgraded: a lock was not to be had",
            "run it again at a quieter time",
        )


def _upgrade(connection: Connection) -> list[int]:
    with connection.transaction():
        connection.execute(PINS)
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_ID,))
        found = installed(connection)
        refuse_newer(found)
        steps = list(range(found.version + 1, VERSION + 1))
        if found.version == 0:
            connection.execute(sql.SQL(BASE))
        for version in steps:
            connection.execute(step(version).encode())
        return steps


class Installed(NamedTuple):
    """What the database says of itself."""

    version: int
    """The last step that has run; 0 where there is no schema."""
    oldest_code: int
    """The VERSION of the oldest code that works with all of them."""


def installed(connection: Connection) -> Installed:
    """The schema version of the database, and which code it takes."""
    found = connection.execute("SELECT to_regclass('relay.schema_version') IS NOT NULL").fetchone()
    if not (found and found[0]):
        return Installed(0, 0)
    row = connection.execute(INSTALLED).fetchone()
    return Installed(*row) if row else Installed(0, 0)


def refuse_newer(found: Installed) -> None:
    """Newer schemas say themselves whether this code knows enough to work with them."""
    if found.oldest_code > VERSION:
        raise SchemaError(
            "RLY-403",
            f"the schema relay has version {found.version}, which needs code for version {found.oldest_code} or newer;"
            f" this code knows {VERSION}",
            "install a newer relay",
        )


def require_version(connection: Connection, oldest: int = 0) -> Installed:
    """Refuses to work on a schema that does not fit; returns what was found.

    Args:
        oldest: the step that a later part came with, which it cannot do without.

    Raises:
        SchemaError: missing, too old or too new.
    """
    try:
        found = installed(connection)
    except psycopg.Error as error:
        raise explain(error) from None
    if found.version == 0:
        raise SchemaError("RLY-401", "the schema relay is missing in this database", "run `relay db upgrade`")
    needed = max(oldest, OLDEST_SCHEMA)
    if found.version < needed:
        raise SchemaError(
            "RLY-402", f"the schema relay has version {found.version}, needed is {needed}", "run `relay db upgrade`"
        )
    refuse_newer(found)
    return found
