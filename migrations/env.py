"""The relay's own Alembic environment: a second door to the steps of `relay.schema.steps`.

Two books are kept. `relay.schema_version` says which steps have run, whichever door ran them: each step notes itself.
`relay_alembic_version`, apart from any `alembic_version` that the database has already, is Alembic's copy. Where they
differ, because the other door was used or the schema was dropped or restored by hand, the copy follows.
"""

from __future__ import annotations

import os
from logging.config import fileConfig

import psycopg
from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, exc, pool, text

from relay.config import load, require_database
from relay.database import explain, parse
from relay.errors import RelayError
from relay.schema.install import INSTALLED, Installed, refuse_newer
from relay.schema.steps import LOCK_ID, VERSION

BOOK = "relay_alembic_version"

if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)


def run_offline() -> None:
    """Prints the SQL. Without a connection nobody knows which of Alembic's own lines are needed; the steps do."""
    context.configure(dialect_name="postgresql", version_table=BOOK, literal_binds=True)
    with context.begin_transaction():
        context.execute(f"SELECT pg_advisory_xact_lock({LOCK_ID})")
        context.run_migrations()


def run_online() -> None:
    """Runs in one transaction, under the lock that `relay db upgrade` takes as well."""
    url = parse(require_database(load(os.environ)))
    engine = create_engine(
        "postgresql+psycopg://",
        isolation_level="READ COMMITTED",
        creator=lambda: psycopg.connect(url, application_name="relay alembic", client_encoding="UTF8"),
        poolclass=pool.NullPool,
    )
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": LOCK_ID})
        context.configure(connection=connection, version_table=BOOK)
        _follow_the_database(connection)
        context.run_migrations()


def _follow_the_database(connection: Connection) -> None:
    """Makes Alembic believe what the database says of itself, as far as it knows the steps."""
    found = _installed(connection)
    refuse_newer(found)
    migration, known = context.get_context(), min(found.version, VERSION)
    if int(migration.get_current_revision() or 0) != known:
        migration.stamp(context.script, f"{known:04d}" if known else "base")


def _installed(connection: Connection) -> Installed:
    """As `relay.schema.install` reads it."""
    if connection.execute(text("SELECT to_regclass('relay.schema_version')")).scalar() is None:
        return Installed(0, 0)
    return Installed(*connection.execute(text(INSTALLED)).one())


def _in_our_words(error: psycopg.Error) -> str:
    """What a step itself refuses is in our words already."""
    primary = error.diag.message_primary or ""
    if primary.startswith("RLY-"):
        return f"{primary}. Fix: {error.diag.message_hint}"
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return (
            "RLY-404: the schema could not be upgraded: a lock was not to be had. Fix: run it again at a quieter time"
        )
    return str(explain(error))


def run() -> None:
    """Errors in the words of the command line: Alembic shows a CommandError as one line."""
    try:
        if context.is_offline_mode():
            run_offline()
        else:
            run_online()
    except RelayError as error:
        raise CommandError(str(error)) from None
    except (exc.DBAPIError, psycopg.Error) as error:
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        if not isinstance(cause, psycopg.Error):
            raise
        raise CommandError(_in_our_words(cause)) from None


run()
