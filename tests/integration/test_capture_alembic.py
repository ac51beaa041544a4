"""Capture as operations of a host's migrations: online, as SQL, and unseen by autogenerate."""

from __future__ import annotations

import io

import psycopg
import pytest
import sqlalchemy as sa
from alembic import op
from alembic.autogenerate import compare_metadata, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.operations.ops import UpgradeOps

from relay.migrations.operations import RelayCapture, RelayUncapture
from tests.integration.test_alembic_blocks import migrating, sqlalchemy_url

CAPTURED = "SELECT relation::text, entity, key, columns, topic FROM relay.captures"
ARGUMENTS = {
    "schema": "App's",
    "entity": "user",
    "key": ["tenant", "id"],
    "columns": ['e"mail', "100 %"],
    "topic": "users",
}
EXPECTED = [('"App\'s"."Users"', "user", ["tenant", "id"], ['e"mail', "100 %"], "users")]


@pytest.fixture
def db(database):
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            'CREATE SCHEMA "App\'s"; CREATE TABLE "App\'s"."Users" (id int, tenant int, "e""mail" text, "100 %" int,'
            " PRIMARY KEY (id, tenant)); CREATE TABLE note (id int PRIMARY KEY)"
        )
        yield connection


def test_a_revision_captures_and_its_downgrade_ends_it(db, database):
    """In the revision's own transaction, whatever is in the names."""
    with migrating(database):
        op.relay_capture("Users", **ARGUMENTS)
        op.relay_capture("note")
        assert db.execute(CAPTURED).fetchall() == []
    found = db.execute(f"{CAPTURED} ORDER BY 2").fetchall()
    assert found == [("note", "note", ["id"], None, "relay.changes"), *EXPECTED]
    with migrating(database):
        op.relay_uncapture("Users", schema="App's")
        op.relay_uncapture("note")
        op.relay_uncapture("note")
    assert db.execute(CAPTURED).fetchall() == []


def test_the_sql_that_alembic_prints_does_the_same(db):
    printed = io.StringIO()
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": printed, "literal_binds": True}
    )
    with Operations.context(context):
        op.relay_capture("Users", **ARGUMENTS)
    db.execute(printed.getvalue())
    assert db.execute(CAPTURED).fetchall() == EXPECTED


def test_autogenerate_proposes_nothing_for_a_captured_table(db, database):
    db.execute("SELECT relay.capture('note')")
    metadata = sa.MetaData()
    sa.Table("note", metadata, sa.Column("id", sa.Integer, primary_key=True, autoincrement=False))
    engine = sa.create_engine(sqlalchemy_url(database))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_the_operations_are_each_other_s_reverse_and_render_as_they_are_called():
    """For hooks of the host that put them into the revisions that Alembic writes."""
    capture = RelayCapture("Users", **ARGUMENTS)
    assert capture.reverse().reverse() is capture
    assert RelayUncapture("note").reverse().table == "note"
    rendered = render_python_code(UpgradeOps([capture, capture.reverse()]))
    calls = [line.strip() for line in rendered.splitlines() if line.strip().startswith("op.")]
    assert calls == [
        "op.relay_capture('Users', schema=\"App's\", entity='user', key=['tenant', 'id'],"
        " columns=['e\"mail', '100 %'], topic='users')",
        "op.relay_uncapture('Users', schema=\"App's\")",
    ]
