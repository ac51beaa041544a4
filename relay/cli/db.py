"""`relay db`: the schema, by command or as SQL to read first."""

from __future__ import annotations

import json

import click

from relay.cli.main import open_database, settings
from relay.config import require_database
from relay.schema.grants import grants as grants_sql
from relay.schema.install import require_version
from relay.schema.install import upgrade as run_upgrade
from relay.schema.steps import VERSION, script


@click.group()
def db() -> None:
    """The schema `relay` in your database."""


@db.command()
def upgrade() -> None:
    """Create or upgrade the schema. Idempotent; safe from many processes at once."""
    steps = run_upgrade(require_database(settings()))
    done = f"upgraded to version {steps[-1]}" if steps else f"already at version {VERSION}"
    click.echo(f"schema relay: {done}")


@db.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check(as_json: bool) -> None:
    """Say whether the schema fits this version of Relay: exit code 0, or 4 with the reason."""
    with open_database("db check") as connection:
        require_version(connection)
    click.echo(json.dumps({"version": VERSION}) if as_json else f"schema relay: version {VERSION}, as needed")


@db.command()
@click.option("--from", "after", type=click.IntRange(0, VERSION), default=0, help="The version that is there.")
@click.option("--to", "upto", type=click.IntRange(1, VERSION), default=VERSION, help="The version to reach.")
def sql(after: int, upto: int) -> None:
    """Print the same as plain SQL. Needs no connection."""
    if after >= upto:
        raise click.UsageError(f"nothing leads from version {after} to {upto}")
    click.echo(script(after, upto), nl=False)


@db.command()
@click.option("--writer", multiple=True, metavar="ROLE", help="Applications that write events.")
@click.option("--relay", multiple=True, metavar="ROLE", help="The role of `relay run`.")
@click.option("--monitor", multiple=True, metavar="ROLE", help="The role of `relay status`; sees no content.")
@click.option("--admin", multiple=True, metavar="ROLE", help="The role of `relay parked`.")
def grants(writer: tuple[str, ...], relay: tuple[str, ...], monitor: tuple[str, ...], admin: tuple[str, ...]) -> None:
    """Print the rights that each role needs as SQL. Needs no connection; the roles must exist when it is run."""
    named = {"writer": writer, "relay": relay, "monitor": monitor, "admin": admin}
    roles = [(part, role) for part, names in named.items() for role in names]
    if not roles:
        raise click.UsageError("name at least one role: --writer, --relay, --monitor or --admin")
    if any(not role or "\0" in role for _, role in roles):
        raise click.UsageError("a role's name must not be empty")
    click.echo(grants_sql(roles), nl=False)
