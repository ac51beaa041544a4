"""Capture triggers: installing and removing them by the functions of the schema, and what is captured.

The functions do it all, so that psql, a migration and the command line do the same: `relay.capture` takes the lock in
short tries. What is asked here is a statement, to be run or to be read first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg.sql import SQL, Composable, Composed, Literal

from relay.database import Connection, explain
from relay.errors import OperatorError, RelayError

# Reads catalogs only. Partitions follow their table.
LIST: LiteralString = """\
SELECT relation::text, entity, topic, key, columns, is_complete, is_part, missing::text[]
FROM relay.captures ORDER BY relation::text
"""


@dataclass(frozen=True, slots=True)
class Rules:
    """What is said of a table; None leaves it to the function: what was said before, or else its default."""

    entity: str | None = None
    key: Sequence[str] | None = None
    columns: Sequence[str] | None = None
    topic: str | None = None


@dataclass(frozen=True, slots=True)
class Captured:
    """A table that has triggers of capture."""

    table: str
    entity: str
    topic: str
    key: list[str]
    columns: list[str] | None
    """Whose change matters; None if that of any does."""
    is_complete: bool
    """No trigger is missing or disabled."""
    is_part: bool
    """A partition or a child of another captured table."""
    missing: list[str]
    """Partitions and children without triggers."""


def capture_statement(table: str, rules: Rules) -> Composed:
    """The statement that captures a table, named as in SQL: quoted where it needs it, with its schema or without."""
    arguments: list[Composable] = [SQL("{}::regclass").format(Literal(table))]
    for name, value in (
        (SQL("entity"), rules.entity),
        (SQL("key"), None if rules.key is None else list(rules.key)),
        (SQL("columns"), None if rules.columns is None else list(rules.columns)),
        (SQL("topic"), rules.topic),
    ):
        if value is not None:
            arguments.append(SQL("{} => {}").format(name, Literal(value)))
    return SQL("SELECT relay.capture({})").format(SQL(", ").join(arguments))


def uncapture_statement(table: str) -> Composed:
    """The statement that ends it."""
    return SQL("SELECT relay.uncapture({}::regclass)").format(Literal(table))


def capture(connection: Connection, table: str, rules: Rules) -> list[str]:
    """Every change of the table's rows is an event of the transaction that makes it, from the next statement on.

    Writers wait while the triggers are created, and none fails. Locked for as long as the transaction is open: in a
    connection in autocommit for a moment.

    Returns:
        The tables that have the triggers now: this one and its partitions.

    Raises:
        OperatorError: RLY-140, 142, or RLY-101 and 102 for a name. Nothing was changed.
    """
    return _run(connection, capture_statement(table, rules), table)


def uncapture(connection: Connection, table: str) -> list[str]:
    """The table's changes are events no more. Those that are written stay.

    Raises:
        OperatorError: RLY-140, 141 or 142. Nothing was changed.
    """
    freed = _run(connection, uncapture_statement(table), table)
    if not freed:
        raise OperatorError("RLY-141", f"the table {table} is not captured", "see `relay capture list`")
    return freed


def captures(connection: Connection) -> list[Captured]:
    """All tables with triggers of capture, in the order of their names."""
    try:
        return [Captured(*row) for row in connection.execute(LIST)]
    except psycopg.Error as error:
        raise explain(error) from None


def _run(connection: Connection, statement: Composed, table: str) -> list[str]:
    try:
        row = connection.execute(SQL("SELECT ({})::text[]").format(statement)).fetchone()
    except psycopg.Error as error:
        raise _translated(error, table) from None
    return list(row[0]) if row else []


def _translated(error: psycopg.Error, table: str) -> RelayError:
    """The functions' own refusals say code, fault and fix. Names of tables and columns are no secrets."""
    diag: Any = error.diag
    state, message = error.sqlstate or "", diag.message_primary or ""
    if state.startswith("RL"):
        code = f"RLY-{state[2:]}"
        return OperatorError(code, message.removeprefix(f"{code}: "), (diag.message_hint or "").rstrip("."))
    if state in ("42P01", "3F000", "42602"):
        return OperatorError(
            "RLY-140", f"there is no table {table}", "name it as in SQL: schema.table, quoted if need be"
        )
    if state == "42501":
        what = message.removeprefix("permission denied for ").removeprefix("must be ")
        return OperatorError(
            "RLY-140",
            f"the database role may not capture {table}: {what}",
            "use the role that owns the table, with the rights of the owner of the schema relay",
        )
    return explain(error)
