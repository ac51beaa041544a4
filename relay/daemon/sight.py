"""Whether a relay sees all that it has to publish, every lane and row. What it does not see looks like no work."""

from __future__ import annotations

import psycopg

from relay.daemon import queries
from relay.database import Connection, explain
from relay.errors import RelayError, SchemaError

LANES = 64
"""What step 1 of the schema makes, and `relay.lane_of` spreads keys over."""

OF_THE_SCHEMA = {"42501", "42P01", "3F000", "42703"}
"""SQLSTATEs that say something about tables and rights. Any other one is about the connection or the server."""


def hidden(connection: Connection) -> RelayError | None:
    """Returns what hides lanes or rows from this connection's role, or None.

    Raises:
        psycopg.Error: the database did not answer.
    """
    try:
        # A transaction, since through a pooler only that has our settings.
        with connection.transaction():
            row = connection.execute(queries.SIGHT).fetchone()
    except psycopg.Error as error:
        if error.sqlstate not in OF_THE_SCHEMA:
            raise
        return explain(error)
    missing = list(row[0]) if row else []
    if not missing:
        return None
    named = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
    return SchemaError(
        "RLY-802",
        f"{len(missing)} of {LANES} lanes are missing in relay.lane: {named}",
        "run the SQL that docs/ERRORS.md gives for RLY-802; events of a missing lane are never published",
    )
