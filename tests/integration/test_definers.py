"""Functions that run as the schema's owner run nothing that others have defined."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

FORGES = """\
CREATE TYPE app.kind AS ENUM ('a', 'b');
CREATE DOMAIN app.narrow AS app.kind;
CREATE TABLE app.ran (as_whom text);
GRANT INSERT ON app.ran TO PUBLIC;
CREATE FUNCTION app.forges(app.kind) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO app.ran VALUES (current_user);
    RETURN 'forged';
END $$;
CREATE CAST (app.kind AS text) WITH FUNCTION app.forges(app.kind) AS IMPLICIT;
CREATE TABLE app.item (kind app.kind, same app.narrow, n int, note text, PRIMARY KEY (kind, same, n))"""


@pytest.fixture
def application(any_database):
    """A role that owns a schema and nothing of Relay's, and a session of it."""
    role = "app_" + any_database.rpartition("/")[2]
    with psycopg.connect(any_database, autocommit=True) as owner:
        owner.execute(
            sql.SQL("CREATE ROLE {0} LOGIN; CREATE SCHEMA app AUTHORIZATION {0}").format(sql.Identifier(role))
        )
        with psycopg.connect(any_database.replace("postgres@", f"{role}@"), autocommit=True) as connection:
            yield connection, owner
        owner.execute(sql.SQL("DROP OWNED BY {0} CASCADE; DROP ROLE {0}").format(sql.Identifier(role)))


def test_a_cast_that_a_tables_owner_defines_is_not_run_by_capture(application):
    """The type is an enum of the application's, which may cast it to text as it likes."""
    connection, owner = application
    connection.execute(FORGES)
    owner.execute("SELECT relay.capture('app.item', entity => 'item')")
    for statement in (
        "INSERT INTO app.item VALUES ('a', 'b', 1), ('b', 'b', 2)",
        "UPDATE app.item SET note = 'x' WHERE n = 1",
        "UPDATE app.item SET note = 'y'",
        "UPDATE app.item SET kind = 'a' WHERE n = 2",
        "DELETE FROM app.item",
    ):
        connection.execute(statement)
    assert owner.execute("SELECT as_whom FROM app.ran").fetchall() == []
    keys = {row[0] for row in owner.execute("SELECT key FROM relay.outbox").fetchall()}
    assert keys == {"item:a:b:1", "item:b:b:2", "item:a:b:2"}


def test_triggers_of_the_step_before_are_written_again(bare_step_2):
    """The upgrade itself ends what they did: no call of relay.capture is needed."""
    dsn, upgrade_now = bare_step_2
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute("CREATE SCHEMA app")
        owner.execute(FORGES)
        owner.execute("CREATE TABLE app.log (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)")
        owner.execute("CREATE TABLE app.log_1 PARTITION OF app.log FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')")
        owner.execute("SELECT relay.capture('app.item', entity => 'item', columns => ARRAY['note'])")
        owner.execute("SELECT relay.capture('app.log', topic => 'logs')")
        owner.execute("INSERT INTO app.item VALUES ('a', 'a', 7)")
        assert owner.execute("SELECT count(*) FROM app.ran").fetchone() != (0,)
        owner.execute("TRUNCATE app.ran; TRUNCATE relay.outbox")
        upgrade_now()
        owner.execute("INSERT INTO app.item VALUES ('b', 'a', 1)")
        owner.execute("UPDATE app.item SET n = n")
        owner.execute("UPDATE app.item SET note = 'x' WHERE n = 1")
        owner.execute("INSERT INTO app.log VALUES (1, '2026-03-04'); UPDATE app.log_1 SET id = 2")
        assert owner.execute("SELECT count(*) FROM app.ran").fetchone() == (0,)
        rows = owner.execute("SELECT topic, key FROM relay.outbox ORDER BY id").fetchall()
    assert rows == [
        ("relay.changes", "item:b:a:1"),
        ("relay.changes", "item:b:a:1"),
        ("logs", "log:1:2026-03-04"),
        ("logs", "log:1:2026-03-04"),
        ("logs", "log:2:2026-03-04"),
    ]


@pytest.fixture
def bare_step_2(pg):
    """A database at schema version 2, and the call that takes it to this code's."""
    from relay.schema.install import upgrade
    from relay.schema.steps import script
    from tests.support.postgres import bare_database, drop_database

    dsn = bare_database(pg)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(script(upto=2))
    yield dsn, lambda: upgrade(dsn)
    drop_database(pg, dsn)
