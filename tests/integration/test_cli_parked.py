"""`relay parked`: what an operator sees, what is refused and why, and the order in which things go back."""

from __future__ import annotations

import itertools
import json
import random
import threading

import psycopg
import pytest
from psycopg import sql

from relay.daemon import parked as desk
from relay.daemon.floors import Floors
from relay.daemon.store import Store
from relay.database import connect
from relay.errors import OperatorError
from tests.support.commands import emit, outbox, park, relay
from tests.support.postgres import ONE_MAJOR
from tests.support.relay_process import eventually

one_major = pytest.mark.parametrize("any_database", ONE_MAJOR, indirect=True)


@pytest.fixture
def writer(any_database):
    with psycopg.connect(any_database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def operator(any_database):
    with connect(any_database, "relay parked", deadline_seconds=60) as connection:
        yield connection


@pytest.fixture
def run(any_database):
    return lambda *arguments: relay("parked", *arguments, settings={"RELAY_DATABASE_URL": any_database})


def parked_ids(connection) -> list[int]:
    return [row[0] for row in connection.execute("SELECT id FROM relay.parked ORDER BY id")]


def counted(connection) -> bool:
    """Whether the lanes' counters say what is there."""
    return connection.execute(
        "SELECT bool_and(l.parked = (SELECT count(*) FROM relay.parked AS p WHERE p.lane = l.lane))"
        " FROM relay.lane AS l"
    ).fetchone()[0]


def overtake(connection, *ids: int) -> None:
    connection.execute("UPDATE relay.parked SET overtaken_at = now() WHERE id = ANY (%s)", (list(ids),))


# What an operator sees


@one_major
def test_nothing_is_parked(run):
    said = run("list")
    assert (said.returncode, said.stdout) == (0, "nothing is parked\n")
    assert json.loads(run("list", "--json").stdout) == []


@one_major
def test_the_list_says_which_why_since_when_and_fits_a_terminal(run, writer):
    first = emit(writer, "k1", "p", topic="orders")
    park(writer, first)
    overtake(writer, first)
    block = emit(writer, "k2", "p", topic="x" * 200)
    park(writer, block, policy="block")
    waiting = emit(writer, "k2", "p", topic="x" * 200)
    park(writer, waiting, policy="block", waits=True)

    lines = run("list").stdout.splitlines()
    assert lines[0].split() == ["id", "since", "tries", "policy", "code", "state", "topic"]
    id_, _age, unit, *rest = lines[1].split()
    assert [id_, unit, *rest] == [str(first), "s", "2", "park", "RLY-703", "overtaken", "orders"]
    assert [line.split()[6] for line in lines[2:]] == ["broken", "waits"]
    assert lines[2].endswith("  " + "x" * 200)
    assert len(run("list", "--topic", "orders").stdout.splitlines()) == 2
    data = json.loads(run("list", "--json").stdout)
    assert [(event["id"], event["state"]) for event in data] == [
        (first, "overtaken"),
        (block, "broken"),
        (waiting, "waits"),
    ]
    assert data[0]["reason"] == "Kafka refuses the event"


@one_major
def test_content_is_shown_only_when_revealed(run, writer):
    writer.execute("SELECT relay.touch('user', 'secret-id', 'updated', 't', '{\"name\": \"secret-name\"}')")
    park(writer, 1)
    for options in ((), ("--json",)):
        hidden = run("show", "1", *options)
        assert hidden.returncode == 0
        assert "secret" not in hidden.stdout + hidden.stderr
        assert "content-type" in hidden.stdout
        shown = run("show", "1", "--reveal", *options).stdout
        assert "user:secret-id" in shown
        assert "secret-name" in shown
    assert "secret" not in run("list").stdout + run("list", "--json").stdout


@one_major
def test_revealed_content_cannot_write_to_the_terminal(run, writer):
    writer.execute("SELECT relay.emit('t', %s::text, %s::bytea)", ("k\x1b[31m", b"\x1b]0;title\x07 \xff"))
    writer.execute("SELECT relay.emit('t', 'k', %s::text)", ("\x1b[2Jgone",))
    park(writer, 1, 2)
    for id_ in ("1", "2"):
        assert "\x1b" not in run("show", id_, "--reveal").stdout
    assert json.loads(run("show", "1", "--reveal", "--json").stdout)["payload"] == "\\x1b5d303b7469746c650720ff"


# What is refused


@one_major
@pytest.mark.parametrize("verb", [["show"], ["retry"], ["drop", "--yes"]])
def test_an_unknown_id_is_named(run, verb):
    said = run(*verb, "77")
    assert said.returncode == 1
    assert said.stderr == "RLY-601: there is no parked event 77. Fix: see `relay parked list`\n"


@one_major
def test_a_retry_of_an_overtaken_event_is_refused_unless_it_is_wanted(run, writer):
    id_ = emit(writer, "k", "1")
    park(writer, id_)
    overtake(writer, id_)
    said = run("retry", str(id_))
    assert said.returncode == 1
    assert said.stderr.startswith(f"RLY-602: parked event {id_} has been overtaken")
    assert "--even-if-overtaken" in said.stderr
    assert parked_ids(writer) == [id_]
    assert run("retry", str(id_), "--even-if-overtaken").returncode == 0
    assert outbox(writer) == ["1"]
    assert counted(writer)


@one_major
@pytest.mark.parametrize("verb", [["retry"], ["drop", "--yes"]])
def test_an_event_that_only_waits_is_refused_and_the_one_to_treat_is_named(run, writer, verb):
    block, waiting = emit(writer, "k", "1"), emit(writer, "k", "2")
    park(writer, block, policy="block")
    park(writer, waiting, policy="block", waits=True)
    said = run(*verb, str(waiting))
    assert said.returncode == 1
    assert said.stderr.startswith(f"RLY-603: parked event {waiting} waits for event {block} of its key")
    assert f"relay parked retry {block}" in said.stderr
    assert parked_ids(writer) == [block, waiting]


@one_major
@pytest.mark.parametrize(
    "arguments",
    [
        ["retry"],
        ["retry", "1", "--all"],
        ["retry", "1", "--topic", "t"],
        ["drop", "1"],
        ["drop", "--all"],
        ["retry", "one"],
        ["drop", "--yes"],
    ],
)
def test_what_is_unclear_or_not_confirmed_is_a_usage_error_and_changes_nothing(run, writer, arguments):
    park(writer, emit(writer, "k", "1"))
    assert run(*arguments).returncode == 2
    assert parked_ids(writer) == [1]


# The order


@one_major
def test_with_a_blocked_key_go_those_that_waited_and_those_that_came_after(run, writer):
    ids = [emit(writer, "k", str(n)) for n in range(1, 6)]
    emit(writer, "other", "o")
    park(writer, ids[0], policy="block")
    park(writer, *ids[1:3], policy="block", waits=True)
    assert outbox(writer) == ["4", "5", "o"]
    assert run("retry", str(ids[0])).returncode == 0
    assert outbox(writer) == ["o", "1", "2", "3", "4", "5"]
    assert parked_ids(writer) == []
    assert counted(writer)
    assert min(row[0] for row in writer.execute("SELECT id FROM relay.outbox WHERE key = 'k'")) > ids[-1]


@one_major
def test_dropping_a_blocking_event_frees_those_that_waited(run, writer):
    ids = [emit(writer, "k", str(n)) for n in range(1, 5)]
    park(writer, ids[0], policy="block")
    park(writer, *ids[1:3], policy="block", waits=True)
    assert run("drop", str(ids[0]), "--yes").returncode == 0
    assert outbox(writer) == ["2", "3", "4"]
    assert counted(writer)


def test_dropping_an_event_that_nobody_waits_for_leaves_the_outbox_alone(operator, writer):
    ids = [emit(writer, "k", str(n)) for n in range(1, 4)]
    park(writer, ids[0])
    assert desk.drop(operator, ids[0]).moved == 0
    assert [row[0] for row in writer.execute("SELECT id FROM relay.outbox ORDER BY id")] == ids[1:]


def test_two_keys_and_an_event_without_a_key_keep_to_themselves(operator, writer):
    ids = [emit(writer, key, f"{key}{n}") for n in (1, 2) for key in ("a", "b", None)]
    park(writer, *ids[:3])
    desk.retry(operator, ids[2], even_if_overtaken=False)
    desk.retry(operator, ids[0], even_if_overtaken=False)
    assert outbox(writer) == ["b2", "None2", "None1", "a1", "a2"]
    assert counted(writer)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_events_of_one_key_come_out_in_the_order_in_which_they_were_written(operator, writer, order):
    ids = [emit(writer, "k", str(n)) for n in range(5)]
    park(writer, ids[0], ids[1], ids[3])
    for index in order:
        desk.retry(operator, [ids[0], ids[1], ids[3]][index], even_if_overtaken=False)
    assert outbox(writer) == ["0", "1", "2", "3", "4"]
    assert counted(writer)


def test_any_sequence_of_parking_and_retrying_keeps_the_order(operator, writer):
    draw = random.Random(7)
    for round_ in range(15):
        writer.execute("TRUNCATE relay.outbox, relay.parked")
        writer.execute("UPDATE relay.lane SET parked = 0")
        written = 0
        for _ in range(20):
            live = [row[0] for row in writer.execute("SELECT id FROM relay.outbox ORDER BY id")]
            broken = parked_ids(writer)
            deed = draw.randrange(3)
            if deed == 0 or not (live or broken):
                emit(writer, "k", f"{written:03}")
                written += 1
            elif deed == 1 and live:
                park(writer, draw.choice(live))
            elif broken:
                desk.retry(operator, draw.choice(broken), even_if_overtaken=False)
        desk.retry_all(operator, None, even_if_overtaken=False)
        assert outbox(writer) == [f"{n:03}" for n in range(written)], f"round {round_}"
        assert counted(writer)


def test_a_clock_that_was_set_back_does_not_reorder_what_was_not_parked(operator, writer):
    ids = [emit(writer, "k", str(n)) for n in range(4)]
    writer.execute("UPDATE relay.outbox SET created_at = created_at - interval '1 hour' WHERE id >= %s", (ids[2],))
    park(writer, ids[0])
    desk.retry(operator, ids[0], even_if_overtaken=False)
    assert outbox(writer) == ["0", "1", "2", "3"]


def test_an_event_without_key_blocks_nobody(operator, writer):
    ids = [emit(writer, None, str(n)) for n in range(2)]
    park(writer, *ids, policy="block")
    assert desk.retry(operator, ids[1], even_if_overtaken=False).moved == 1


@one_major
def test_all_go_in_id_order_and_what_is_refused_is_named(run, writer):
    ids = [emit(writer, "k", str(n)) for n in range(3)] + [emit(writer, "o", "o"), emit(writer, "o", "p")]
    park(writer, ids[0], ids[1])
    other = emit(writer, "z", "z", topic="u")
    park(writer, other, ids[3], policy="block")
    park(writer, ids[4], policy="block", waits=True)
    overtake(writer, ids[0])
    said = run("retry", "--all", "--topic", "t", "--json")
    assert said.returncode == 1
    data = json.loads(said.stdout)
    assert data["retried"] == [ids[1], ids[3]]
    assert [(refused["id"], refused["code"]) for refused in data["refused"]] == [(ids[0], "RLY-602")]
    assert outbox(writer) == ["1", "2", "o", "p"]
    assert parked_ids(writer) == [ids[0], other]
    said = run("retry", "--all", "--even-if-overtaken")
    assert (said.returncode, said.stdout) == (0, "retried 2 parked events\n")
    assert counted(writer)


@one_major
def test_drop_all_drops_what_is_broken_and_lets_go_what_waited(run, writer):
    ids = [emit(writer, "k", str(n)) for n in range(3)]
    park(writer, ids[0], policy="block")
    park(writer, *ids[1:], policy="block", waits=True)
    assert run("drop", "--all", "--yes").stdout == "dropped 1 parked event\n"
    assert outbox(writer) == ["1", "2"]
    assert parked_ids(writer) == []


def test_an_event_of_a_key_that_another_one_blocks_is_refused(operator, writer):
    ids = [emit(writer, "k", str(n)) for n in range(3)]
    park(writer, ids[0])
    park(writer, ids[1], policy="block")
    park(writer, ids[2], policy="block", waits=True)
    with pytest.raises(OperatorError, match=f"RLY-603: parked event {ids[0]} waits for event {ids[1]}"):
        desk.retry(operator, ids[0], even_if_overtaken=False)
    desk.retry(operator, ids[1], even_if_overtaken=False)
    desk.retry(operator, ids[0], even_if_overtaken=False)
    assert outbox(writer) == ["0", "1", "2"]


# Together with writers and relays


def test_a_retry_waits_for_a_writer_of_the_key_and_stands_before_its_event(any_database, operator, writer):
    id_ = emit(writer, "k", "1")
    park(writer, id_)
    with psycopg.connect(any_database) as open_writer:
        open_writer.execute("SELECT relay.emit('t', 'k', '2'::text)")
        done = threading.Thread(target=lambda: desk.retry(operator, id_, even_if_overtaken=False))
        done.start()
        done.join(0.7)
        assert done.is_alive()
        open_writer.commit()
        done.join(60)
    assert outbox(writer) == ["1", "2"]


def test_a_retry_waits_for_a_writer_that_touches_the_entity(any_database, operator, writer):
    writer.execute("SELECT relay.touch('user', '1', topic => 't')")
    park(writer, 1)
    with psycopg.connect(any_database) as open_writer:
        open_writer.execute("SELECT relay.touch('user', '1', topic => 't')")
        done = threading.Thread(target=lambda: desk.retry(operator, 1, even_if_overtaken=False))
        done.start()
        done.join(0.7)
        assert done.is_alive()
        open_writer.commit()
        done.join(60)
    versions = [json.loads(payload)["version"] for payload in outbox(writer)]
    assert versions == [1, 2]


@one_major
def test_a_writer_of_the_key_that_never_ends_costs_the_operator_an_answer(any_database, operator, writer, monkeypatch):
    monkeypatch.setattr(desk, "PATIENCE_SECONDS", 1.0)
    id_ = emit(writer, "k", "1")
    park(writer, id_)
    with psycopg.connect(any_database) as open_writer:
        open_writer.execute("SELECT relay.emit('t', 'k', '2'::text)")
        with pytest.raises(OperatorError, match="RLY-605"):
            desk.retry(operator, id_, even_if_overtaken=False)
        open_writer.commit()
    assert parked_ids(writer) == [id_]


def test_a_writer_that_emits_and_touches_one_key_is_no_deadlock_victim(any_database, operator, writer):
    writer.execute("SELECT relay.touch('user', '1', topic => 't')")
    park(writer, 1)
    with psycopg.connect(any_database) as open_writer:
        # The row first, the advisory lock second: the other way round than relay.unpark.
        open_writer.execute("SELECT relay.touch('user', '1', topic => 't')")
        done = threading.Thread(target=lambda: desk.retry(operator, 1, even_if_overtaken=False))
        done.start()
        done.join(0.2)
        open_writer.execute("SELECT relay.emit('t', 'user:1', 'emitted'::text)")
        open_writer.commit()
        done.join(60)
    assert len(outbox(writer)) == 3


def test_a_retry_waits_for_the_unit_that_holds_the_lane(any_database, operator, writer):
    id_ = emit(writer, "k", "1")
    park(writer, id_)
    emit(writer, "k", "2")
    with connect(any_database, "relay worker 0 h") as connection:
        store = Store(connection, Floors(64), rows_max=10, bytes_max=1 << 20, lanes_max=64, takeover_seconds=20)
        unit = store.claim()
        done = threading.Thread(target=lambda: desk.retry(operator, id_, even_if_overtaken=False))
        done.start()
        done.join(0.7)
        assert done.is_alive()
        store.remove(unit.rows)
        store.commit()
        done.join(60)
    assert outbox(writer) == ["1"]


def test_two_operators_treat_an_event_once(any_database, writer):
    ids = [emit(writer, f"k{n}", str(n)) for n in range(20)]
    park(writer, *ids)
    results = []

    def treat() -> None:
        with connect(any_database, "relay parked", deadline_seconds=60) as connection:
            results.append(desk.retry_all(connection, None, even_if_overtaken=False))

    threads = [threading.Thread(target=treat) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(id_ for result in results for id_ in result.treated) == ids
    assert not any(result.refused for result in results)
    assert sorted(outbox(writer)) == sorted(str(n) for n in range(20))
    assert counted(writer)


@one_major
def test_retries_among_writers_and_relays_lose_nothing_and_keep_the_order(any_database, writer):
    """Writers, an operator and two stores at once; `published` is what the stores removed, in order per lane."""
    keys = [f"k{n}" for n in range(4)]
    written = dict.fromkeys(keys, 0)
    published: dict[str, list[str]] = {key: [] for key in keys}
    stop = threading.Event()
    draw = random.Random(11)

    def write(key: str) -> None:
        with psycopg.connect(any_database) as connection:
            while not stop.is_set():
                connection.execute("SELECT relay.emit('t', %s::text, %s::text)", (key, f"{written[key]:05}"))
                connection.commit()
                written[key] += 1

    def publish() -> None:
        floors = Floors(64)
        with connect(any_database, "relay worker 0 h") as connection:
            store = Store(connection, floors, rows_max=50, bytes_max=1 << 20, lanes_max=4, takeover_seconds=20)
            while not (stop.is_set() and store.is_empty()):
                unit = store.claim()
                if unit is None:
                    continue
                # The first row of a unit is refused now and then, and by `block` its key has to wait.
                broken = unit.rows[:1] if draw.random() < 0.3 and not stop.is_set() else []
                stopped = {row[4] for row in broken} | {key for _, key in unit.blocked}
                waiting = [row for row in unit.rows if row[4] in {key for _, key in unit.blocked}]
                good = [row for row in unit.rows if row[4] not in stopped]
                broken = [row for row in broken if row not in waiting]
                if broken:
                    store.park(broken, policy="block", waits=False, code="RLY-703", reason="r", attempts=2)
                if waiting:
                    store.park(waiting, policy="block", waits=True, code="RLY-704", reason="r", attempts=0)
                store.remove(good)
                # Before the commit: after it, the lane may be another store's, which may note its rows first.
                for row in good:
                    published[row[4].decode()].append(row[7].decode())
                store.commit()

    def treat() -> None:
        with connect(any_database, "relay parked", deadline_seconds=60) as connection:
            while not stop.is_set():
                desk.retry_all(connection, None, even_if_overtaken=False)

    threads = [threading.Thread(target=write, args=(key,)) for key in keys]
    threads += [threading.Thread(target=publish) for _ in range(2)] + [threading.Thread(target=treat)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: min(written.values()) > 500, 60, "the writers to have written enough")
    finally:
        stop.set()
    for thread in threads:
        thread.join(60)
    # What was still parked when everything stopped goes last.
    with connect(any_database, "relay parked", deadline_seconds=60) as connection:
        desk.retry_all(connection, None, even_if_overtaken=False)
    rest = writer.execute("SELECT key, payload FROM relay.outbox ORDER BY id").fetchall()
    for key, payload in rest:
        published[key].append(bytes(payload).decode())
    assert parked_ids(writer) == []
    for key in keys:
        assert published[key] == [f"{n:05}" for n in range(written[key])]
        assert written[key] > 10
    assert counted(writer)


@pytest.mark.parametrize("style", ["SQL, DMY", "German", "Postgres, MDY"])
def test_times_are_read_whatever_form_the_database_gives_them(any_database, style):
    """The list, one event and the state, where dates are shown in another form by default."""
    name = sql.Identifier(any_database.rpartition("/")[2])
    with psycopg.connect(any_database, autocommit=True) as owner:
        owner.execute(sql.SQL("ALTER DATABASE {} SET DateStyle = {}").format(name, sql.Literal(style)))
        owner.execute(sql.SQL("ALTER DATABASE {} SET IntervalStyle = 'sql_standard'").format(name))
        parked = emit(owner, "k", "x")
        park(owner, parked)
    settings = {"RELAY_DATABASE_URL": any_database}
    for arguments in (["list"], ["show", str(parked)], ["retry", str(parked)]):
        said = relay("parked", *arguments, settings=settings)
        assert said.returncode == 0, said.stderr
    for command in (("status",), ("top", "--once"), ("explain", "--key", "k"), ("capture", "list")):
        assert relay(*command, settings=settings).returncode == 0
