"""`relay capture`: tables whose changes are events, whoever makes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import click

from relay.cli.columns import columns as in_columns
from relay.cli.main import open_database
from relay.database import Connection
from relay.schema.capture import Captured, Rules, capture_statement, captures, uncapture, uncapture_statement
from relay.schema.capture import capture as run_capture
from relay.schema.install import require_version

STEP = 2
"""The step of the schema that brought it."""

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="JSON for scripts.")
SQL_OPTION = click.option("--sql", "as_sql", is_flag=True, help="Print the SQL instead. Needs no connection.")
TABLES = click.argument("tables", metavar="TABLE...", nargs=-1, required=True)


@click.group()
def capture() -> None:
    """Triggers that turn the changes of a table into events."""


@capture.command()
@TABLES
@click.option("--entity", help="The entity's name; the table's by default.")
@click.option("--topic", help="Where its events go; relay.changes by default.")
@click.option("--key", "key", multiple=True, metavar="COLUMN", help="Makes the id; the primary key by default.")
@click.option(
    "--column", "columns", multiple=True, metavar="COLUMN", help="An update counts only if one of these changed."
)
@click.option("--any-column", is_flag=True, help="An update counts whatever changed: the default, to go back to it.")
@SQL_OPTION
@JSON_OPTION
def add(
    tables: tuple[str, ...],
    *,
    entity: str | None,
    topic: str | None,
    key: tuple[str, ...],
    columns: tuple[str, ...],
    any_column: bool,
    as_sql: bool,
    as_json: bool,
) -> None:
    """Capture tables, with their partitions. Again: covers new partitions, and changes only what is said.

    A TABLE is named as in SQL. Its writers wait for a moment, and none fails.
    """
    if entity is not None and len(tables) > 1:
        raise click.UsageError("--entity goes with one TABLE")
    if columns and any_column:
        raise click.UsageError("name columns, or --any-column")
    rules = Rules(entity, key or None, [] if any_column else columns or None, topic)
    if as_sql:
        for table in tables:
            click.echo(capture_statement(table, rules).as_string(None) + ";")
        return
    with _open("add") as connection:
        done = {table: run_capture(connection, table, rules) for table in tables}
        found = {each.table: each for each in captures(connection)}
    if as_json:
        click.echo(json.dumps([asdict(found[names[0]]) for names in done.values()]))
        return
    for names in done.values():
        each = found[names[0]]
        click.echo(f"captured {each.table} as {each.entity}, to {each.topic}{_and_parts(len(names) - 1)}")


@capture.command()
@TABLES
@SQL_OPTION
@JSON_OPTION
def remove(tables: tuple[str, ...], as_sql: bool, as_json: bool) -> None:
    """Capture tables no longer. Events that are written stay, and so do versions."""
    if as_sql:
        for table in tables:
            click.echo(uncapture_statement(table).as_string(None) + ";")
        return
    with _open("remove") as connection:
        done = {table: uncapture(connection, table) for table in tables}
    if as_json:
        click.echo(json.dumps({"removed": [name for names in done.values() for name in names]}))
        return
    for table, names in done.items():
        click.echo(f"{table} is captured no more{_and_parts(len(names) - 1)}")


@capture.command("list", short_help="List captured tables, and whether all of them is covered.")
@JSON_OPTION
def list_(as_json: bool) -> None:
    """List captured tables: as which entity, by which key, and whether all of it is covered."""
    with _open("list") as connection:
        found = captures(connection)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found]))
        return
    shown = [each for each in found if not each.is_part]
    if not shown:
        click.echo("nothing is captured")
        return
    rows = [("table", "entity", "key", "updates of", "state"), *(_row(each) for each in shown)]
    click.echo("\n".join(in_columns(rows, (22, 14, 12, 12, 12))))


@contextmanager
def _open(command: str) -> Iterator[Connection]:
    with open_database(f"capture {command}") as connection:
        require_version(connection, STEP)
        yield connection


def _row(each: Captured) -> tuple[str, ...]:
    columns = "any column" if each.columns is None else ",".join(each.columns)
    return each.table, each.entity, ",".join(each.key), columns, _state(each)


def _state(each: Captured) -> str:
    """In a word. What is missing is covered by adding the table again."""
    if not each.is_complete:
        return "disabled"
    if each.missing:
        return f"{len(each.missing)} missing"
    return "complete"


def _and_parts(count: int) -> str:
    return f", with {count} partition{'' if count == 1 else 's'}" if count else ""
