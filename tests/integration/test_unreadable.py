"""Databases in other encodings than UTF-8: what no relay could read is refused where it is written."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from relay.daemon.floors import Floors
from relay.daemon.store import Store
from relay.database import connect
from relay.outbox.refusals import translated
from relay.schema.install import upgrade
from tests.support.postgres import drop_database

#: An encoding, and a text of it that UTF-8 has no character for.
ENCODINGS = {"SQL_ASCII": r"convert_from('\xff', 'SQL_ASCII')", "WIN1252": r"convert_from('\x81', 'WIN1252')"}

WRITTEN = {
    "emit": ("RL109", "SELECT relay.emit('t', {}, 'x'::bytea)"),
    "emit_many": ("RL109", "SELECT relay.emit_many(ARRAY['t'], ARRAY[{}], ARRAY[''::bytea], ARRAY['{{}}'::jsonb])"),
    "append_event": ("RL109", "SELECT relay.append_event('t', {}, 'x', '{{}}', NULL, false)"),
    "headers": ("RL107", "SELECT relay.emit('t', 'k', 'x'::bytea, jsonb_build_object('h', {}))"),
    "touch": ("RL103", "SELECT relay.touch('user', {})"),
    "touch headers": ("RL107", "SELECT relay.touch('user', '1', headers => jsonb_build_object('h', {}))"),
    "touch_many": (
        "RL103",
        "SELECT relay.touch_many(ARRAY['user', 'user'], ARRAY['1', {}], ARRAY['updated', 'updated'], NULL, NULL)",
    ),
    "touch_uncaptured": (
        "RL103",
        "SELECT relay.touch_uncaptured(ARRAY['user'], ARRAY[{}], ARRAY['updated'], NULL, NULL, '{{}}', NULL, NULL)",
    ),
    "capture one": ("RL103", "INSERT INTO item VALUES ({})"),
    "capture many": ("RL103", "INSERT INTO item SELECT {} || n FROM generate_series(1, 2) AS n"),
    "capture update": ("RL103", "UPDATE item SET name = {} || name"),
}


@pytest.fixture(scope="module", params=ENCODINGS)
def encoded(pg, request):
    """A database of this encoding, and the text that is not to be read."""
    name = f"encoded_{request.param.lower()}"
    with psycopg.connect(pg.dsn(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE template0").format(
                sql.Identifier(name), sql.Literal(request.param)
            )
        )
    dsn = pg.dsn(name)
    upgrade(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE item (name text PRIMARY KEY); SELECT relay.capture('item')")
        connection.execute("INSERT INTO item VALUES ('a'), ('b')")
    yield dsn, ENCODINGS[request.param]
    drop_database(pg, dsn)


@pytest.fixture
def writer(encoded):
    with psycopg.connect(encoded[0], autocommit=True, client_encoding="UTF8") as connection:
        connection.execute("TRUNCATE relay.outbox")
        yield connection


@pytest.mark.parametrize("way", WRITTEN)
def test_what_no_relay_could_read_is_refused_by_every_function(encoded, writer, way):
    state, statement = WRITTEN[way]
    with pytest.raises(psycopg.Error) as caught:
        writer.execute(statement.format(encoded[1]))
    assert caught.value.sqlstate == state
    error = translated(caught.value)
    assert error.code == f"RLY-{state[2:]}"
    assert "UTF-8" in str(error)
    assert writer.execute("SELECT count(*) FROM relay.outbox").fetchone() == (0,)


def test_what_is_readable_is_written(writer):
    """Letters beyond ASCII that the encoding shares with UTF-8."""
    for key in ("plain", "é"):
        writer.execute("SELECT relay.emit('t', %s, 'x'::bytea, jsonb_build_object('h', %s::text))", (key, key))
        writer.execute("SELECT relay.touch('user', %s)", (key,))
    writer.execute("INSERT INTO item VALUES ('ü')")
    rows = writer.execute("SELECT key FROM relay.outbox ORDER BY id").fetchall()
    assert rows == [("plain",), ("user:plain",), ("é",), ("user:é",), ("item:ü",)]


def test_a_text_in_utf_8_is_always_readable(database):
    with psycopg.connect(database, autocommit=True) as connection:
        for key in ("", "é", "\U0001f600", "\uffff"):
            assert connection.execute("SELECT relay.is_readable(%s)", (key,)).fetchone() == (True,)
            connection.execute("SELECT relay.emit('t', %s, 'x'::bytea)", (key,))


def test_a_reason_that_the_databases_encoding_does_not_have_parks_the_event(encoded, writer):
    """Reasons repeat the words of Kafka and of the system, in whatever language they are."""
    writer.execute("SELECT relay.emit('t', 'k', 'x'::bytea)")
    with connect(encoded[0], "relay worker 0 h") as connection:
        store = Store(connection, Floors(64), rows_max=10, bytes_max=1 << 20, lanes_max=64, takeover_seconds=20)
        unit = store.claim()
        store.park(unit.rows, policy="park", waits=False, code="RLY-703", reason="\u0442ак\0\x81", attempts=2)
        store.commit()
    found = writer.execute("DELETE FROM relay.parked RETURNING reason").fetchall()
    writer.execute("UPDATE relay.lane SET parked = 0")
    assert found == [("\\u0442\\u0430\\u043a \\x81",)]
