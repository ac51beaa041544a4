"""The database as the relay's role sees it. Everything is read in one transaction, so a pooler keeps us in one session.

Each check has a savepoint and a second: one that may not look, or would have to wait for a lock, says so and the others
go on.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg

from relay.config import Settings
from relay.daemon import queries
from relay.daemon.diagnosis.finding import Finding, failed, ok, refused, unknown, warning
from relay.daemon.diagnosis.foundations import encoding, sequence
from relay.daemon.relay import CLAIM_RIGHTS, CLAIM_RIGHTS_NAMES
from relay.daemon.sight import LANES
from relay.database import Connection, connect, explain
from relay.errors import RelayError, UnreachableError
from relay.schema.install import require_version
from relay.schema.steps import VERSION

CONNECT_SECONDS = 2.0
STATEMENT_SECONDS = 1.0
OLD_SECONDS = 300.0
"""A transaction that is older holds back vacuum noticeably at a few hundred events a second."""
OLD_TRANSACTIONS = 1_000_000
DEAD_ROWS_MAX = 1_000_000
LOCKS_MIN = 4_000
CLOCK_SECONDS_MAX = 1.0
STATEMENT_TIMEOUT_MIN_SECONDS = 5.0

BEGIN: LiteralString = "BEGIN READ ONLY; SET LOCAL statement_timeout = '1s'; SET LOCAL lock_timeout = '500ms'"

# reset_val is what a new session of this role has; `setting` would show what this transaction has set.
SETTINGS: LiteralString = "SELECT name, reset_val FROM pg_catalog.pg_settings WHERE name = ANY (%(names)s)"

# Sessions of other databases hold back nothing here; a standby's feedback comes from a session without a database. That
# it has been connected for long means nothing: what counts is how far behind it is.
HOLDERS: LiteralString = """\
SELECT who, seconds, transactions FROM (
    SELECT CASE backend_type WHEN 'walsender' THEN 'standby ' ELSE 'transaction of ' END
               || coalesce(nullif(application_name, ''), 'a session without a name')
               || ' (pid ' || pid || ', role ' || coalesce(usename, '?') || ', ' || coalesce(state, '?') || ')',
           coalesce(extract(epoch FROM clock_timestamp() - xact_start)::float8, 0),
           greatest(age(backend_xmin), age(backend_xid))
    FROM pg_catalog.pg_stat_activity
    WHERE (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND pid <> pg_backend_pid()
      AND (datname = current_database() OR datname IS NULL) AND backend_type IN ('client backend', 'walsender')
    UNION ALL
    SELECT 'prepared transaction ' || gid || ' of role ' || owner,
           extract(epoch FROM clock_timestamp() - prepared)::float8, age(transaction)
    FROM pg_catalog.pg_prepared_xacts WHERE database = current_database()
    UNION ALL
    SELECT 'replication slot ' || slot_name, 0, age(xmin) FROM pg_catalog.pg_replication_slots WHERE xmin IS NOT NULL
) AS holder (who, seconds, transactions)
WHERE seconds > %(seconds)s OR transactions > %(transactions)s
ORDER BY seconds DESC, transactions DESC LIMIT 1"""

# What other roles do is hidden from this one; that they are in a transaction is not.
HIDDEN: LiteralString = """\
SELECT count(*) FROM pg_catalog.pg_stat_activity AS a
WHERE a.query = '<insufficient privilege>' AND a.datname = current_database() AND EXISTS (
    SELECT FROM pg_catalog.pg_locks AS l WHERE l.pid = a.pid AND l.locktype = 'virtualxid')"""

VACUUM: LiteralString = """\
SELECT current_setting('autovacuum')::boolean AND current_setting('track_counts')::boolean,
       coalesce('autovacuum_enabled=false' = ANY (c.reloptions), false), coalesce(s.n_dead_tup, 0)
FROM pg_catalog.pg_class AS c LEFT JOIN pg_catalog.pg_stat_user_tables AS s ON s.relid = c.oid
WHERE c.oid = 'relay.outbox'::regclass"""

# Read and not called: the relay's role need not be allowed to call it.
BYTES_MAX: LiteralString = "SELECT prosrc FROM pg_catalog.pg_proc WHERE oid = 'relay.event_bytes_max()'::regprocedure"


@dataclass(slots=True)
class Outbox:
    """What the checks of Kafka have to know of the database; None if it could not be read."""

    topics: list[str] | None = None
    event_bytes_max: int | None = None


@dataclass(slots=True)
class Look:
    """One look at one database."""

    url: str
    settings: Settings
    report: Callable[[Finding], None]
    outbox: Outbox = field(default_factory=Outbox)

    def run(self) -> None:
        """Reports each finding as soon as it is there."""
        connection = self._connect()
        if connection is None:
            return
        with connection:
            for check, look in CHECKS:
                for finding in self._try(connection, check, look):
                    self.report(finding)
            self._read_outbox(connection)

    def _connect(self) -> Connection | None:
        """A writable server as `relay run` wants one; else whatever answers, to say why that is not enough."""
        for writable in (True, False):
            try:
                connection = connect(
                    self.url,
                    "relay doctor",
                    connect_timeout_seconds=CONNECT_SECONDS,
                    deadline_seconds=2 * STATEMENT_SECONDS,
                    writable=writable,
                )
                connection.execute(BEGIN)
            except RelayError as error:
                if writable and isinstance(error, UnreachableError) and error.code == "RLY-303":
                    continue
                self.report(refused("database", error))
                return None
            except psycopg.Error as error:
                self.report(refused("database", explain(error)))
                return None
            return connection
        return None

    def _try(
        self, connection: Connection, check: str, look: Callable[[Look, Connection], Iterable[Finding]]
    ) -> list[Finding]:
        try:
            with connection.transaction():
                return list(look(self, connection))
        except RelayError as error:
            return [refused(check, error)]
        except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
            return [unknown(check, "no answer within a second: a lock is in the way", "see pg_locks and try again")]
        except psycopg.Error as error:
            return [refused(check, explain(error))]
        except UnicodeError:
            return [unknown(check, "the answer is not in UTF-8", "see encoding")]

    def _read_outbox(self, connection: Connection) -> None:
        """Topics of up to 100,000 events, and the size that the schema lets through."""
        try:
            with connection.transaction():
                source = connection.execute(BYTES_MAX).fetchone()
                plain = re.fullmatch(r"\s*SELECT\s+(\d+)\s*;?\s*", source[0] if source else "", re.IGNORECASE)
                self.outbox.event_bytes_max = int(plain[1]) if plain else None
                self.outbox.topics = [row[0] for row in connection.execute(queries.BACKLOG_ESTIMATE)]
        except (psycopg.Error, UnicodeError):
            # Schema and grants have been looked at and reported; what is unknown here is unknown to the topics' checks.
            self.outbox.topics = None


def _server(_look: Look, connection: Connection) -> Iterable[Finding]:
    info = connection.info
    version = f"{info.server_version // 10_000}.{info.server_version % 10_000}"
    yield ok("database", f"PostgreSQL {version} at {info.host}:{info.port}/{info.dbname} as role {info.user}")


def _encryption(_look: Look, connection: Connection) -> Iterable[Finding]:
    """Between us and whoever answered; behind a pooler the way goes on."""
    if connection.pgconn.ssl_in_use:
        mode = connection.info.get_parameters().get("sslmode", "prefer")
        checked = "" if mode.startswith("verify") else f", the server's certificate is not checked (sslmode={mode})"
        yield ok("encryption", "TLS" + checked)
    elif _is_local(connection.info.host):
        yield ok("encryption", "none, and none needed on this machine")
    else:
        yield warning(
            "encryption", "the connection is not encrypted", "RLY-801", "add sslmode=verify-full to RELAY_DATABASE_URL"
        )


def _is_local(host: str) -> bool:
    if host.startswith(("/", "@")) or host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _primary(_look: Look, connection: Connection) -> Iterable[Finding]:
    standby, read_only = _row(
        connection,
        "SELECT pg_catalog.pg_is_in_recovery(), reset_val = 'on' FROM pg_catalog.pg_settings"
        " WHERE name = 'default_transaction_read_only'",
    )
    fix = "name the writable primary in RELAY_DATABASE_URL"
    if standby:
        yield failed("primary", "this server is a standby", "RLY-303", fix)
    elif read_only:
        fix = "take default_transaction_read_only away from this role, this database or the server"
        yield failed("primary", "transactions of this role are read-only here", "RLY-303", fix)
    else:
        yield ok("primary", "writable")


def _schema(_look: Look, connection: Connection) -> Iterable[Finding]:
    found = require_version(connection)
    yield ok("schema", f"version {found.version}; this code brings {VERSION}")


def _grants(_look: Look, connection: Connection) -> Iterable[Finding]:
    allowed = _row(connection, CLAIM_RIGHTS)
    missing = [name for name, has in zip(CLAIM_RIGHTS_NAMES, allowed, strict=True) if not has]
    if missing:
        text = "this role lacks " + "; ".join(missing)
        role = shlex.quote(connection.info.user)
        yield failed("grants", text, "RLY-501", f"run the SQL that `relay db grants --relay {role}` prints")
    else:
        yield ok("grants", "this role may do what `relay run` has to do")


def _lanes(_look: Look, connection: Connection) -> Iterable[Finding]:
    count, last = _row(connection, queries.LANES)
    if (count, last) == (LANES, LANES - 1):
        yield ok("lanes", f"{count}")
    else:
        fix = "run the SQL that docs/ERRORS.md gives for RLY-802: events of a missing lane are never published"
        yield failed("lanes", f"{count} of {LANES}", "RLY-802", fix)


def _pooler(look: Look, connection: Connection) -> Iterable[Finding]:
    if connection.is_pooled:
        text = f"there is one: an idle relay sees an event after up to {look.settings.daemon.idle_seconds:g} s"
        yield warning("pooler", text, "RLY-803", "name the server itself in the RELAY_DATABASE_URL of `relay run`")
    else:
        yield ok("pooler", "none")


def _clock(_look: Look, connection: Connection) -> Iterable[Finding]:
    before = time.time()
    there = _row(connection, "SELECT extract(epoch FROM clock_timestamp())::float8")[0]
    after = time.time()
    # The answer is from some moment in between.
    apart = max(0.0, before - there, there - after)
    if apart > CLOCK_SECONDS_MAX:
        fix = "let both machines take their time from NTP; ages that Relay shows are off by as much"
        yield warning("clock", f"{apart:.1f} s from the database's clock", "RLY-804", fix)
    else:
        yield ok("clock", "as the database's clock, within a second")


def _timeouts(look: Look, connection: Connection) -> Iterable[Finding]:
    """The relay sets idle_in_transaction_session_timeout itself in each unit of work. These it leaves to the server."""
    daemon = look.settings.daemon
    least = {
        "statement_timeout": STATEMENT_TIMEOUT_MIN_SECONDS,
        "transaction_timeout": daemon.takeover_seconds,
        "idle_session_timeout": 4 * daemon.idle_seconds + STATEMENT_TIMEOUT_MIN_SECONDS,
    }
    found = _settings(connection, *least)
    short = {name: int(value) / 1000 for name, value in found.items() if 0 < int(value) < least[name] * 1000}
    if short:
        text = ", ".join(f"{name} is {seconds:g} s" for name, seconds in short.items())
        wanted = ", ".join(f"{name} {least[name]:g} s or more" for name in short)
        yield warning("timeouts", f"{text} for this role", "RLY-805", f"ALTER ROLE ... SET {wanted}, or 0")
    else:
        yield ok("timeouts", "none of the server's cuts the relay's work short")


def _durability(_look: Look, connection: Connection) -> Iterable[Finding]:
    found = _settings(connection, "fsync", "full_page_writes", "synchronous_commit")
    off = [name for name, value in found.items() if value == "off"]
    if off:
        text = f"{' and '.join(off)} off: a crash of the server loses committed events"
        yield warning("durability", text, "RLY-806", "turn it on where applications commit")
    else:
        yield ok("durability", "commits survive a crash of the server")


def _locks(_look: Look, connection: Connection) -> Iterable[Finding]:
    """Keys that are written lock themselves in a table that all sessions share."""
    found = _settings(connection, "max_locks_per_transaction", "max_connections", "max_prepared_transactions")
    room = int(found["max_locks_per_transaction"]) * (
        int(found["max_connections"]) + int(found["max_prepared_transactions"])
    )
    if room < LOCKS_MIN:
        text = f"room for {room:,} in all; one transaction may lock 1,000 keys"
        yield warning("locks", text, "RLY-810", "raise max_locks_per_transaction to 256 and restart the server")
    else:
        yield ok("locks", f"room for {room:,}")


def _vacuum(_look: Look, connection: Connection) -> Iterable[Finding]:
    limits = {"seconds": OLD_SECONDS, "transactions": OLD_TRANSACTIONS}
    holder = connection.execute(HOLDERS, limits).fetchone()
    if holder:
        since = f"{holder[1] / 60:.0f} min old" if holder[1] > OLD_SECONDS else f"{holder[2]:,} transactions old"
        fix = "end it: pg_terminate_backend, ROLLBACK PREPARED or pg_drop_replication_slot; and set"
        fix += " idle_in_transaction_session_timeout for applications"
        yield warning("vacuum", f"held back by a {holder[0]}, {since}", "RLY-807", fix)
        return
    hidden = _row(connection, HIDDEN)[0]
    if hidden:
        text = f"{hidden} transaction{'' if hidden == 1 else 's'} of other roles, since when is hidden from this role"
        yield unknown("vacuum", text, "GRANT pg_read_all_stats to this role")
    else:
        yield ok("vacuum", "no old transaction holds it back")


def _autovacuum(_look: Look, connection: Connection) -> Iterable[Finding]:
    on, disabled, dead = _row(connection, VACUUM)
    if not on or disabled:
        where = "for relay.outbox" if on else "on this server"
        fix = "turn autovacuum on: removed events stay in the table and slow every look"
        yield warning("autovacuum", f"off {where}, {dead:,} dead rows", "RLY-808", fix)
    elif dead > DEAD_ROWS_MAX:
        fix = "see what holds back vacuum, or VACUUM relay.outbox"
        yield warning("autovacuum", f"on, but {dead:,} dead rows lie in relay.outbox", "RLY-808", fix)
    else:
        yield ok("autovacuum", f"on, {dead:,} dead rows in relay.outbox")


CHECKS: tuple[tuple[str, Callable[[Look, Connection], Iterable[Finding]]], ...] = (
    ("database", _server),
    ("encryption", _encryption),
    ("primary", _primary),
    ("encoding", lambda _look, connection: encoding(connection)),
    ("schema", _schema),
    ("grants", _grants),
    ("lanes", _lanes),
    ("sequence", lambda _look, connection: sequence(connection)),
    ("pooler", _pooler),
    ("clock", _clock),
    ("timeouts", _timeouts),
    ("durability", _durability),
    ("locks", _locks),
    ("vacuum", _vacuum),
    ("autovacuum", _autovacuum),
)


def _row(connection: Connection, query: Any) -> Any:
    """The one row that such a query always has."""
    return connection.execute(query).fetchone()


def _settings(connection: Connection, *names: str) -> dict[str, str]:
    """By name; a server that is too old for one does not have it."""
    return dict(connection.execute(SETTINGS, {"names": list(names)}).fetchall())
