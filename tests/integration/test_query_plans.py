"""The plans of the data path's statements: by index or tuple id, and no more pages than the rows asked for.

The outbox is empty one minute and holds a million events the next, and statistics are of any age. So the plans are read
after each of five turns: statistics of an empty table over 0, 1,000 and 1,000,000 rows, then statistics of the million
over 1,000 rows and over none, with the dead rows of the others still there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from relay.core.reach import ID_MAX, REACH_FIRST
from relay.daemon import queries
from tests.support.postgres import drop_database, fresh_database

LANES = 64
TURNS = ("empty", "thousand", "million", "thousand-left", "none-left")
SETTINGS = queries.BEGIN.format(takeover_ms=60_000)

INSERT = """\
INSERT INTO relay.outbox (lane, topic, key, payload)
SELECT relay.lane_of('key-' || n), 'topic-' || n %% 5, 'key-' || n,
       convert_to(repeat('x', CASE n %% 50 WHEN 0 THEN 5000 ELSE 100 END), 'UTF8')
FROM generate_series(1, %s) AS n"""

PAUSED = "'{topic-0,topic-1,topic-2,topic-3,topic-4}'::text[]"

PARKED = """\
INSERT INTO relay.parked (id, lane, event_id, created_at, topic, key, headers, policy, waits, code, reason, attempts)
SELECT -n, n % 64, gen_random_uuid(), now(), 'topic-0', 'key-' || n, '', 'block', n % 20 <> 0, 'RLY-703', 'r', 2
FROM generate_series(1, 20000) AS n"""


@dataclass
class Case:
    """One statement with parameters, as the daemon would run it at this moment."""

    statement: str
    parameters: dict[str, str]
    pages: int
    """How many pages it may touch."""
    in_unit: bool = True
    """Whether it runs under the settings of BEGIN."""


@dataclass
class Table:
    """What a relay would know of the outbox, and what the cases are made from."""

    floors: list[int]
    sample: list[tuple[int, int, str]]
    """Lane, id and ctid of live rows, in the order of a unit."""
    large: list[str] = field(default_factory=list)

    @property
    def floor_array(self) -> str:
        return array(self.floors, "bigint")


def array(values: list[Any], kind: str) -> str:
    inner = ",".join(f'"{value}"' for value in values)
    return f"'{{{inner}}}'::{kind}[]"


def cases(table: Table) -> Iterator[tuple[str, Case]]:
    """Every statement of the data path. A probe of the index is at most 4 pages deep and reaches one row."""
    probe = 6
    floors, none_paused = table.floor_array, "'{}'::text[]"
    everywhere = array([ID_MAX] * LANES, "bigint")
    claim = {"floors": floors, "ends": everywhere, "paused": none_paused, "start": "17"}
    yield "CLAIM", Case(queries.CLAIM, {**claim, "lanes_max": "32"}, LANES * probe + 100)
    yield "CLAIM-one", Case(queries.CLAIM, {**claim, "lanes_max": "1"}, LANES * probe + 20)
    for name, lanes, rows in (("READ", 32, 125), ("READ-few", 64, 5), ("READ-one-lane", 1, 4000)):
        parameters = {
            "lanes": array(list(range(lanes)), "smallint"),
            "floors": array(table.floors[:lanes], "bigint"),
            "ends": array([ID_MAX] * lanes, "bigint"),
            "paused": none_paused,
            "rows_per_lane": str(rows),
        }
        found = min(lanes * rows, len(table.sample) if len(table.sample) <= 1000 else lanes * rows)
        yield name, Case(queries.READ, parameters, lanes * probe + found * 2)
    for name, count in (("DELETE", 4000), ("DELETE-many", 10_000), ("DELETE-one", 1)):
        ctids = [ctid for _, _, ctid in table.sample[:count]]
        yield name, Case(queries.DELETE, {"ctids": array(ctids, "tid")}, len(ctids) * 6 + 20)
    yield (
        "READ_LARGE",
        Case(queries.READ_LARGE, {"ctids": array(table.large[:100], "tid")}, len(table.large[:100]) * 12 + 20),
    )
    for name, count in (("PARK", 100), ("PARK-many", 4000)):
        rows = table.sample[:count]
        parameters = {
            "lanes": array([lane for lane, _, _ in rows], "smallint"),
            "ids": array([id_ for _, id_, _ in rows], "bigint"),
            "policy": "'park'",
            "waits": "false",
            "code": "'RLY-703'",
            "reason": "'r'",
            "attempts": "2",
        }
        yield name, Case(queries.PARK, parameters, len(rows) * 40 + 400)
        yield f"{name}-before-3", Case(queries.PARK_BEFORE_3, parameters, len(rows) * 40 + 400)
    yield "HAS_PARK", Case(queries.HAS_PARK, {}, 20)
    yield "PARKED_KEYS", Case(queries.PARKED_KEYS, {"lanes": array([4, 8, 12], "smallint")}, 3 * 200)
    yield "MARK_OVERTAKEN", Case(queries.MARK_OVERTAKEN, {"ids": array([-20, -40, -60], "bigint")}, 3 * 20)
    look = {"floors": floors, "ends": everywhere, "paused": none_paused}
    yield "LOOK", Case(queries.LOOK, look, LANES * probe + 20)
    from_zero = {"floors": array([0] * LANES, "bigint"), "ends": array([REACH_FIRST] * LANES, "bigint")}
    for name, paused in (("LOOK-dead", none_paused), ("LOOK-paused", PAUSED)):
        yield name, Case(queries.LOOK, {**from_zero, "paused": paused}, LANES * probe + 2 * REACH_FIRST)
    sweep = {"start": "'(1000,0)'", "stop": "'(2000,0)'", "paused": none_paused}
    yield "SWEEP", Case(queries.SWEEP, sweep, 1000 + 40)
    yield "PAGES", Case(queries.PAGES, {}, 20)
    yield "STRAYS", Case(queries.STRAYS, {"lanes": str(LANES)}, 4 * probe)
    yield "OLDEST", Case(queries.OLDEST, {"floors": floors}, LANES * probe + 20, in_unit=False)
    yield "SERVER", Case(queries.SERVER, {}, 40, in_unit=False)
    yield "WRITERS", Case(queries.WRITERS, {}, 200, in_unit=False)
    yield "LANES", Case(queries.LANES, {}, 20, in_unit=False)
    yield "PARKED_COUNT", Case(queries.PARKED_COUNT, {}, 20, in_unit=False)
    yield "SIGHT", Case(queries.SIGHT, {}, 200, in_unit=False)
    bounds = {"takeover_ms": "20000", "probe_seconds": "5"}
    yield "SLEEP", Case(queries.SLEEP, bounds, 200, in_unit=False)
    yield "AWAKE", Case(queries.AWAKE, {"holds_lock": "true"}, 20, in_unit=False)


WALKS = {
    "BEGIN": "is no query",
    "BACKLOG": "counts everything, for an operator who asks",
    "BACKLOG_ESTIMATE": "walks at most 100,000 rows, every ten seconds",
    "PLANS": "is no query",
    "STARTED": "is a part of others",
    "ORIGIN": "is a part of others",
    "LAST": "is a part of others",
    "CONFIRM": "reads the clock",
    "HINTS_ALLOWED": "asks the catalog",
    "HINTS": "reads two rows",
    "SAVE_HINT": "writes one of two rows",
}
NAMES = sorted({name for name, _ in cases(Table([0] * LANES, [], []))})


def test_every_statement_has_a_case_or_a_reason():
    constants = {name: value for name, value in vars(queries).items() if name.isupper() and isinstance(value, str)}
    covered = {case.statement for _, case in cases(Table([0] * LANES, [], []))}
    assert {name for name, value in constants.items() if value not in covered} == set(WALKS)


@dataclass
class Seen:
    """What one statement did at one turn."""

    case: Case
    plan: dict[str, Any]

    def nodes(self) -> Iterator[dict[str, Any]]:
        waiting = [self.plan]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.get("Plans", [])

    @property
    def pages(self) -> int:
        return self.plan["Shared Hit Blocks"] + self.plan["Shared Read Blocks"]


@pytest.fixture(scope="module", params=[16, 18], ids=["pg16", "pg18"])
def seen(request) -> Iterator[dict[tuple[str, str], Seen]]:
    """All plans of all turns on one server: the million is written once."""
    server = request.getfixturevalue("pg" if request.param == 18 else "pg16")
    dsn = fresh_database(server)
    found: dict[tuple[str, str], Seen] = {}
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("ALTER TABLE relay.outbox SET (autovacuum_enabled = false)")
        connection.execute("ALTER TABLE relay.parked SET (autovacuum_enabled = false)")
        connection.execute("ANALYZE relay.outbox, relay.parked, relay.lane")
        connection.execute(PARKED)
        for turn in TURNS:
            prepare(connection, turn)
            table = look(connection)
            for name, case in cases(table):
                found[turn, name] = Seen(case, explain(connection, case))
    yield found
    drop_database(server, dsn)


def prepare(connection: psycopg.Connection, turn: str) -> None:
    if turn == "thousand":
        connection.execute(INSERT, (1000,))
    elif turn == "million":
        connection.execute(INSERT, (999_000,))
    elif turn == "thousand-left":
        connection.execute("ANALYZE relay.outbox")
        connection.execute("DELETE FROM relay.outbox WHERE id <= (SELECT max(id) - 1000 FROM relay.outbox)")
    elif turn == "none-left":
        connection.execute("DELETE FROM relay.outbox")


def look(connection: psycopg.Connection) -> Table:
    """Floors as a relay has proven them: the first live row, or above all ids that were drawn."""
    last = connection.execute(queries.SERVER).fetchone()[2]
    first = dict(connection.execute("SELECT lane, min(id) FROM relay.outbox GROUP BY lane").fetchall())
    sample = connection.execute("SELECT lane, id, ctid::text FROM relay.outbox ORDER BY id LIMIT 10000").fetchall()
    large = connection.execute(
        "SELECT ctid::text FROM relay.outbox WHERE octet_length(payload) > 4096 ORDER BY id LIMIT 100"
    ).fetchall()
    return Table([first.get(lane, last + 1) for lane in range(LANES)], sorted(sample), [row[0] for row in large])


def explain(connection: psycopg.Connection, case: Case) -> dict[str, Any]:
    """As the daemon runs it: prepared, and in a unit with a generic plan; whatever it changes is rolled back."""
    numbers: dict[str, int] = {}
    numbered = re.sub(
        r"%\((\w+)\)s", lambda match: f"${numbers.setdefault(match[1], len(numbers) + 1)}", case.statement
    )
    arguments = ", ".join(case.parameters[name] for name in numbers)
    connection.execute(SETTINGS if case.in_unit else "BEGIN; SET LOCAL search_path = pg_catalog, pg_temp")
    if not case.in_unit:
        connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    connection.execute(f"PREPARE looked_at AS {numbered}")
    call = f"EXECUTE looked_at ({arguments})" if arguments else "EXECUTE looked_at"
    rows = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {call}").fetchone()
    connection.execute("DEALLOCATE looked_at")
    connection.execute("ROLLBACK")
    plan = rows[0]
    return (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("name", NAMES)
def test_events_are_found_by_index_or_tuple_id(seen, turn, name):
    """Never by a walk over the table, whatever the statistics say."""
    kinds = {
        (node["Relation Name"], node["Node Type"])
        for node in seen[turn, name].nodes()
        if node.get("Relation Name") in ("outbox", "parked") and node["Node Type"] != "ModifyTable"
    }
    allowed = {"Index Scan", "Index Only Scan", "Tid Scan", "Tid Range Scan"}
    if turn == "empty" and not seen[turn, name].case.in_unit:
        # A table without a single page, as before the first event. A statement prepared now keeps this plan until the
        # next vacuum, which comes after 20,000 dead rows: some 5 ms for each look of an idle relay until then.
        allowed.add("Seq Scan")
    assert not {kind for kind in kinds if kind[1] not in allowed}, json.dumps(seen[turn, name].plan, indent=1)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("name", NAMES)
def test_pages_are_bounded_by_the_rows_asked_for(seen, turn, name):
    one = seen[turn, name]
    assert one.pages <= one.case.pages, json.dumps(one.plan, indent=1)


@pytest.mark.parametrize("name", ["CLAIM", "LOOK", "OLDEST", "READ-few"])
def test_a_million_rows_cost_hardly_more_pages_than_a_thousand(seen, name):
    """The index grows by a level or two; nothing else may."""
    assert seen["million", name].pages <= seen["thousand", name].pages * 4 + 100


@pytest.mark.parametrize("name", ["CLAIM", "LOOK", "OLDEST", "READ"])
def test_a_million_dead_rows_below_the_floors_cost_nothing(seen, name):
    assert seen["none-left", name].pages <= LANES * 6
