"""The root command. Errors become one line on stderr and the exit code of their family."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import click

from relay import __version__
from relay.config import Settings, load, require_database
from relay.database import Connection, connect
from relay.errors import RelayError

OPERATOR_DEADLINE_SECONDS = 60.0
"""An operator waits longer than the daemon: counting a backlog of millions takes its time."""


class Root(click.Group):
    """A group whose commands may raise RelayError."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are met, not in that of the alphabet."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; a RelayError ends the process with its line and its exit code."""
        try:
            return super().invoke(ctx)
        except RelayError as error:
            fail(error)


def fail(error: RelayError) -> NoReturn:
    """Says one line and exits with the family's code."""
    click.echo(str(error), err=True)
    raise SystemExit(error.exit_code)


def settings() -> Settings:
    """The settings of this process, from its environment."""
    return load(os.environ)


def open_database(command: str) -> Connection:
    """A connection for one command, named after it in pg_stat_activity."""
    loaded = settings()
    return connect(
        require_database(loaded),
        f"relay {command}",
        connect_timeout_seconds=loaded.database.connect_timeout_seconds,
        deadline_seconds=OPERATOR_DEADLINE_SECONDS,
    )


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="relay")
def cli() -> None:
    """Moves committed events from Postgres to Kafka, in order per key, without losing one."""


def register() -> None:
    """Adds the commands. Here and nowhere else; help lists them in this order."""
    from relay.cli.cache import cache
    from relay.cli.capture import capture
    from relay.cli.completion import completion
    from relay.cli.config import config
    from relay.cli.db import db
    from relay.cli.demo import demo
    from relay.cli.doctor import doctor
    from relay.cli.explain import explain
    from relay.cli.parked import parked
    from relay.cli.run import run
    from relay.cli.status import status
    from relay.cli.top import top

    for command in (demo, db, run, doctor, status, top, explain, parked, cache, capture, config, completion):
        cli.add_command(command)


register()
