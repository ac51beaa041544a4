"""`relay db`: the schema, by command or as SQL to read first."""

from __future__ import annotations

import click

from relay.cli.main import settings
from relay.config import require_database
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
@click.option(
    "--from", "after", type=click.IntRange(0, VERSION), default=0, help="The version that is there."
)
@click.option("--to", "upto", type=click.IntRange(1, VERSION), default=VERSION, help="The version to reach.")
def sql(after: int, upto: int) -> None:
    """Print the same as plain SQL. Needs no connection."""
    click.echo(script(after, upto), nl=False)
