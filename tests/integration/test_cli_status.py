"""`relay status`: what it says is true, it fits a terminal, and looking takes nothing away from the relays."""

from __future__ import annotations

import json

import psycopg
import pytest

from relay.daemon import queries
from relay.daemon.floors import Floors
from relay.daemon.overview import look
from relay.daemon.store import Store
from relay.database import connect
from tests.support.commands import emit, park, relay

CLAIM = {"floors": [0] * 64, "ends": [1000] * 64, "paused": [], "start": 0, "lanes_max": 64}


@pytest.fixture
def writer(any_database):
    with psycopg.connect(any_database, autocommit=True) as connection:
        yield connection


def status(dsn: str, *options: str):
    return relay("status", *options, settings={"RELAY_DATABASE_URL": dsn})


def test_an_empty_outbox_without_relays(any_database):
    said = status(any_database)
    assert said.returncode == 0
    assert said.stderr == ""
    lines = said.stdout.splitlines()
    assert lines[0] == "backlog   0 events"
    assert "parked    none" in lines
    assert "lanes     0 of 64 held at this moment" in lines
    assert "relays    none is connected; start `relay run`" in lines


def test_backlog_by_topic_with_ages_and_parked_events(any_database, writer):
    for number in range(3):
        emit(writer, f"k{number}", "x", topic="orders")
    old = emit(writer, "k", "x", topic="a" * 240)
    writer.execute("UPDATE relay.outbox SET created_at = now() - interval '3 hours' WHERE id = %s", (old,))
    park(writer, emit(writer, "b", "1"), policy="block")
    park(writer, emit(writer, "b", "2"), emit(writer, "b", "3"), policy="block", waits=True)

    data = json.loads(status(any_database, "--json").stdout)
    assert data["backlog"] == 4
    assert data["oldest_age_seconds"] == pytest.approx(10_800, abs=60)
    assert data["parked"]["total"] == 3
    assert (data["parked"]["broken"], data["parked"]["waiting"]) == (1, 2)
    assert {topic["topic"]: topic["events"] for topic in data["topics"]} == {"orders": 3, "a" * 240: 1}
    assert data["lanes"] == {"total": 64, "held": 0, "holders": []}

    text = status(any_database).stdout
    assert "backlog   4 events, the oldest 3 h old" in text
    assert "1 broken, 2 waiting behind them" in text
    assert "\x1b" not in text
    # Whole, since this is a pipe.
    assert "a" * 240 in text
    assert max(len(line) for line in text.splitlines() if "a" * 240 not in line) <= 80


def test_it_says_who_holds_which_lanes_and_leaves_them_alone(any_database, writer):
    for number in range(40):
        emit(writer, f"k{number}", "x")
    with connect(any_database, "relay worker 0 host-1") as one, connect(any_database, "relay worker 1 host-2") as two:
        stores = [
            Store(connection, Floors(64), rows_max=10, bytes_max=1 << 20, lanes_max=5, takeover_seconds=20)
            for connection in (one, two)
        ]
        units = [store.claim() for store in stores]
        assert all(len(unit.lanes) == 5 for unit in units)
        data = json.loads(status(any_database, "--json").stdout)
        assert data["lanes"]["held"] == 10
        assert data["lanes"]["holders"] == [
            {"session": "relay worker 0 host-1", "lanes": 5},
            {"session": "relay worker 1 host-2", "lanes": 5},
        ]
        assert data["relays"] == ["host-1", "host-2"]
        # A commit, a rollback and an update leave their xmax behind; none of them holds anything.
        stores[0].remove(units[0].rows)
        stores[0].commit()
        stores[1].abandon()
        assert json.loads(status(any_database, "--json").stdout)["lanes"]["held"] == 0


def test_a_lane_whose_counter_a_unit_has_raised_is_held_by_it(any_database, writer):
    emit(writer, "k", "x")
    with connect(any_database, "relay worker 0 host-1") as connection:
        store = Store(connection, Floors(64), rows_max=10, bytes_max=1 << 20, lanes_max=5, takeover_seconds=20)
        unit = store.claim()
        store.park(unit.rows, policy="park", waits=False, code="RLY-703", reason="r", attempts=1)
        with connect(any_database, "test") as observer:
            seen = look(observer)
        assert seen.holders == {"relay worker 0 host-1": 1}
        store.abandon()


def test_looking_waits_for_nobody_and_makes_nobody_wait(any_database, writer):
    emit(writer, "k", "x")
    with connect(any_database, "relay worker 0 h") as holder, connect(any_database, "test") as observer:
        holder.execute(queries.BEGIN.format(takeover_ms=20_000))
        assert holder.execute(queries.CLAIM, CLAIM).fetchall()
        observer.execute("SET lock_timeout = '1ms'")
        assert look(observer).lanes_held == 1
        with observer.transaction():
            observer.execute("SET TRANSACTION READ WRITE")
            look_locks = observer.execute(
                "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND mode <> 'AccessShareLock'"
                " AND locktype = 'relation'"
            ).fetchone()
        assert look_locks == (0,)
