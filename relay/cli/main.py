"""The root command. Errors become one line on stderr and the exit code of their family."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import click

from relay import __version__
from relay.cli.rights import told
from relay.config import Settings, load, require_database
from relay.database import Connection, connect
from relay.errors import RelayError

OPERATOR_DEADLINE_SECONDS = 60.0
"""An operator waits longer than the daemon: counting a backlog of millions takes its time."""


COMMANDS: Final = (
    "demo",
    "db",
    "run",
    "doctor",
    "status",
    "top",
    "explain",
    "parked",
    "cache",
    "capture",
    "config",
    "completion",
)
"""In the order in which they are met; each is named as its module and as the function in it."""


class Root(click.Group):
    """A group whose commands may raise RelayError.

    Each is imported when it is asked for: all together take a third of a second, which every call would pay.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they are met, not in that of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"relay.cli.{cmd_name}"), cmd_name)
        return command

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


@contextmanager
def open_database(command: str) -> Iterator[Connection]:
    """A connection for one command, named after it in pg_stat_activity, closed at the end.

    Raises:
        GrantError: RLY-501, with what the role lacks for this command.
    """
    loaded = settings()
    connection = connect(
        require_database(loaded),
        f"relay {command.partition(' --')[0]}",
        connect_timeout_seconds=loaded.database.connect_timeout_seconds,
        deadline_seconds=OPERATOR_DEADLINE_SECONDS,
    )
    with told(connection, command):
        yield connection


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="relay")
def cli() -> None:
    """Moves committed events from Postgres to Kafka, in order per key, without losing one."""
