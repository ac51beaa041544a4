"""What the revisions share: run a step once, whichever door it came through."""

from __future__ import annotations

from alembic import context, op
from sqlalchemy import Connection, text

from relay.schema.steps import BASE, step

REFUSE_LOSS = """\
DO $$ BEGIN
    IF EXISTS (SELECT FROM relay.outbox) OR EXISTS (SELECT FROM relay.parked) THEN
        RAISE EXCEPTION 'RLY-404: the outbox or the parked events are not empty, and would be lost'
            USING HINT = 'Run `relay run --drain` and treat what `relay parked list` shows.';
    END IF;
END $$"""


def installed_version(connection: Connection) -> int:
    """The schema version of the database, as `relay.schema.install` reads it; 0 where there is none."""
    if connection.execute(text("SELECT to_regclass('relay.schema_version')")).scalar() is None:
        return 0
    return int(connection.execute(text("SELECT coalesce(max(version), 0) FROM relay.schema_version")).scalar_one())


def upgrade_to(version: int) -> None:
    """Runs one step."""
    _run("SET LOCAL search_path = pg_catalog, pg_temp")
    if version == 1:
        _run(BASE)
    _run(step(version))
    # Alembic notes the revision next, in a table that it names without a schema.
    _run("SET LOCAL search_path = DEFAULT")


def drop_schema() -> None:
    """Takes the schema away, unless events would be lost with it. CASCADE takes along the triggers of `capture`."""
    _run(REFUSE_LOSS)
    _run("DROP SCHEMA relay CASCADE")


def _run(statements: str) -> None:
    """As they are written: neither `:name` nor `%` means anything here."""
    if context.is_offline_mode():
        op.get_context().impl.static_output(statements.rstrip().rstrip(";") + ";\n")
    else:
        op.get_bind().execution_options(no_parameters=True).exec_driver_sql(statements)
