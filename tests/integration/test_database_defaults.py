"""Whatever the defaults of a database are, its schema can be installed and every function does the same."""

from __future__ import annotations

import re

import psycopg
import pytest
from psycopg import sql

from relay.outbox import Change, Event, emit_many, touch_many
from relay.schema.install import upgrade
from tests.support.postgres import bare_database, drop_database

DEFAULTS = {
    "nothing": {},
    "plpgsql.extra_errors": {"plpgsql.extra_errors": "all", "plpgsql.extra_warnings": "all"},
    "standard_conforming_strings": {"standard_conforming_strings": "off"},
    "array_nulls": {"array_nulls": "off"},
    "datestyle": {"datestyle": "SQL, DMY", "intervalstyle": "sql_standard", "timezone": "Asia/Kathmandu"},
    "variable_conflict": {"plpgsql.variable_conflict": "use_variable"},
    "variable_conflict_column": {"plpgsql.variable_conflict": "use_column"},
    "isolation": {"default_transaction_isolation": "repeatable read"},
    "check_function_bodies": {"check_function_bodies": "off"},
    "quotes": {"quote_all_identifiers": "on", "transform_null_equals": "on"},
    "output": {"bytea_output": "escape", "extra_float_digits": "-15", "xmlbinary": "hex"},
    "path": {"search_path": "nowhere"},
}

#: Every function that writes, with texts that settings have a say in: backslashes, quotes, NULL as a text, dates.
CALLS = (
    ("SELECT relay.emit('t', %s::text, %s::bytea, %s::jsonb) IS NULL", ["NULL", b"\\x\x00'", '{"h": "a\\\\b"}']),
    ("SELECT relay.emit('t', NULL, %s::text) IS NULL", ["\\n"]),
    ("SELECT relay.emit('t', 'k', %s::jsonb) IS NULL", ['{"a": 1e100, "b": "\\\\"}']),
    ("SELECT relay.touch('user', %s, payload => %s::jsonb)", ["a\\b'c", '{"a": null}']),
    (
        "SELECT cardinality(relay.emit_many(ARRAY['t', 't'], ARRAY['a', NULL], ARRAY[%s::bytea, NULL],"
        " ARRAY['{}', '{}']::jsonb[]))",
        [b"\\"],
    ),
    (
        "SELECT relay.touch_many(ARRAY['user', 'user'], ARRAY['1', %s], ARRAY['updated', 'deleted'], ARRAY[NULL, 't'],"
        " ARRAY[NULL, %s::jsonb])",
        ["a\\b'c", "[1]"],
    ),
)
REFUSED = {
    "RL101": "SELECT relay.emit('t t', 'k', ''::bytea)",
    "RL103": "SELECT relay.touch('user', chr(7))",
    "RL105": "SELECT relay.touch('user', '1', '?')",
    "RL106": "SELECT relay.emit('t', 'k', ''::bytea, '{\"id\": 1}')",
    "RL107": "SELECT relay.emit('t', 'k', ''::bytea, jsonb_build_object('h', chr(10)))",
}
TABLE = (
    "CREATE SCHEMA app",
    "CREATE TYPE app.kind AS ENUM ('a', 'b')",
    "CREATE TABLE app.item (kind app.kind, name text, day date, note text, PRIMARY KEY (kind, name, day))",
    "SELECT relay.capture('app.item', entity => 'item', columns => ARRAY['note'])",
    "INSERT INTO app.item VALUES ('a', 'x:y', '2026-02-01', NULL), ('b', E'p\\\\q', '2026-03-04', 'n')",
    "UPDATE app.item SET note = 'm'",
    "UPDATE app.item SET note = 'o' WHERE kind = 'a'",
    "DELETE FROM app.item WHERE kind = 'b'",
    "TRUNCATE app.item",
)
OUTCOME = """\
SELECT topic, key, encode(payload, 'escape') AS payload, headers FROM relay.outbox ORDER BY id"""


@pytest.fixture(scope="module")
def bare(pg):
    made = []

    def make(defaults):
        made.append(bare_database(pg))
        with psycopg.connect(made[-1], autocommit=True) as connection:
            name = sql.Identifier(made[-1].rpartition("/")[2])
            for setting, value in defaults.items():
                connection.execute(
                    sql.SQL("ALTER DATABASE {} SET {} = {}").format(name, sql.SQL(setting), sql.Literal(value))
                )
        return made[-1]

    yield make
    for dsn in made:
        drop_database(pg, dsn)


def played(dsn: str) -> list:
    """What every function answers and writes, without times and ids of events."""
    said = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement, parameters in CALLS:
            said.append(connection.execute(statement, parameters).fetchone())
        for state, statement in REFUSED.items():
            with pytest.raises(psycopg.Error) as caught:
                connection.execute(statement)
            said.append((state, caught.value.sqlstate))
        for statement in TABLE:
            connection.execute(statement)
        connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL search_path = pg_catalog")
        parked = (
            "SELECT relay.park(array_agg(lane), array_agg(id), 'park', false, 'RLY-703', 'r', 2)"
            " FROM relay.outbox WHERE key = 'k'"
        )
        said.append(connection.execute(parked).fetchone())
        said.append(connection.execute("SELECT relay.unpark(id, false) FROM relay.parked").fetchone())
        connection.execute("COMMIT")
        events = connection.execute(OUTCOME).fetchall()
        said.append(connection.execute("SELECT relay.uncapture('app.item') = ARRAY['app.item'::regclass]").fetchone())
    stamp = r"\d{4}-\d\d-\d\dT[\d:.]+Z"
    return said + [tuple(None if text is None else re.sub(stamp, "ts", text) for text in event) for event in events]


@pytest.fixture(scope="module")
def expected(bare):
    dsn = bare({})
    upgrade(dsn)
    return played(dsn)


@pytest.mark.parametrize("defaults", DEFAULTS)
def test_every_function_does_the_same_under_any_defaults(bare, expected, defaults):
    dsn = bare(DEFAULTS[defaults])
    upgrade(dsn)
    assert played(dsn) == expected


@pytest.mark.parametrize("defaults", DEFAULTS)
def test_events_from_python_are_the_same_under_any_defaults(bare, defaults):
    dsn = bare(DEFAULTS[defaults])
    upgrade(dsn)
    events = [Event("t", None, None), Event("t", "NULL", b"\\\x00'"), Event("t", 'a"\\,{}', "\\")]
    with psycopg.connect(dsn) as connection:
        emit_many(connection, events)
        touch_many(connection, [Change("user", "a\\b"), Change("user", "NULL", payload={"a": 1})])
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT key, payload FROM relay.outbox ORDER BY id").fetchall()
    assert rows[:3] == [(None, None), ("NULL", b"\\\x00'"), ('a"\\,{}', b"\\")]
    assert [key for key, _ in rows[3:]] == ["user:a\\b", "user:NULL"]
