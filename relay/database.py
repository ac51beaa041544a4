"""Connections to Postgres that do not hang, and database errors in words that name the fix.

A peer that vanished behind a proxy keeps acknowledging packets: neither `statement_timeout` nor TCP keep-alive notices.
So every call here has a deadline on the client's side that gives the connection up.
"""

from __future__ import annotations

from typing import Any, TypeVar

import psycopg
from psycopg import waiting
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from relay.errors import ConfigError, GrantError, RelayError, SchemaError, UnreachableError

RV = TypeVar("RV")

LOGIN_REFUSED = ("28000", "28P01")


class Connection(psycopg.Connection[Any]):
    """A connection each of whose calls ends within `deadline_seconds`, if need be by giving the connection up."""

    deadline_seconds: float = 10.0

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Runs one call. Raises psycopg.OperationalError when the deadline passes; the connection is closed then."""
        try:
            return waiting.wait(
                gen, self.pgconn.socket, interval=interval, timeout=timeout or self.deadline_seconds
            )
        except psycopg.errors._WaitTimeout:
            self.pgconn.finish()
            raise psycopg.OperationalError("the database did not answer within the deadline") from None


def connect(
    url: str, name: str, *, connect_timeout_seconds: float = 5.0, deadline_seconds: float = 10.0
) -> Connection:
    """A connection in autocommit to a writable server, named `name` in pg_stat_activity.

    Raises:
        ConfigError: the URL cannot be read; it is not repeated, since it may hold a password.
        UnreachableError: no writable server answered in time, or it refused the login.
    """
    conninfo = parse(url)
    try:
        connection = Connection.connect(
            make_conninfo(
                conninfo,
                application_name=name,
                connect_timeout=str(max(2, round(connect_timeout_seconds))),
                target_session_attrs="read-write",
                client_encoding="UTF8",
            ),
            autocommit=True,
        )
    except psycopg.Error as error:
        raise explain(error) from None
    connection.deadline_seconds = deadline_seconds
    return connection


def parse(url: str) -> str:
    """The URL as libpq reads it; SQLAlchemy's `postgresql+driver://` is understood."""
    scheme, separator, rest = url.partition("://")
    if separator:
        url = scheme.split("+")[0] + separator + rest
    try:
        conninfo_to_dict(url)
    except psycopg.Error:
        raise ConfigError(
            "RLY-203",
            "database.url is a text that is no Postgres URL",
            "use postgresql://user:password@host:5432/dbname",
        ) from None
    return url


def explain(error: psycopg.Error) -> RelayError:
    """A foreign error as ours. Never `str(error)` of a statement: it may repeat rows. Connection errors hold none."""
    state = error.sqlstate or ""
    text = str(error).strip().splitlines()
    first = text[0] if text else type(error).__name__
    if state in LOGIN_REFUSED or "authentication failed" in first or "no password supplied" in first:
        return UnreachableError(
            "RLY-302", "the database refuses the login", "check user and password in RELAY_DATABASE_URL"
        )
    if state == "25006" or "read-only" in first:
        return UnreachableError(
            "RLY-303", "the database is read-only", "name the writable primary in RELAY_DATABASE_URL"
        )
    if state == "42501":
        what = f" on {error.diag.table_name}" if error.diag.table_name else ""
        return GrantError(
            "RLY-501", f"the database role lacks a right{what}", "run the SQL that `relay db grants` prints"
        )
    if state in ("42P01", "3F000", "42883", "42703"):
        return SchemaError(
            "RLY-401", "a table or function of the schema relay is missing", "run `relay db upgrade`"
        )
    if state:
        return UnreachableError(
            "RLY-301", f"the database answered with SQLSTATE {state}", "look into the database's log"
        )
    return UnreachableError(
        "RLY-301",
        f"the database cannot be reached: {first}",
        "check host, port and name in RELAY_DATABASE_URL",
    )
