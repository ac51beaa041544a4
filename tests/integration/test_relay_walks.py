"""Rows and index entries that a relay may not take cost a bounded step each time, and are not walked twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
import structlog

from relay.daemon import queries
from relay.daemon.floors import Floors
from relay.daemon.observer import Observer
from relay.daemon.store import Store
from relay.database import Connection, connect
from relay.metrics import Metrics
from tests.support import scenario
from tests.support.commands import emit, outbox
from tests.support.relay_process import SHORT, RelayProcess, eventually
from tests.support.topic import read_topic

MISSING = "missing-topic"
STEP = 300
ROWS = 5_000
MOVED = "VACUUM FULL relay.outbox"

INSERT = """\
INSERT INTO relay.outbox (lane, topic, key, payload)
SELECT relay.lane_of('k' || n), %s, 'k' || n, 'x' FROM generate_series(1, %s) AS n"""
OURS = """\
SELECT count(*), extract(epoch FROM clock_timestamp() - %s)::float8 FROM pg_stat_activity
WHERE application_name LIKE 'relay %%' AND datname = current_database()"""


class Process:
    """What one relay process knows, with a worker and the watch on connections of their own."""

    def __init__(self, dsn: str) -> None:
        self.floors = Floors(64)
        self.connection: Connection = connect(dsn, "worker")
        self.watch = connect(dsn, "watch")
        self.store = Store(
            self.connection, self.floors, rows_max=100, bytes_max=1 << 20, lanes_max=64, takeover_seconds=60
        )
        self._now = 0.0
        self.observer = Observer(
            self.floors, clock=lambda: self._now, ring=lambda: None, metrics=Metrics(), log=structlog.get_logger()
        )
        self.steps: list[int] = []
        self._ask = self.store._lookout._ask
        self.store._lookout._ask = self.ask

    def ask(self, query, parameters):
        """Notes how far each look may walk."""
        if query is queries.LOOK:
            pairs = list(zip(parameters["floors"], parameters["ends"], strict=True))
            self.steps.append(max(end - floor for floor, end in pairs))
        return self._ask(query, parameters)

    def prove(self) -> None:
        """Lets the watch prove all that is there."""
        for _ in range(3):
            self.observer.observe(self.watch)
            self._now += 1.0

    def save(self) -> None:
        self.observer.save(self.watch)

    def close(self) -> None:
        self.store.close()
        self.watch.close()


@pytest.fixture
def short_reach(monkeypatch) -> None:
    """Steps of a fixed size, however quick this machine is."""
    monkeypatch.setattr("relay.daemon.floors.REACH_FIRST", STEP)
    monkeypatch.setattr("relay.daemon.floors.adapted_reach", lambda reach, _seconds: reach)
    monkeypatch.setattr("relay.daemon.lookout.REACH_FIRST", STEP)
    monkeypatch.setattr("relay.daemon.lookout.adapted_reach", lambda reach, _seconds: reach)


@pytest.fixture
def new_process(any_database) -> Iterator:
    """Makes processes, and ends them with the test."""
    made: list[Process] = []

    def make() -> Process:
        made.append(Process(any_database))
        made[-1].store._lookout.view()
        return made[-1]

    yield make
    for process in made:
        process.close()


def find(process: Process) -> list[bytes]:
    """The payloads of the next unit, after as many looks as it takes."""
    for _ in range(100):
        unit = process.store.claim()
        if unit is not None:
            process.store.remove(unit.rows)
            process.store.commit()
            process.store.raise_floors_behind(unit)
            return [row[7] for row in unit.rows]
        process.prove()
        process.store.has_work()
    raise AssertionError(f"nothing was found in {len(process.steps)} looks")


def fill(writer: psycopg.Connection, *, is_dead: bool) -> None:
    """Rows that the relay may not take, or the index entries of rows that no vacuum may remove."""
    writer.execute(INSERT, (MISSING, ROWS))
    if is_dead:
        writer.execute("DELETE FROM relay.outbox")


@contextmanager
def old_snapshot(dsn: str) -> Iterator[None]:
    """Keeps a snapshot open, so that no vacuum removes what is deleted meanwhile."""
    with psycopg.connect(dsn) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM relay.outbox")
        yield


@pytest.mark.usefixtures("short_reach")
@pytest.mark.parametrize("is_dead", [False, True], ids=["rows of a missing topic", "dead entries"])
def test_a_look_is_bounded_and_the_next_one_goes_on_where_it_stopped(any_database, new_process, is_dead):
    """An event behind them is found, in as many steps as there is to walk, and the one after it at once."""
    with psycopg.connect(any_database, autocommit=True) as writer, old_snapshot(any_database):
        fill(writer, is_dead=is_dead)
        emit(writer, "k", "first")
        process = new_process()
        process.floors.pause(MISSING, 1e9)
        assert find(process) == [b"first"]
        assert max(process.steps) <= STEP
        assert len(process.steps) >= ROWS / STEP
        process.prove()
        process.steps.clear()
        emit(writer, "k", "second")
        assert find(process) == [b"second"]
        assert len(process.steps) <= 3


@pytest.mark.usefixtures("short_reach")
def test_rows_of_other_lanes_do_not_wait_for_a_walk(any_database, new_process):
    """A lane that always has work does not keep others from being walked either."""
    with psycopg.connect(any_database, autocommit=True) as writer:
        busy, other = "k1", "k5"
        assert len(set(writer.execute("SELECT relay.lane_of(%s), relay.lane_of(%s)", (busy, other)).fetchone())) == 2
        for number in range(50):
            emit(writer, busy, str(number))
        fill(writer, is_dead=False)
        emit(writer, other, "other")
        process = new_process()
        process.floors.pause(MISSING, 1e9)
        found: list[bytes] = []
        while b"other" not in found:
            # New work for the busy lane, at the end of all.
            emit(writer, busy, "more")
            found += find(process)
            process.prove()
        assert found[:50] == [str(number).encode() for number in range(50)]


@pytest.mark.usefixtures("short_reach")
@pytest.mark.parametrize("is_dead", [False, True], ids=["rows of a missing topic", "dead entries"])
def test_the_next_relay_begins_where_the_last_one_was(any_database, new_process, is_dead):
    """It reads where from, and finds an event without walking anything."""
    with psycopg.connect(any_database, autocommit=True) as writer, old_snapshot(any_database):
        fill(writer, is_dead=is_dead)
        first = new_process()
        first.prove()
        if not is_dead:
            first.floors.pause(MISSING, 1e9)
        while not first.store.has_work() and not first.floors.is_settled:
            first.prove()
        first.save()
        emit(writer, "k", "found")
        second = new_process()
        assert second.floors.due(0.0) == ([] if is_dead else [MISSING])
        assert min(second.floors.view().floors) > ROWS
        assert find(second) == [b"found"]
        assert len(second.steps) <= 1


@pytest.mark.parametrize("change", ["DROP TABLE relay.floor", "TRUNCATE relay.outbox RESTART IDENTITY"])
def test_without_hints_or_with_those_of_other_ids_a_relay_begins_at_zero(any_database, new_process, change):
    with psycopg.connect(any_database, autocommit=True) as writer:
        fill(writer, is_dead=True)
        first = new_process()
        first.prove()
        while not first.store.has_work() and not first.floors.is_settled:
            first.prove()
        first.save()
        writer.execute(change)
        second = new_process()
        assert max(second.floors.view().floors) == 0
        emit(writer, "k", "found")
        assert find(second) == [b"found"]
        second.prove()
        second.save()


@pytest.mark.usefixtures("short_reach")
@pytest.mark.parametrize("is_dead", [False, True], ids=["rows of a missing topic", "dead entries"])
def test_a_drain_ends_when_the_outbox_is_empty_and_only_then(any_database, new_process, is_dead):
    """It looks below the floors too, by steps, and in lanes that are none."""
    with psycopg.connect(any_database, autocommit=True) as writer:
        fill(writer, is_dead=is_dead)
        process = new_process()
        process.floors.pause(MISSING, 1e9)
        process.prove()
        while not process.store.has_work() and not process.floors.is_settled:
            process.prove()
        assert process.store.is_empty() is is_dead
        assert max(process.steps) <= STEP
        writer.execute("DELETE FROM relay.outbox")
        assert process.store.is_empty()
        for lane in (-1, 64):
            writer.execute("INSERT INTO relay.outbox (lane, topic) VALUES (%s, 't')", (lane,))
            assert not process.store.is_empty()
            writer.execute("DELETE FROM relay.outbox")


def test_the_net_finds_a_row_below_the_floors_and_the_floors_go_back_to_it(any_database, new_process):
    """Whoever put it there; it is published, and counted."""
    with psycopg.connect(any_database, autocommit=True) as writer:
        fill(writer, is_dead=True)
        process = new_process()
        process.prove()
        while not process.store.has_work() and not process.floors.is_settled:
            process.prove()
        writer.execute(
            "INSERT INTO relay.outbox (id, lane, topic, key, payload)"
            " OVERRIDING SYSTEM VALUE VALUES (77, 5, 't', 'k', 'x')"
        )
        for _ in range(30):
            process.prove()
        assert process.floors.view().floors[5] == 77
        assert find(process) == [b"x"]


def test_a_lock_on_the_table_leaves_no_sessions_behind(database, kafka, topic):
    """VACUUM FULL takes longer than any deadline. What waits for it ends in the server before the relay gives it up."""
    deadline = float(SHORT["RELAY_DATABASE__DEADLINE_SECONDS"])
    with RelayProcess(database, kafka.bootstrap, settings=SHORT) as relay:
        relay.wait_started()
        with psycopg.connect(database) as owner, psycopg.connect(database, autocommit=True) as observer:
            (began,) = observer.execute("SELECT clock_timestamp()").fetchone()
            owner.execute("LOCK TABLE relay.outbox IN ACCESS EXCLUSIVE MODE")
            seen: list[int] = []

            def has_outlasted_some_deadlines() -> bool:
                sessions, seconds = observer.execute(OURS, (began,)).fetchone()
                seen.append(sessions)
                return seconds > 6 * deadline

            eventually(has_outlasted_some_deadlines, 60, "time to pass")
            # Two workers, the watch, and whoever takes samples.
            assert max(seen) <= 4
            owner.rollback()
        with psycopg.connect(database, autocommit=True) as writer:
            emit(writer, "k", "x", topic=topic)
        scenario.wait_empty(database, 60)
        assert relay.stop() == 0
    assert len(read_topic(kafka.bootstrap, topic)) == 1


def test_a_topic_that_is_still_missing_stays_paused_over_a_restart(database, kafka, topic):
    """The log and health say so; what waits for it is not looked through again, and flows once the topic is there."""
    missing = f"{topic}-missing"
    with RelayProcess(database, kafka.bootstrap) as relay:
        relay.wait_started()
        with psycopg.connect(database, autocommit=True) as writer:
            writer.execute(INSERT, (missing, ROWS))
            emit(writer, "k", "first", topic=topic)
            relay.wait_event("topic.paused", seconds=60)
            eventually(lambda: len(outbox(writer)) == ROWS, 60, "the healthy topic's event to be published")
            saved = "SELECT min(f) FROM relay.floor, unnest(floors) AS f WHERE slot = 1 AND paused = ARRAY[%s]"
            eventually(lambda: (writer.execute(saved, (missing,)).fetchone()[0] or 0) > ROWS, 60, "floors to be saved")
            assert relay.stop() == 0
            emit(writer, "k", "second", topic=topic)
            relay.restart()
            eventually(lambda: len(outbox(writer)) == ROWS, 60, "the healthy topic's event to be published")
            assert relay.wait_event("topic.paused", seconds=60)["topic"] == missing
            assert missing in relay.get("/readyz")[1]
            assert not relay.events("unit.held"), relay.said()
            kafka.create_topic(missing)
            scenario.wait_empty(database, 60)
            assert relay.events("topic.resumed")
            assert relay.stop() == 0
    assert len(read_topic(kafka.bootstrap, topic)) == 2


@pytest.fixture
def eager_sweeps(monkeypatch) -> None:
    """A sweep as soon as there is any walk ahead, of one page at a time."""
    monkeypatch.setattr("relay.daemon.lookout.WALK_SECONDS", 1e-9)
    monkeypatch.setattr("relay.daemon.sweep.PAGE_SECONDS", 0.0)
    monkeypatch.setattr("relay.daemon.sweep.REACH_MIN", 1)
    monkeypatch.setattr("relay.daemon.sweep.adapted_reach", lambda reach, _seconds: reach)


def sweeping(process: Process) -> None:
    """Takes one step of a sweep, past the first page."""
    process.prove()
    lookout = process.store._lookout
    lookout.look(lookout.view())
    process.floors.sweep = lookout._new_sweep(lookout.view())
    assert lookout._sweep(lookout.view())


@pytest.mark.usefixtures("short_reach", "eager_sweeps")
@pytest.mark.parametrize("is_dead", [False, True], ids=["rows of a missing topic", "dead entries"])
def test_a_long_walk_is_swept_by_pages(any_database, new_process, is_dead):
    """Steps of the index end where the sweep begins, and the event behind it all is found in the next."""
    with psycopg.connect(any_database, autocommit=True) as writer, old_snapshot(any_database):
        fill(writer, is_dead=is_dead)
        emit(writer, "k", "first")
        process = new_process()
        process.floors.pause(MISSING, 1e9)
        process.prove()
        assert find(process) == [b"first"]
        assert len(process.steps) < ROWS / STEP / 2


@pytest.mark.usefixtures("short_reach", "eager_sweeps")
def test_an_event_that_lands_in_a_page_that_was_swept_is_found(any_database, new_process):
    """Vacuum has made room there, and what is proven has come past the event meanwhile."""
    with psycopg.connect(any_database, autocommit=True) as writer:
        fill(writer, is_dead=False)
        writer.execute("DELETE FROM relay.outbox WHERE ctid < '(1,0)'")
        writer.execute("VACUUM (INDEX_CLEANUP ON) relay.outbox")
        process = new_process()
        process.floors.pause(MISSING, 1e9)
        sweeping(process)
        emit(writer, "k", "found")
        where = "SELECT ctid < '(1,0)'::tid FROM relay.outbox WHERE payload = 'found'"
        assert writer.execute(where).fetchone() == (True,)
        process.prove()
        assert find(process) == [b"found"]


@pytest.mark.usefixtures("short_reach", "eager_sweeps")
@pytest.mark.parametrize("change", [MOVED, "late", "server", "resumed"])
def test_a_sweep_ends_where_what_it_has_seen_is_void(any_database, new_process, change):
    """The rows have moved to other pages, a long writer has committed, ids have begun again, a topic is back."""
    with psycopg.connect(any_database, autocommit=True) as writer, psycopg.connect(any_database) as late:
        if change == "late":
            late.execute("SELECT 1")
            emit(late, "k", "found")
        fill(writer, is_dead=False)
        if change == MOVED:
            emit(writer, "k", "found")
        process = new_process()
        process.floors.pause(MISSING, 1e9)
        if change == "late":
            for _ in range(6):
                process.prove()
            assert process.floors.view().pins
        sweeping(process)
        match change:
            case "late":
                late.commit()
            case "server":
                writer.execute("TRUNCATE relay.outbox RESTART IDENTITY")
                emit(writer, "k", "found")
            case "resumed":
                process.floors.resume(MISSING)
            case _:
                # The new table begins with what was at the end of the old one.
                writer.execute("DELETE FROM relay.outbox WHERE topic = %s", (MISSING,))
                writer.execute(MOVED)
        assert find(process)[0] == (b"x" if change == "resumed" else b"found")
