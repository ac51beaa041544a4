"""What the revisions call that `relay db revision` writes into a host project's Alembic history.

    from relay.migrations import downgrade_to, upgrade_to

    def upgrade() -> None:
        upgrade_to(1)

    def downgrade() -> None:
        downgrade_to(0)

Works online, with `--sql` and under async engines, whatever the driver, and loads nothing but Alembic. A revision that
has been released stays what it is: the steps that it runs never change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alembic import op
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from relay.errors import words_of
from relay.schema.blocks import downgrade_block, upgrade_block

__all__ = ["downgrade_to", "include_name", "upgrade_to"]


def upgrade_to(version: int, *, after: int = 0) -> None:
    """Takes the schema `relay` from version `after` to `version`.

    Steps that have run already, by `relay db upgrade` or for another application in this database, do not run again.
    Touches no table of the host's. Waits for a lock for a second at a time, and about 40 seconds in all.

    Raises:
        alembic.util.CommandError: RLY-402 or RLY-404. The host's transaction is rolled back with it.
    """
    _run(upgrade_block(after, version, _history()))


def downgrade_to(version: int) -> None:
    """Takes the schema `relay` back to `version`, or away if that is 0, unless another Alembic history needs it.

    With the schema go the versions of all entities: consumers that have seen them ignore what begins again at 1.

    Raises:
        alembic.util.CommandError: RLY-404: events would be lost, or a step has no way back.
    """
    _run(downgrade_block(version, _history()))


def include_name(name: str | None, type_: str, parent_names: Mapping[str, Any]) -> bool:
    """Keeps autogenerate from proposing to drop Relay's tables where `context.configure` has `include_schemas=True`.

    Passed as `include_name=include_name`; a project with a filter of its own adds `and include_name(...)` to it.
    """
    return not (type_ == "schema" and name == "relay")


def _history() -> str:
    """Alembic's version table as SQL names it: no two histories of one database have the same."""
    context = op.get_context()
    quote = context.dialect.identifier_preparer.quote
    schema = context.version_table_schema
    return (quote(schema) + "." if schema else "") + quote(context.version_table)


def _run(statement: str) -> None:
    """As it is written: neither `:name` nor `%` means anything here."""
    context = op.get_context()
    if context.as_sql:
        context.impl.static_output(statement + ";\n")
    else:
        # For this call only: set on the connection, the option would change how the host's statements are read.
        try:
            op.get_bind().exec_driver_sql(statement, execution_options={"no_parameters": True})
        except DBAPIError as error:
            message, hint = words_of(error.orig)
            if not message.startswith("RLY-"):
                raise
            # Alembic prints one line of it, where the driver's error would end with a thousand lines of SQL.
            raise CommandError(f"{message}. Fix: {hint}") from None
