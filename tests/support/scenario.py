"""One run from writing to verdict: writers, relays, something that goes wrong, and the judge.

The seed of a run is printed and can be given again in SEED. It fixes what the writers and the faults draw; it does not
fix what the scheduler does, so a replay is the same test and not the same interleaving.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from relay.demo.history import Record, Verdict, check, digest
from tests.support.relay_process import FOR_TESTS, NOTHING, Fleet, eventually
from tests.support.topic import read_topic
from tests.support.workload import Journal, Mix, Writers

HELD_OPEN = """\
SELECT count(*) FROM pg_stat_activity
WHERE application_name LIKE 'relay worker%' AND state LIKE 'idle in transaction%'"""
"""How many units of work are open at this moment and wait for something that is not the database."""

HELD_UP = f"{HELD_OPEN} AND xact_start < clock_timestamp() - interval '0.5 s'"
"""Those for which the wait has become long, so that they are not about to end by themselves."""

LANES_HELD = """\
SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE relation = 'relay.lane'::regclass AND mode = 'RowShareLock' AND application_name LIKE 'relay worker%'
  AND state <> 'active'"""
"""How many workers hold locks of lanes and are not just looking for some."""

RELAY_HEADERS = frozenset({"event_id", "traceparent"})


def seed_of_run(default: int | None = None) -> int:
    """SEED from the environment, else the test's own, else a new one."""
    text = os.environ.get("SEED", "")
    if text:
        return int(text)
    return default if default is not None else random.SystemRandom().randrange(1 << 31)


@dataclass
class Run:
    """What a nemesis may take hold of while a scenario runs."""

    dsn: str
    bootstrap: str
    topics: Sequence[str]
    fleet: Fleet
    writers: Writers
    draw: random.Random
    seconds: float
    losses: int = 0
    """Units whose fate somebody lost sight of without being killed: each may be repeated. Counted by the nemesis."""
    units_back: int = 1
    """How many units the log of one key may step back over. A crash of the database takes committed ones along."""

    def let_write(self, transactions: int = 100, seconds: float = 30) -> None:
        """Returns when so many more transactions have been committed."""
        goal = self.writers.committed + transactions
        eventually(lambda: self.writers.committed >= goal, seconds, f"{transactions} transactions")


Nemesis = Callable[[Run], None]


def calm(run: Run) -> None:
    """Nothing goes wrong."""
    time.sleep(run.seconds)


def run(
    dsn: str,
    bootstrap: str,
    topics: Sequence[str],
    *,
    relays: int = 1,
    nemesis: Nemesis = calm,
    seconds: float = 3.0,
    seed: int | None = None,
    writers: int = 4,
    keys: int = 40,
    mix: Mix | None = None,
    settings: Mapping[str, str] = NOTHING,
    failpoints: str = "",
    clean: bool = False,
    parks: bool = False,
    dead_letters: Sequence[str] = (),
    drain_seconds: float = 30.0,
    writer_dsn: str | None = None,
) -> Verdict:
    """Writes, breaks, waits until the outbox is empty, stops the relays and asks the judge.

    Repeats are bounded. What may go out twice is what was published and not yet committed: a unit. A relay has
    `units_in_flight` of them, each of at most `rows_max` events, so a killed relay repeats at most their product, and a
    unit whose connection or acknowledgements were lost at most `rows_max`. One key lies in one lane and one unit, so
    its log steps back over no more than `rows_max` events, however many were killed.

    Args:
        parks: events may be refused and parked; without it a parked event counts as lost.
        dead_letters: topics to which refused events may have gone instead.

    Raises:
        AssertionError: the promise was broken; says how, and where the evidence is.
    """
    seed = seed_of_run(seed)
    at_work = Writers(writer_dsn or dsn, seed, topics, count=writers, keys=keys, mix=mix)
    merged = {**FOR_TESTS, **settings}
    rows_max = int(merged["RELAY_DAEMON__ROWS_MAX"])
    units = int(merged["RELAY_DAEMON__UNITS_IN_FLIGHT"])
    fleet = Fleet(dsn, bootstrap, relays, settings=settings, failpoints=failpoints)
    state = Run(dsn, bootstrap, topics, fleet, at_work, random.Random(f"{seed}/nemesis"), seconds)
    started = time.monotonic()
    with fleet:
        at_work.start()
        try:
            nemesis(state)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{fleet.said()}") from None
        finally:
            at_work.stop()
        wait_empty(dsn, drain_seconds, fleet)
        codes = fleet.stop()
        kills = fleet.kills
        journal = at_work.journal
        repeats_max = (kills * units + state.losses) * rows_max
        aside = parked_events(dsn) if parks else frozenset()
        aside |= {record.event_id or "" for topic in dead_letters for record in read_topic(bootstrap, topic)}
        verdict = judge(
            journal,
            bootstrap,
            topics,
            clean=clean,
            repeats_max=repeats_max,
            step_back_max=rows_max * state.units_back,
            parked=aside,
        )
        print(
            f"\nseed {seed}: {relays} relays, {kills} killed, {state.losses} units lost sight of, "
            f"{journal.unknown} commits unknown, {journal.deadlocks} deadlocks, repeats allowed {repeats_max}, "
            f"{time.monotonic() - started:.1f} s\n  {verdict.summary()}"
        )
        if not verdict.ok or any(codes):
            place = dump(seed, journal, bootstrap, topics)
            raise AssertionError(
                f"SEED={seed}, exit codes {codes}\n{verdict.explain()}\n{fleet.said()}\nevidence in {place}"
            )
    return verdict


def ask(dsn: str, query: str, *parameters: object) -> Any:
    """The first column of the first row."""
    with psycopg.connect(dsn, autocommit=True, connect_timeout=5) as connection:
        row = connection.execute(query, parameters or None).fetchone()
        return row[0] if row else None


def parked_events(dsn: str) -> frozenset[str]:
    """Ids of the events that are parked now."""
    with psycopg.connect(dsn, connect_timeout=5) as connection:
        return frozenset(row[0] for row in connection.execute("SELECT event_id::text FROM relay.parked"))


def wait_empty(dsn: str, seconds: float, fleet: Fleet | None = None) -> None:
    """Returns when the outbox is empty: the promise that nothing waits for ever.

    Raises:
        AssertionError: something does; says what.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            with psycopg.connect(dsn, autocommit=True, connect_timeout=5) as connection:
                found = connection.execute(
                    "SELECT count(*), min(lane), max(lane), min(id), max(id) FROM relay.outbox"
                ).fetchone()
                assert found is not None
                if not found[0]:
                    return
        except psycopg.OperationalError:
            found = ("database away",)
        if time.monotonic() > deadline:
            said = fleet.said() if fleet else ""
            raise AssertionError(f"after {seconds:g} s the outbox holds (count, lanes, ids) {found}\n{said}")
        time.sleep(0.02)


def judge(
    journal: Journal,
    bootstrap: str,
    topics: Sequence[str],
    *,
    clean: bool = False,
    repeats_max: int | None = None,
    step_back_max: int | None = None,
    parked: frozenset[str] = frozenset(),
) -> Verdict:
    """The checker's verdict on the topics, after events without a key have been compared one by one."""
    records = [record for topic in topics for record in read_topic(bootstrap, topic)]
    _check_keyless(journal, [record for record in records if record.key is None], parked)
    return check(
        journal.written,
        [record for record in records if record.key is not None],
        parked=parked,
        clean=clean,
        repeats_max=repeats_max,
        step_back_max=step_back_max,
        relay_headers=RELAY_HEADERS,
    )


def _check_keyless(journal: Journal, records: Sequence[Record], parked: frozenset[str]) -> None:
    """Nothing lost, nothing invented, nothing altered; order is not owed."""
    seen = {record.event_id: digest(record.value, record.headers, RELAY_HEADERS) for record in records}
    for event_id, (expected, outcome) in journal.keyless.items():
        if outcome == "committed" and event_id not in parked:
            assert event_id in seen, f"event {event_id} without a key was lost"
        if event_id in seen:
            assert outcome != "rolled_back", f"event {event_id} without a key was rolled back"
            assert seen[event_id] == expected, f"event {event_id} without a key was altered"
    assert seen.keys() <= journal.keyless.keys(), "an event without a key that nobody wrote"


def dump(seed: int, journal: Journal, bootstrap: str, topics: Sequence[str]) -> Path:
    """Writes journal and topics beside each other, for whoever has to find out."""
    place = Path(os.environ.get("RELAY_TEST_CACHE", Path.home() / ".cache" / "relay-test")) / f"failed-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    with (place / "journal").open("w") as file:
        for event in sorted(journal.written, key=lambda one: (one.topic, one.key, one.sequence)):
            print(event.topic, event.key, event.sequence, event.event_id, event.outcome, file=file)
    sequences = {event.event_id: event.sequence for event in journal.written}
    with (place / "topics").open("w") as file:
        for topic in topics:
            for record in read_topic(bootstrap, topic):
                print(record.place, record.key, sequences.get(record.event_id), record.event_id, file=file)
    return place
