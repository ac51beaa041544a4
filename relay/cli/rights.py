"""What a command needs of the database, so that a role that lacks it is told what, and who has it.

Postgres names the table that it refuses, never the column, and says nothing of what else is missing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, LiteralString, NamedTuple

import psycopg

from relay.database import Connection
from relay.errors import GrantError

USAGE: LiteralString = "SELECT pg_catalog.has_schema_privilege('relay', 'USAGE')"
ON_TABLE: LiteralString = "SELECT pg_catalog.has_table_privilege(%(on)s, 'SELECT')"
ON_COLUMN: LiteralString = "SELECT pg_catalog.has_column_privilege(%(on)s, %(column)s, 'SELECT')"
ON_FUNCTION: LiteralString = "SELECT pg_catalog.has_function_privilege(%(on)s, 'EXECUTE')"

VERSION: Final[Mapping[str, tuple[str, ...]]] = {"relay.schema_version": ()}
OVERVIEW: Final[Mapping[str, tuple[str, ...]]] = {
    **VERSION,
    "relay.lane": (),
    "relay.outbox": ("id", "lane", "event_id", "created_at", "topic"),
    "relay.parked": (
        "id", "lane", "event_id", "created_at", "topic", "parked_at", "policy", "waits", "code", "reason", "attempts",
        "overtaken_at",
    ),
}  # fmt: skip
"""What `relay db grants --monitor` gives."""


class Needs(NamedTuple):
    """What a command needs, and for whom it is."""

    part: str
    """The option of `relay db grants` that gives it."""
    reads: Mapping[str, tuple[str, ...]]
    """Table to columns; none where it is the whole table."""
    calls: tuple[str, ...] = ()


NEEDS: Final = {
    "db check": Needs("monitor", VERSION),
    "status": Needs("monitor", OVERVIEW),
    "top": Needs("monitor", OVERVIEW),
    "explain": Needs("monitor", OVERVIEW),
    "explain --key": Needs(
        "admin", {**OVERVIEW, "relay.outbox": (*OVERVIEW["relay.outbox"], "key"), "relay.parked": ()}
    ),
    "parked list": Needs("admin", {**VERSION, "relay.parked": ()}),
    "parked show": Needs("admin", {**VERSION, "relay.parked": ()}),
    "parked retry": Needs("admin", {**VERSION, "relay.parked": ()}, ("relay.unpark(bigint, boolean)",)),
    "parked drop": Needs("admin", {**VERSION, "relay.parked": ()}, ("relay.unpark(bigint, boolean)",)),
    "capture list": Needs("monitor", {**VERSION, "relay.captures": ()}, ("relay.capture_tree(regclass)",)),
    "capture add": Needs("", VERSION),
    "capture remove": Needs("", VERSION),
    "cache verify": Needs("reader", {**VERSION, "relay.entity_version": ()}),
}
"""Command to what it needs. Capturing is for the owner of the table, which no grant of ours makes of a role."""


@contextmanager
def told(connection: Connection, command: str) -> Iterator[Connection]:
    """Closes the connection at the end. A right that the command lacks is named, with what to do about it.

    Raises:
        GrantError: RLY-501.
    """
    try:
        yield connection
    except GrantError as error:
        raise named(connection, command, error) from None
    finally:
        connection.close()


def named(connection: Connection, command: str, error: GrantError) -> GrantError:
    """Returns the error with what the role lacks; or as it was, where none of these rights is missing."""
    needs = NEEDS[command]
    try:
        missing = lacking(connection, needs)
    except psycopg.Error:
        return error
    if not missing:
        return error
    role = connection.info.user
    message = f"the database role {role} lacks {', '.join(missing)}, which `relay {command}` needs"
    if not needs.part:
        return GrantError(error.code, message, "use the role that owns the table, or the schema relay")
    prints = f"`relay db grants --{needs.part} {shlex.quote(role)}` prints"
    fix = f"connect as a role that was granted --{needs.part}, or have the owner of the schema relay run the SQL that"
    return GrantError(error.code, message, f"{fix} {prints}")


def lacking(connection: Connection, needs: Needs) -> list[str]:
    """Returns the rights that the role of the session lacks, each in words of GRANT.

    Raises:
        psycopg.Error: the database does not answer, or has no such table.
    """
    if not _holds(connection, USAGE):
        # Without it no name in the schema can be looked up.
        return ["USAGE on schema relay"]
    missing = []
    for table, columns in needs.reads.items():
        if _holds(connection, ON_TABLE, on=table):
            continue
        without = [name for name in columns if not _holds(connection, ON_COLUMN, on=table, column=name)]
        if without or not columns:
            missing.append(f"SELECT{' (' + ', '.join(without) + ')' if columns else ''} on {table}")
    missing += [
        f"EXECUTE on {function}" for function in needs.calls if not _holds(connection, ON_FUNCTION, on=function)
    ]
    return missing


def _holds(connection: Connection, query: LiteralString, **given: str) -> bool:
    row = connection.execute(query, given).fetchone()
    return bool(row and row[0])
