"""Parked events: every event can be parked, keeps its id, and goes back to its place among those of its key."""

from __future__ import annotations

import secrets
import threading

import psycopg
import pytest

from relay.daemon import parked as desk
from relay.daemon import queries
from relay.daemon.floors import Floors
from relay.daemon.store import Store
from relay.database import connect
from tests.support.commands import emit, outbox, park
from tests.support.relay_process import eventually

REASON = {"policy": "park", "waits": False, "code": "RLY-703", "reason": "Kafka refuses the event", "attempts": 2}


@pytest.fixture
def writer(any_database):
    with psycopg.connect(any_database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def operator(any_database):
    with connect(any_database, "relay parked", deadline_seconds=60) as connection:
        yield connection


@pytest.fixture
def store(any_database):
    with connect(any_database, "relay worker 0 h") as connection:
        yield Store(connection, Floors(64), rows_max=100, bytes_max=1 << 20, lanes_max=64, takeover_seconds=20)


def park_all(store: Store, **reason) -> list[int]:
    """Parks every event of the outbox as a unit of the daemon does; returns the ids that they had there."""
    unit = store.claim()
    store.park(unit.rows, **{**REASON, **reason})
    store.commit()
    return [row[1] for row in unit.rows]


def parked(connection: psycopg.Connection) -> list[tuple[int, str]]:
    rows = connection.execute("SELECT id, payload FROM relay.parked ORDER BY id").fetchall()
    return [(id_, bytes(payload).decode()) for id_, payload in rows]


def counted(connection: psycopg.Connection) -> bool:
    return connection.execute(
        "SELECT bool_and(l.parked = (SELECT count(*) FROM relay.parked AS p WHERE p.lane = l.lane))"
        " FROM relay.lane AS l"
    ).fetchone()[0]


# Every event can be parked


def test_an_event_with_a_key_that_is_longer_than_an_index_entry_is_parked_and_goes_back(writer, store, operator):
    key = secrets.token_hex(100_000)
    id_ = emit(writer, key, "1")
    assert park_all(store) == [id_]
    emit(writer, key, "2")
    assert desk.find(operator, id_).key_bytes == 200_000
    assert desk.retry(operator, id_, even_if_overtaken=False).moved == 2
    assert outbox(writer) == ["1", "2"]


def test_a_blocked_key_that_is_longer_than_an_index_entry_names_its_blocker(writer, store, operator):
    key = secrets.token_hex(2_000)
    first = emit(writer, key, "1")
    park_all(store, policy="block")
    second = emit(writer, key, "2")
    park_all(store, policy="block", waits=True)
    assert desk._blocker(operator, second) == first
    assert desk.drop(operator, first).moved == 1
    assert outbox(writer) == ["2"]


def test_an_id_that_is_parked_already_does_not_stop_the_parking(writer, store):
    """As after a sequence that was set back."""
    park(writer, emit(writer, "a", "old"))
    writer.execute("SELECT setval('relay.outbox_id_seq', 1, false)")
    emit(writer, "b", "new")
    emit(writer, "c", "newer")
    assert sorted(park_all(store)) == [1, 2]
    assert sorted(payload for _, payload in parked(writer)) == ["new", "newer", "old"]
    assert (1, "old") in parked(writer)
    assert outbox(writer) == []
    assert counted(writer)


def test_events_are_parked_on_the_schema_before_and_with_its_grants(writer, store):
    """Where relay.park is missing, as on schema 2."""
    writer.execute("DROP FUNCTION relay.park(smallint[], bigint[], text, boolean, text, text, integer)")
    emit(writer, "k", "1")
    ids = park_all(store)
    assert parked(writer) == [(id_, "1") for id_ in ids]
    assert counted(writer)


# Ids and order


def test_an_event_that_is_refused_again_has_the_id_that_an_operator_noted(writer, store, operator):
    noted = emit(writer, "k", "1")
    park_all(store)
    for _ in range(3):
        desk.retry(operator, noted, even_if_overtaken=False)
        assert park_all(store) != [noted]
        assert parked(writer) == [(noted, "1")]
    assert writer.execute("SELECT count(*) FROM relay.returned").fetchone() == (0,)


def test_what_was_published_after_a_retry_is_forgotten(writer, store, operator):
    first, second = emit(writer, "a", "1"), emit(writer, "b", "2")
    park_all(store)
    desk.retry(operator, first, even_if_overtaken=False)
    unit = store.claim()
    store.remove(unit.rows)
    store.commit()
    desk.retry(operator, second, even_if_overtaken=False)
    left = writer.execute("SELECT first_id FROM relay.returned").fetchall()
    assert left == [(second,)]


def test_the_order_of_a_key_outlives_retries_in_any_order(writer, store, operator):
    """Three parked events and one in the outbox: whichever goes back first, each ends in its own place."""
    ids = [emit(writer, "k", str(n)) for n in range(1, 4)]
    park_all(store)
    emit(writer, "k", "4")
    for id_ in (ids[2], ids[0], ids[1]):
        desk.retry(operator, id_, even_if_overtaken=False)
    assert outbox(writer) == ["1", "2", "3", "4"]
    park_all(store)
    assert [payload for _, payload in parked(writer)] == ["1", "2", "3", "4"]
    assert [id_ for id_, _ in parked(writer)][:3] == ids


def test_a_clock_that_was_set_back_does_not_change_the_order(writer, store, operator):
    """The parked event says that it was written an hour after those that came behind it."""
    first = emit(writer, "k", "1")
    park_all(store)
    writer.execute("UPDATE relay.parked SET created_at = created_at + interval '1 hour'")
    emit(writer, "k", "2")
    emit(writer, "k", "3")
    desk.retry(operator, first, even_if_overtaken=False)
    assert outbox(writer) == ["1", "2", "3"]


def test_the_order_outlives_a_relay_of_the_schema_before(writer, store, operator):
    """It parks an event that has gone back under a new id: the event still belongs where it was written."""
    _, second, third = (emit(writer, "k", str(n)) for n in (1, 2, 3))
    park(writer, third, second)
    desk.retry(operator, third, even_if_overtaken=False)
    old = writer.execute("SELECT id FROM relay.outbox WHERE convert_from(payload, 'UTF8') = '3'").fetchone()[0]
    park(writer, old)
    park(writer, writer.execute("SELECT id FROM relay.outbox").fetchone()[0])
    for id_, _ in parked(writer)[::-1]:
        desk.retry(operator, id_, even_if_overtaken=False)
    assert outbox(writer) == ["1", "2", "3"]


# Isolation


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_retry_keeps_the_order_whatever_the_databases_default_isolation(any_database, writer, isolation):
    """A writer of the key is open while the retry waits for the key; what it commits stays behind."""
    name = any_database.rpartition("/")[2]
    id_ = emit(writer, "k", "old")
    park(writer, id_)
    writer.execute(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = '{isolation}'")
    with (
        psycopg.connect(any_database) as open_writer,
        connect(any_database, "relay parked", deadline_seconds=60) as operator,
    ):
        open_writer.execute("SELECT relay.emit('t', 'k', 'new'::text)")
        done = threading.Thread(target=lambda: desk.retry(operator, id_, even_if_overtaken=False))
        done.start()
        waits = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'relay parked' AND wait_event_type = 'Lock'"
        )
        eventually(lambda: writer.execute(waits).fetchone() == (1,), 30, "the retry to wait for the key")
        open_writer.commit()
        done.join(60)
    assert outbox(writer) == ["old", "new"]


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_retry_by_hand_in_another_isolation_is_refused(writer, isolation):
    park(writer, emit(writer, "k", "1"))
    writer.execute(f"BEGIN ISOLATION LEVEL {isolation}")
    with pytest.raises(psycopg.Error, match=r"RLY-607.*" + isolation.lower()) as caught:
        writer.execute("SELECT relay.unpark(1, false)")
    assert caught.value.sqlstate == "RL607"
    writer.execute("ROLLBACK")
    assert len(parked(writer)) == 1


def test_a_retry_that_was_not_told_what_to_do_deletes_nothing(writer):
    park(writer, emit(writer, "k", "1"))
    with pytest.raises(psycopg.Error, match="RLY-607"):
        writer.execute("SELECT relay.unpark(1, NULL)")
    assert len(parked(writer)) == 1


def test_the_statement_before_schema_3_writes_what_the_function_writes(writer, store):
    """But for the ids of events that have been parked before."""
    rows = []
    for statement in (queries.PARK, queries.PARK_BEFORE_3):
        id_ = emit(writer, "k", "same")
        lane = writer.execute("SELECT lane FROM relay.outbox").fetchone()[0]
        writer.execute(statement, {**REASON, "lanes": [lane], "ids": [id_]})
        rows += writer.execute(
            "DELETE FROM relay.parked"
            " RETURNING lane, topic, key, headers, payload, policy, waits, code, reason, attempts"
        ).fetchall()
    assert rows[0] == rows[1]


def test_a_key_with_many_events_is_retried_again_and_again(writer, operator):
    """Each retry moves them all; with plans that are made for a handful of events it would take hours."""
    id_ = emit(writer, "k", "0")
    park(writer, id_)
    writer.execute("VACUUM ANALYZE relay.outbox, relay.returned, relay.parked")
    for _ in range(3):
        desk.retry(operator, id_, even_if_overtaken=False)
        park(writer, writer.execute("SELECT min(id) FROM relay.outbox").fetchone()[0])
        id_ = parked(writer)[0][0]
    writer.execute("SELECT relay.emit('t', 'k', n::text) FROM generate_series(1, 20000) AS n")
    for _ in range(2):
        assert desk.retry(operator, id_, even_if_overtaken=False).moved == 20_001
        assert outbox(writer) == [str(n) for n in range(20_001)]
        park(writer, writer.execute("SELECT min(id) FROM relay.outbox").fetchone()[0])
        id_ = parked(writer)[0][0]
