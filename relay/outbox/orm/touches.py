"""Entity changes of tracked objects on their way to the database: the one call, and what is to be read before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, select, tuple_
from sqlalchemy.orm import Mapper, Session

from relay.errors import EventError
from relay.outbox.changes import SEPARATOR, Columns
from relay.outbox.events import Json, encode_headers
from relay.outbox.orm import versions
from relay.outbox.orm.plans import Plan
from relay.outbox.sessions import Request, run
from relay.outbox.trace import current_trace

OPTION = "relay"
"""The execution option: `relay="skip"` on a statement, a connection or an engine is the way past tracking."""

KEYS_PER_QUERY = 1000

# As touch_many, for sorted changes of entities whose tables have no capture trigger. The names of the tables are
# resolved as the unit of work's own statements were, by the session's search_path.
TOUCH_UNCAPTURED = """
SELECT relay.touch_uncaptured(
    pg_catalog.string_to_array(CAST(:entities AS pg_catalog.text), pg_catalog.chr(31)),
    pg_catalog.string_to_array(CAST(:ids AS pg_catalog.text), pg_catalog.chr(31)),
    pg_catalog.string_to_array(CAST(:actions AS pg_catalog.text), pg_catalog.chr(31)),
    pg_catalog.string_to_array(CAST(:topics AS pg_catalog.text), pg_catalog.chr(31), ''),
    CAST(pg_catalog.string_to_array(CAST(:payloads AS pg_catalog.text), pg_catalog.chr(31), '')
         AS pg_catalog.jsonb[]),
    CAST(CAST(:headers AS pg_catalog.text) AS pg_catalog.jsonb),
    pg_catalog.string_to_array(CAST(:owners AS pg_catalog.text), pg_catalog.chr(31)),
    ARRAY(SELECT pg_catalog.to_regclass(t.name)
          FROM pg_catalog.unnest(pg_catalog.string_to_array(CAST(:tables AS pg_catalog.text), pg_catalog.chr(31)))
               WITH ORDINALITY AS t (name, position)
          ORDER BY t.position)
)
"""


class Touches:
    """Changes of entities, each entity once: what is added later holds."""

    def __init__(self) -> None:
        self._changes: dict[tuple[str, str | None], dict[str, tuple[str, Json]]] = {}
        self._tables: dict[tuple[str, Table], None] = {}

    def add(self, plan: Plan, changes: Iterable[tuple[str, tuple[str, Json]]]) -> None:
        """Ids with action and payload."""
        self._changes.setdefault((plan.entity, plan.topic), {}).update(changes)
        self._tables.update(dict.fromkeys((plan.entity, t) for t in plan.mapper.tables if isinstance(t, Table)))

    def write(self, session: Session, connection: Connection) -> None:
        """The events, in one round trip, and their versions for `version_of`.

        Raises:
            EventError, SchemaError, GrantError: as `touch_many`.
        """
        columns = Columns()
        for (entity, topic), changes in sorted(self._changes.items(), key=lambda each: each[0][0]):
            columns.extend(entity, topic, {id_: changes[id_] for id_ in sorted(changes)})
        if not columns.ids:
            return
        parameters = {
            **columns.joined(),
            "headers": encode_headers(None, current_trace()),
            "owners": SEPARATOR.join(entity for entity, _ in self._tables),
            "tables": SEPARATOR.join(_written(table, connection) for _, table in self._tables),
        }
        raised: Any = run(connection, Request(TOUCH_UNCAPTURED, parameters, list))
        versions.note(session, columns.entities, columns.ids, raised)


def is_skipped(connection: Connection) -> bool:
    """Whether someone takes care himself of all that this connection writes.

    Raises:
        EventError: RLY-131 for another value of the option, which would otherwise be a promise that nobody keeps.
    """
    return skips(connection.get_execution_options().get(OPTION))


def skips(option: object) -> bool:
    """What the execution option says.

    Raises:
        EventError: RLY-131 for a value that is unknown.
    """
    if option not in (None, "skip"):
        raise EventError("RLY-131", "the execution option relay has an unknown value", 'it may be "skip"')
    return option is not None


def read_column(
    connection: Connection, mapper: Mapper[Any], name: str, keys: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """A column of these rows, in as few queries as parameters allow; past the session, whose criteria may hide rows."""
    column = mapper.column_attrs[name].columns[0]
    for chunk in chunks(keys):
        query = select(*mapper.primary_key, column).select_from(mapper.selectable).where(with_keys(mapper, chunk))
        for row in connection.execute(query):
            yield tuple(row[:-1]), row[-1]


def chunks(keys: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """As many keys as one query takes: drivers send at most 32,767 parameters."""
    return (keys[start : start + KEYS_PER_QUERY] for start in range(0, len(keys), KEYS_PER_QUERY))


def with_keys(mapper: Mapper[Any], keys: Sequence[tuple[Any, ...]]) -> ColumnElement[bool]:
    """The condition for these primary keys."""
    if len(mapper.primary_key) == 1:
        return mapper.primary_key[0].in_([key[0] for key in keys])
    return tuple_(*mapper.primary_key).in_(keys)


def says_deleted(value: Any) -> bool:
    """What the column of a soft deletion says: anything but NULL and false. A row that is not there is deleted too."""
    return value is not None and value is not False


def _written(table: Table, connection: Connection) -> str:
    """The table's name as the connection's statements have it."""
    preparer = connection.dialect.identifier_preparer
    schemas = connection.get_execution_options().get("schema_translate_map") or {}
    schema = schemas.get(table.schema, table.schema)
    return f"{preparer.quote(schema)}.{preparer.quote(table.name)}" if schema else preparer.quote(table.name)
