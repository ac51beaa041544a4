"""Capture as operations of Alembic, registered by importing this module.

    import relay.migrations.operations

    def upgrade() -> None:
        op.relay_capture("users", entity="user", columns=["email", "name"])

    def downgrade() -> None:
        op.relay_uncapture("users")

Best in a revision of its own: the table stays locked against writers until the revision's transaction ends.
Autogenerate compares no triggers, so it neither sees nor proposes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, Operations

from relay.migrations import _run

__all__ = ["RelayCapture", "RelayUncapture"]


@Operations.register_operation("relay_capture")
class RelayCapture(MigrateOperation):
    """Captures a table: every change of its rows is an event from then on."""

    def __init__(
        self,
        table: str,
        *,
        schema: str | None = None,
        entity: str | None = None,
        key: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        topic: str | None = None,
    ) -> None:
        self.table, self.schema = table, schema
        self.entity, self.key, self.columns, self.topic = entity, key, columns, topic

    @classmethod
    def relay_capture(
        cls,
        operations: Operations,
        table: str,
        *,
        schema: str | None = None,
        entity: str | None = None,
        key: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        topic: str | None = None,
    ) -> None:
        """As `relay capture add`. Names are as they are in the database, without quotes.

        Args:
            schema: of the table; by default it is found as the connection finds it.
            entity: the table's name by default.
            key: the columns that make the id; the primary key by default.
            columns: an update counts only if one of these has changed; of any by default.
            topic: `relay.changes` by default.
        """
        operations.invoke(cls(table, schema=schema, entity=entity, key=key, columns=columns, topic=topic))

    def reverse(self) -> RelayUncapture:
        """What undoes it."""
        return RelayUncapture(self.table, self.schema, self)


@Operations.register_operation("relay_uncapture")
class RelayUncapture(MigrateOperation):
    """Captures a table no longer."""

    def __init__(self, table: str, schema: str | None = None, before: RelayCapture | None = None) -> None:
        self.table, self.schema, self.before = table, schema, before

    @classmethod
    def relay_uncapture(cls, operations: Operations, table: str, *, schema: str | None = None) -> None:
        """As `relay capture remove`; does nothing where the table is not captured."""
        operations.invoke(cls(table, schema))

    def reverse(self) -> RelayCapture:
        """What it undid, if that is known."""
        return self.before or RelayCapture(self.table, schema=self.schema)


@Operations.implementation_for(RelayCapture)
def _capture(operations: Operations, operation: RelayCapture) -> None:
    arguments = [_regclass(operations, operation.table, operation.schema)]
    for name, text in (("entity", operation.entity), ("topic", operation.topic)):
        if text is not None:
            arguments.append(f"{name} => {_literal(text)}")
    for name, texts in (("key", operation.key), ("columns", operation.columns)):
        if texts is not None:
            arguments.append(f"{name} => ARRAY[{', '.join(map(_literal, texts))}]::text[]")
    _run(f"SELECT relay.capture({', '.join(arguments)})")


@Operations.implementation_for(RelayUncapture)
def _uncapture(operations: Operations, operation: RelayUncapture) -> None:
    _run(f"SELECT relay.uncapture({_regclass(operations, operation.table, operation.schema)})")


@renderers.dispatch_for(RelayCapture)
def _render_capture(context: AutogenContext, operation: RelayCapture) -> str:
    """For hooks of the host that put the operation into a revision which Alembic writes."""
    context.imports.add("import relay.migrations.operations")
    given = {name: getattr(operation, name) for name in ("schema", "entity", "key", "columns", "topic")}
    named = [
        f"{name}={list(value) if name in ('key', 'columns') else value!r}"
        for name, value in given.items()
        if value is not None
    ]
    return f"op.relay_capture({', '.join([repr(operation.table), *named])})"


@renderers.dispatch_for(RelayUncapture)
def _render_uncapture(context: AutogenContext, operation: RelayUncapture) -> str:
    context.imports.add("import relay.migrations.operations")
    schema = f", schema={operation.schema!r}" if operation.schema else ""
    return f"op.relay_uncapture({operation.table!r}{schema})"


def _regclass(operations: Operations, table: str, schema: str | None) -> str:
    """The table's name, quoted as an identifier and then as a text, which Postgres reads back."""
    quote = operations.get_context().dialect.identifier_preparer.quote_identifier
    return _literal((quote(schema) + "." if schema else "") + quote(table)) + "::regclass"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
