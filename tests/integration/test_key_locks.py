"""Any number of keyed events in one transaction: in order, without room for locks and without deadlocks."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
import pytest

from relay.daemon import parked as desk
from relay.database import connect
from relay.outbox import Event, emit_many
from relay.schema.install import upgrade
from tests.support.commands import emit, park
from tests.support.postgres import private_server
from tests.support.relay_process import eventually

MANY = 1200
"""More keys than one transaction locks by advisory locks."""

LOCKS = """\
SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' AND mode = 'ExclusiveLock'"""
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
EMIT = "SELECT relay.emit('t', %s::text, %s::text)"


@pytest.fixture
def watcher(any_database):
    with psycopg.connect(any_database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def session(any_database):
    """Opens sessions, each in a transaction."""
    opened = []

    def connect_one() -> psycopg.Connection:
        opened.append(psycopg.connect(any_database))
        return opened[-1]

    yield connect_one
    for connection in opened:
        connection.close()


def fill(connection: psycopg.Connection, name: str) -> None:
    """Takes the transaction beyond the limit, by keys of its own."""
    connection.execute(
        "SELECT relay.emit('t', %s || n, 'filling'::text) FROM generate_series(1, %s) AS n", (name, MANY)
    )


def write(connection: psycopg.Connection, key: str, payload: str, *, commit: bool = False) -> None:
    connection.execute(EMIT, (key, payload))
    if commit:
        connection.commit()


def waits(watcher: psycopg.Connection, connection: psycopg.Connection, deed: Future) -> None:
    """The deed is not done before another transaction ends."""
    pid = connection.info.backend_pid
    eventually(lambda: watcher.execute(WAITING, (pid,)).fetchone() == (1,), 30, "the writer to wait for the key")
    assert not deed.done()


def payloads(watcher: psycopg.Connection, key: str) -> list[str]:
    rows = watcher.execute("SELECT payload FROM relay.outbox WHERE key = %s ORDER BY id", (key,)).fetchall()
    return [bytes(row[0]).decode() for row in rows]


def left(watcher: psycopg.Connection) -> int:
    return watcher.execute("SELECT count(*) FROM relay.key_lock").fetchone()[0]


# One transaction


def test_thousands_of_keys_in_one_transaction_take_a_bounded_number_of_locks(session, watcher):
    """Three times each, in another order: as events are emitted one by one."""
    connection = session()
    for step in (1, 7, 11):
        connection.execute(
            "SELECT relay.emit('t', 'k' || (n * %s) %% 3000, n::text) FROM generate_series(1, 3000) AS n", (step,)
        )
        assert connection.execute(LOCKS).fetchone()[0] <= 1100
    connection.commit()
    assert watcher.execute("SELECT count(*), count(DISTINCT key) FROM relay.outbox").fetchone() == (9000, 3000)
    assert left(watcher) == 0


def test_thousands_of_keys_in_one_call_take_a_bounded_number_of_locks(session, watcher):
    connection = session()
    for _ in range(2):
        emit_many(connection, [Event("t", f"k{n}", str(n)) for n in range(5000)])
        assert connection.execute(LOCKS).fetchone()[0] <= 1100
    connection.commit()
    assert watcher.execute("SELECT count(*) FROM relay.outbox").fetchone() == (10_000,)
    assert left(watcher) == 0


def test_a_plan_that_was_made_for_an_empty_table_does_not_walk_a_full_one(session, watcher):
    """A session keeps its plans; a vacuumed table without a page is cheapest to walk."""
    watcher.execute("VACUUM ANALYZE relay.key_lock")
    connection = session()
    connection.execute("SELECT relay.emit('t', 'k' || n, 'x'::text) FROM generate_series(1, 30000) AS n")
    connection.execute("SET LOCAL enable_seqscan = on")
    reads = "SELECT pg_stat_get_xact_numscans('relay.key_lock'::regclass)"
    before = connection.execute(reads).fetchone()
    connection.execute("SELECT relay.emit('t', 'l' || n, 'x'::text) FROM generate_series(1, 100) AS n")
    assert connection.execute(reads).fetchone() == before
    connection.commit()


def test_many_events_of_few_keys_escalate_nothing(session):
    """What is counted are locks, not events."""
    connection = session()
    connection.execute("SELECT relay.emit('t', 'k' || n % 10, 'x'::text) FROM generate_series(1, 5000) AS n")
    assert connection.execute("SELECT current_setting('relay.key_locks')").fetchone()[0].isdecimal()
    assert connection.execute(LOCKS).fetchone() == (10,)
    assert connection.execute("SELECT count(*) FROM relay.key_lock").fetchone() == (0,)


def test_a_transaction_that_was_rolled_back_leaves_nothing(session, watcher):
    connection = session()
    fill(connection, "a")
    connection.rollback()
    write(connection, "a1", "after", commit=True)
    assert payloads(watcher, "a1") == ["after"]
    assert left(watcher) == 0


def test_a_savepoint_takes_the_escalation_with_it(session, watcher, pool):
    """After it, the transaction locks keys as before, and once more beyond the limit."""
    first, second = session(), session()
    first.execute("SAVEPOINT inner_one")
    fill(first, "a")
    first.execute("ROLLBACK TO SAVEPOINT inner_one")
    write(second, "a1", "free again", commit=True)
    write(first, "k", "1")
    fill(first, "b")
    writing = pool.submit(write, second, "k", "2", commit=True)
    waits(watcher, second, writing)
    first.commit()
    writing.result(60)
    assert payloads(watcher, "k") == ["1", "2"]
    assert left(watcher) == 0


# Among writers


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_another_writer_waits_for_a_key_that_was_locked_beyond_the_limit(session, watcher, pool, when, isolation):
    """Whether its transaction began before the other one went beyond the limit or after."""
    first, second = session(), session()
    second.isolation_level = psycopg.IsolationLevel[isolation.replace(" ", "_")]
    if when == "before":
        write(second, "another", "x")
    fill(first, "a")
    write(first, "k", "1")
    if when == "after":
        write(second, "another", "x")
    writing = pool.submit(write, second, "k", "3", commit=True)
    waits(watcher, second, writing)
    write(first, "k", "2")
    first.commit()
    writing.result(60)
    assert payloads(watcher, "k") == ["1", "2", "3"]
    assert left(watcher) == 0


def test_beyond_the_limit_a_writer_waits_for_those_that_were_there_before(session, watcher, pool):
    """And for those that came for the key while it waited."""
    first, second, third = session(), session(), session()
    write(second, "k", "1")
    fill(first, "a")
    writing = pool.submit(write, first, "k", "3")
    waits(watcher, first, writing)
    also = pool.submit(write, third, "k", "4", commit=True)
    waits(watcher, third, also)
    write(second, "k", "2", commit=True)
    writing.result(60)
    first.commit()
    also.result(60)
    assert payloads(watcher, "k") == ["1", "2", "3", "4"]


def test_a_call_for_many_keys_waits_for_one_beyond_the_limit(session, watcher, pool):
    first, second = session(), session()
    fill(first, "a")
    write(first, "k", "1")
    deed = pool.submit(emit_many, second, [Event("t", key, "2") for key in ("j", "k", "l")])
    waits(watcher, second, deed)
    first.commit()
    deed.result(60)
    second.commit()
    assert payloads(watcher, "k") == ["1", "2"]


def test_two_writers_beyond_the_limit_with_keys_of_their_own_do_not_meet(session, watcher):
    """Neither waits: both are open, and go on, all the time."""
    first, second = session(), session()
    for name in ("a", "b"):
        fill(first, "first" + name)
        fill(second, "second" + name)
    write(first, "one", "x")
    write(second, "two", "x", commit=True)
    write(first, "two", "y", commit=True)
    assert payloads(watcher, "two") == ["x", "y"]
    assert left(watcher) == 0


def test_two_writers_beyond_the_limit_wait_for_each_others_keys(session, watcher, pool):
    first, second = session(), session()
    fill(first, "first")
    fill(second, "second")
    write(first, "k", "1")
    writing = pool.submit(write, second, "k", "3", commit=True)
    waits(watcher, second, writing)
    write(first, "k", "2")
    first.commit()
    writing.result(60)
    # One of the keys that were locked before the limit, too.
    fill(first, "again")
    writing = pool.submit(write, second, "again1", "other", commit=True)
    waits(watcher, second, writing)
    first.commit()
    writing.result(60)
    assert payloads(watcher, "k") == ["1", "2", "3"]
    assert payloads(watcher, "again1") == ["filling", "other"]


def test_a_retry_waits_for_a_key_that_was_locked_beyond_the_limit(any_database, session, watcher, pool):
    id_ = emit(watcher, "k", "1")
    park(watcher, id_)
    first = session()
    fill(first, "a")
    write(first, "k", "2")
    with connect(any_database, "relay parked", deadline_seconds=60) as operator:
        retrying = pool.submit(desk.retry, operator, id_, even_if_overtaken=False)
        eventually(
            lambda: watcher.execute(WAITING, (operator.info.backend_pid,)).fetchone() == (1,), 30, "the retry to wait"
        )
        first.commit()
        retrying.result(60)
    assert payloads(watcher, "k") == ["1", "2"]


def test_a_prepared_transaction_keeps_the_keys_that_it_locked_beyond_the_limit(pool):
    """It has removed its rows by then, and they are in the way all the same."""
    with private_server(settings={"max_prepared_transactions": "2"}) as server:
        upgrade(server.dsn())
        with (
            psycopg.connect(server.dsn(), autocommit=True) as first,
            psycopg.connect(server.dsn()) as second,
            psycopg.connect(server.dsn(), autocommit=True) as watcher,
        ):
            first.execute("BEGIN")
            fill(first, "a")
            write(first, "k", "1")
            first.execute("PREPARE TRANSACTION 'p'")
            writing = pool.submit(write, second, "k", "2", commit=True)
            waits(watcher, second, writing)
            watcher.execute("COMMIT PREPARED 'p'")
            writing.result(60)
            assert payloads(watcher, "k") == ["1", "2"]
            assert left(watcher) == 0


@pytest.mark.parametrize(
    "call",
    [
        "SELECT relay.append_event('t', 'k', '2', '{}', NULL, NULL)",
        "SELECT relay.emit_many(ARRAY['t'], ARRAY['k'], ARRAY['2'::bytea], ARRAY['{}'::jsonb], NULL)",
    ],
)
def test_a_key_is_locked_unless_the_caller_says_that_it_is_not(session, watcher, pool, call):
    """NULL does not say so."""
    first, second = session(), session()
    write(first, "k", "1")
    writing = pool.submit(second.execute, call)
    waits(watcher, second, writing)
    first.commit()
    writing.result(60)
    second.commit()
    assert payloads(watcher, "k") == ["1", "2"]


COUNTED = """\
WITH written AS MATERIALIZED (SELECT relay.emit('t', %(key)s::text, 'x'::text) AS event_id)
SELECT event_id FROM written"""
SEEN = """\
INSERT INTO seen SELECT o.id, o.key, (SELECT count(*) FROM relay.outbox AS a WHERE a.key = o.key)
FROM relay.outbox AS o WHERE o.event_id = %(event_id)s"""


def test_each_writer_of_a_key_sees_all_that_came_before_and_nothing_that_comes_later(any_database, watcher):
    """Writers below and beyond the limit at once: the n-th event of a key, by its id, was written when n were visible.

    Two writers that held a key at once would have counted alike.
    """
    watcher.execute("CREATE TABLE seen (id bigint, key text, n bigint)")
    watcher.execute("CREATE INDEX ON relay.outbox (key)")
    keys = [f"k{n:02}" for n in range(12)]
    failed: list[BaseException] = []

    def run(number: int) -> None:
        draw = random.Random(number)
        try:
            with psycopg.connect(any_database) as connection:
                for turn in range(3 if number < 3 else 60):
                    if number < 3:
                        fill(connection, f"own{number}.{turn}.")
                    # Sorted: writers that take keys in any order may end in a deadlock, whatever locks them.
                    for key in sorted(draw.choices(keys, k=draw.choice((1, 2, 5)))):
                        event_id = connection.execute(COUNTED, {"key": key}).fetchone()[0]
                        connection.execute(SEEN, {"event_id": event_id})
                    connection.commit()
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=run, args=(number,)) for number in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert not failed
    for key in keys:
        counted = [row[0] for row in watcher.execute("SELECT n FROM seen WHERE key = %s ORDER BY id", (key,))]
        assert counted == list(range(1, len(counted) + 1)), key
        assert len(counted) > 15
    assert left(watcher) == 0
