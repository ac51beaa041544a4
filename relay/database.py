"""Connections to Postgres that do not hang, and database errors in words that name the fix.

A peer that vanished behind a proxy keeps acknowledging packets: neither `statement_timeout` nor TCP keep-alive notices.
So every call here has a deadline on the client's side that gives the connection up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import IsolationLevel, waiting
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from relay.errors import ConfigError, GrantError, RelayError, SchemaError, UnreachableError

RV = TypeVar("RV")

#: What our statements and psycopg's parsers rely on. Databases and roles may have other defaults: with DateStyle "SQL,
#: DMY" psycopg cannot read a time, with row_security on a policy hides events without a word, and a lock_timeout fails
#: statements that only have to wait for a moment.
PINS = {
    "datestyle": "ISO",
    "standard_conforming_strings": "on",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "array_nulls": "on",
    "row_security": "off",
    "lock_timeout": "0",
}
#: Those of PINS that poolers keep per client, so that they may be set for the session there too.
TRACKED = ("datestyle", "standard_conforming_strings")
#: What only matters between transactions, in a session of our own.
SESSION_PINS = {"default_transaction_isolation": "read committed", "idle_session_timeout": "0"}

LOGIN_REFUSED = re.compile(r'authentication failed|no password supplied|no pg_hba.conf entry|role ".*" does not exist')


class Connection(psycopg.Connection[Any]):
    """A connection each of whose calls ends within `deadline_seconds`, if need be by giving the connection up."""

    deadline_seconds: float = 10.0
    is_pooled: bool = False
    """Whether a pooler stands before the server, so that the next transaction may run in another session. No session
    state then: no prepared statement, no LISTEN, no session's lock, no SET outside of a transaction but TRACKED."""

    @property
    def local_pins(self) -> str:
        """The settings that a transaction has to pin by itself, as statements; empty in a session of our own."""
        return _pins("SET LOCAL", {**PINS, **_limits(self.deadline_seconds)}) if self.is_pooled else ""

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        """Opens a transaction, or a savepoint within one. Through a pooler it pins our settings first."""
        is_outermost = self.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
        with super().transaction(savepoint_name, force_rollback) as transaction:
            if is_outermost and self.is_pooled:
                self.execute(self.local_pins.encode())
            yield transaction

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Runs one call. Raises psycopg.OperationalError when the deadline passes; the connection is closed then.

        Whoever gives a time-out expects that there may be no answer, as when waiting for notifications: the connection
        stays, and the caller learns of it from psycopg's own exception.
        """
        deadline = self.deadline_seconds if timeout is None else timeout
        try:
            return waiting.wait(gen, self.pgconn.socket, interval=interval, timeout=deadline)
        except psycopg.errors._WaitTimeout:
            if timeout is not None:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError("the database did not answer within the deadline") from None


def connect(
    url: str,
    name: str,
    *,
    connect_timeout_seconds: float = 5.0,
    deadline_seconds: float = 10.0,
    writable: bool = True,
) -> Connection:
    """A connection in autocommit to a writable server, named `name` in pg_stat_activity.

    Args:
        writable: False takes a standby or a read-only database as well, to look at it.

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
                target_session_attrs="read-write" if writable else "any",
                client_encoding="UTF8",
            ),
            autocommit=True,
        )
    except psycopg.Error as error:
        raise explain(error) from None
    except Exception as error:
        # psycopg resolves names itself, and Python refuses some with a UnicodeError. Its text may repeat the URL.
        raise ConfigError(
            "RLY-203",
            f"database.url cannot be used: {type(error).__name__}",
            "check the host's name in RELAY_DATABASE_URL",
        ) from None
    connection.deadline_seconds = deadline_seconds
    try:
        connection.is_pooled = _is_pooled(connection)
        _pin(connection)
    except psycopg.Error as error:
        connection.close()
        raise explain(error) from None
    if connection.is_pooled:
        # The next statement may reach a session that has not prepared it, or has prepared another under its name.
        connection.prepare_threshold = None
    return connection


def _pin(connection: Connection) -> None:
    """Makes the session independent of the defaults of its database and role."""
    connection.isolation_level = IsolationLevel.READ_COMMITTED
    if connection.is_pooled:
        connection.execute(_pins("SET", {name: PINS[name] for name in TRACKED}).encode())
        return
    settings = {**PINS, **SESSION_PINS, **_limits(connection.deadline_seconds)}
    if connection.info.server_version >= 170000:
        settings["transaction_timeout"] = "0"
    connection.execute(_pins("SET", settings).encode())


def _limits(deadline_seconds: float) -> dict[str, str]:
    """Ends a statement in the server shortly before we give its connection up. Otherwise it would run on there, and
    each new try would leave one more session behind."""
    seconds = max(deadline_seconds * 0.8, deadline_seconds - 2)
    return {"statement_timeout": str(round(seconds * 1000))}


def _pins(command: str, settings: dict[str, str]) -> str:
    return "; ".join(f"{command} {name} = '{value}'" for name, value in settings.items())


def _is_pooled(connection: Connection) -> bool:
    """A server greets with the process that will serve the session. A pooler greets before it has one, with a number of
    its own. (In session mode, too; that it will keep us in one session is not to be told from outside.)"""
    row = connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
    return row is not None and row[0] != connection.info.backend_pid


def parse(url: str) -> str:
    """The URL as libpq reads it; SQLAlchemy's `postgresql+driver://` is understood.

    Raises:
        ConfigError: it cannot be read. Nothing of it is repeated: any part may be a password in the wrong place.
    """
    scheme, separator, rest = url.partition("://")
    if separator:
        url = scheme.split("+")[0] + separator + rest
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:
        raise ConfigError(
            "RLY-203",
            "database.url is a text that is no Postgres URL",
            "use postgresql://user:password@host:5432/dbname in RELAY_DATABASE_URL",
        ) from None
    # A password with a plain @ or / shifts all parts by one, and its end would be named in errors as a host.
    if separator and any("@" in str(parts.get(name) or "") for name in ("host", "port", "dbname")):
        raise ConfigError(
            "RLY-203",
            "database.url has a user or password with an unquoted @ or /",
            "write them as %40 and %2F in RELAY_DATABASE_URL",
        )
    if not all(port.isdecimal() for port in str(parts.get("port") or "5432").split(",") if port):
        raise ConfigError(
            "RLY-203",
            "database.url has a port that is no number",
            "use postgresql://user:password@host:5432/dbname in RELAY_DATABASE_URL",
        )
    return url


def masked(url: str) -> str:
    """The URL as key-value pairs without its secrets, to be shown."""
    try:
        parts = conninfo_to_dict(parse(url))
    except ConfigError:
        return "***"
    secret = ("password", "sslpassword", "oauth_client_secret")
    return make_conninfo(**{name: "***" if name in secret else str(value) for name, value in parts.items()})


def explain(error: psycopg.Error) -> RelayError:
    """A foreign error as ours. Never `str(error)` of a statement: it may repeat rows. Connection errors hold none."""
    return _explain_statement(error, error.sqlstate) if error.sqlstate else _explain_connection(error)


def _explain_connection(error: psycopg.Error) -> RelayError:
    """libpq gives no SQLSTATE before there is a session: its words must do."""
    text = str(error).strip().splitlines()
    first = text[0].removeprefix("connection failed: ") if text else type(error).__name__
    if LOGIN_REFUSED.search(first):
        return _login_refused(first.rpartition("FATAL: ")[2].strip())
    if "read-only" in first:
        return _read_only()
    if first.startswith(("connection is bad: invalid ", "could not match ")):
        # Without the value: it may be a secret in the wrong place.
        fault = re.sub(r'[ :]*"[^"]*"', "", first.removeprefix("connection is bad: "))
        return ConfigError("RLY-203", f"database.url: {fault}", "correct RELAY_DATABASE_URL")
    return UnreachableError(
        "RLY-301",
        f"the database cannot be reached: {first}",
        "check that it runs, and host, port and name in RELAY_DATABASE_URL",
    )


def _explain_statement(error: psycopg.Error, state: str) -> RelayError:
    if state in ("28000", "28P01"):
        return _login_refused(error.diag.message_primary or "")
    if state == "25006":
        return _read_only()
    if state == "42501" and "row-level security" in (error.diag.message_primary or ""):
        return GrantError(
            "RLY-501",
            "row-level security hides rows of the schema relay from the database role",
            "disable it on the tables of the schema relay, or give the role BYPASSRLS",
        )
    if state == "42501":
        # "permission denied for table outbox": names of objects, never data.
        what = (error.diag.message_primary or "").removeprefix("permission denied for ") or "an object"
        return GrantError(
            "RLY-501", f"the database role lacks a right on {what}", "run the SQL that `relay db grants` prints for it"
        )
    if state in ("42P01", "3F000", "42883", "42703"):
        return SchemaError("RLY-401", "a table or function of the schema relay is missing", "run `relay db upgrade`")
    return UnreachableError(
        "RLY-301", f"the database answered with SQLSTATE {state}", "look into the database's log and try again"
    )


def _login_refused(words: str) -> UnreachableError:
    """The server's words name the role, the host and the rule, never a password."""
    what = f"the database refuses the login: {words}" if words else "the database refuses the login"
    return UnreachableError("RLY-302", what, "check user and password in RELAY_DATABASE_URL, and pg_hba.conf")


def _read_only() -> RelayError:
    return UnreachableError("RLY-303", "the database is read-only", "name the writable primary in RELAY_DATABASE_URL")
