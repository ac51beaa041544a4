"""Two-phase commit: a transaction that writes events can be prepared, whether or not a relay sleeps."""

from __future__ import annotations

import psycopg
import pytest

from relay.schema.install import upgrade
from tests.support.postgres import private_server

WRITES = {
    "emit": "SELECT relay.emit('t', 'k', 'x'::text)",
    "emit_many": "SELECT relay.emit_many(ARRAY['t'], ARRAY['k'], ARRAY['x'::bytea], ARRAY['{}'::jsonb])",
    "touch": "SELECT relay.touch('user', '1')",
    "touch_many": "SELECT relay.touch_many(ARRAY['user'], ARRAY['2'], ARRAY['updated'], NULL, NULL)",
    "capture one": "UPDATE item SET note = note + 1 WHERE id = 1",
    "capture many": "UPDATE item SET note = note + 1",
}


@pytest.fixture(scope="module")
def prepares():
    """A server that lets transactions be prepared, with a captured table and a relay that sleeps."""
    with private_server(settings={"max_prepared_transactions": "5"}) as server:
        upgrade(server.dsn())
        with psycopg.connect(server.dsn(), autocommit=True) as sleeper:
            sleeper.execute("CREATE TABLE item (id int PRIMARY KEY, note int); SELECT relay.capture('item')")
            sleeper.execute("INSERT INTO item VALUES (1, 1), (2, 2)")
            sleeper.execute("SELECT pg_advisory_lock(7236836)")
            yield server.dsn()


@pytest.fixture
def writer(prepares):
    with psycopg.connect(prepares, autocommit=True) as connection:
        connection.execute("TRUNCATE relay.outbox")
        yield connection


def notified(dsn: str, *statements: str) -> bool:
    """Whether a commit of these statements wakes who listens: notifications arrive in the order of commits."""
    with psycopg.connect(dsn, autocommit=True) as listener, psycopg.connect(dsn) as connection:
        listener.execute("LISTEN relay_wake")
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.execute("SELECT pg_notify('relay_wake', 'last')")
        connection.commit()
        heard = []
        for notification in listener.notifies(timeout=60):
            heard.append(notification.payload)
            if notification.payload == "last":
                break
        assert heard[-1:] == ["last"]
        return len(heard) > 1


@pytest.mark.parametrize("way", WRITES)
def test_a_transaction_that_writes_events_while_a_relay_sleeps_can_be_prepared(writer, way):
    writer.execute("BEGIN")
    writer.execute(WRITES[way])
    writer.execute("PREPARE TRANSACTION 'both'")
    assert writer.execute("SELECT count(*) FROM relay.outbox").fetchone() == (0,)
    writer.execute("COMMIT PREPARED 'both'")
    assert writer.execute("SELECT count(*) > 0 FROM relay.outbox").fetchone() == (True,)


@pytest.mark.parametrize("way", WRITES)
def test_where_nothing_can_be_prepared_a_commit_wakes_the_relay(database, way):
    with psycopg.connect(database, autocommit=True) as sleeper:
        sleeper.execute("CREATE TABLE item (id int PRIMARY KEY, note int); SELECT relay.capture('item')")
        sleeper.execute("INSERT INTO item VALUES (1, 1), (2, 2)")
        sleeper.execute("SELECT pg_advisory_lock(7236836)")
        assert notified(database, WRITES[way])
        assert not notified(database, "SET LOCAL relay.notify = off", WRITES[way])


def test_a_setting_says_whether_commits_wake_the_relay(prepares, writer):
    assert not notified(prepares, WRITES["emit"])
    assert notified(prepares, "SET LOCAL relay.notify = on", WRITES["emit"])
    writer.execute("BEGIN; SET LOCAL relay.notify = on")
    writer.execute(WRITES["emit"])
    with pytest.raises(psycopg.Error, match="NOTIFY"):
        writer.execute("PREPARE TRANSACTION 'refused'")
