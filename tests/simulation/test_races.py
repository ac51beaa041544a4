"""The 27 races: each has a test, and with the faults it is shown that the test fails without the guard."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from typing import Final

import pytest

from relay.cache.effects import Load
from relay.cache.eviction import Entry
from relay.cache.local import Local
from relay.cache.reference import ReferenceTier
from relay.cache.tiers import Bump, Position
from relay.core.record import decode_record
from tests.simulation.backends import Reference
from tests.simulation.mutants import parts, text_without
from tests.simulation.processes import Process, Reading
from tests.simulation.races import RACES, Race
from tests.simulation.stepper import in_thread
from tests.simulation.world import Consumer, World
from tests.support.documents import DOCS, ROOT

RECORD: Final = "r:thing:1"
EVENTS: Final = (1, 2, 3)


def _floor(tier: ReferenceTier) -> int:
    record = decode_record(tier.look([RECORD]).records[0])
    assert record is not None
    return record.floor


def _entry(version: int) -> Entry:
    far = float("inf")
    return Entry("1", "value", version, as_of=0.0, fresh_until=far, soft_until=far, hard_until=far)


def test_race_06_events_in_any_order_leave_the_same_floor() -> None:
    """Whatever the order, both tiers end at the newest version."""
    for order in permutations(EVENTS):
        tier, local = ReferenceTier(), Local()
        tier.open("test", ())
        for offset, version in enumerate(order):
            tier.apply([Bump(RECORD, version, False)], (), [Position("t", 0, offset, offset + 1)])
            local.apply("thing", "1", version, ("t", 0, offset))
        assert (_floor(tier), local.space("thing").floor("1")) == (3, 3), order


def test_race_07_events_that_come_again_take_nothing_away() -> None:
    """A value that is as new as its event survives it, and all older ones, however often they come."""
    local = Local()
    space = local.space("thing")
    for repetition in range(3):
        for version in EVENTS:
            local.apply("thing", "1", version, ("t", 0, repetition))
        if not repetition:
            assert local.put(space, _entry(3), local.mark()) is None
        assert space.entries["1"].version == 3


def test_race_10_a_consumer_that_lost_its_partition_does_no_harm() -> None:
    """Applied by two consumers in any interleaving, also after an eviction: no floor falls, no value appears, and none
    of them has lost anything."""
    for turns in set(permutations("ooozzz")):
        tier = ReferenceTier()
        tier.open("test", ())
        positions = {"o": 0, "z": 0}
        for turn in turns:
            offset = positions[turn]
            positions[turn] += 1
            applied = tier.apply([Bump(RECORD, EVENTS[offset], False)], (), [Position("t", 0, offset, offset + 1)])
            assert not applied.lost, turns
        assert _floor(tier) == 3
        tier.evict(RECORD)
        tier.apply([Bump(RECORD, 1, False)], (), [Position("t", 0, 0, 1)])
        record = decode_record(tier.look([RECORD]).records[0])
        assert record is not None
        assert not record.has_value


def test_race_22_a_refresh_that_overlaps_an_invalidation_leaves_nothing_in_the_shared_tier() -> None:
    """Loaded in the background, overtaken by an event, and refused like any other fill."""
    world = World(parts())
    world.backend = Reference(world.clock_ms, world.fresh_token)
    world.perform = in_thread(world.backend.tier)
    consumer = Consumer(world, 0, is_first=True)
    consumer.apply(0)
    process = Process(world, has_local=False, soft_ttl=20.0)
    Reading(world, process, "1").steps.finish()
    world.seconds += 21
    Reading(world, process, "1").steps.finish()
    (refresh,) = world.background
    refresh.until(Load)
    world.commit("1", publishes=True)
    consumer.apply(1)
    refresh.finish()
    last = Reading(world, Process(world, has_local=False), "1")
    last.steps.finish()
    assert last.found is not None
    assert last.found.version == 1


def test_every_race_has_tests_that_are_there() -> None:
    """The table counts from 1 to 27, and names tests that exist."""
    assert [race.number for race in RACES] == list(range(1, 28))
    for race in RACES:
        assert race.tests, race.title
        for test in race.tests:
            path, name = test.split("::")
            assert f"def {name.split('[')[0]}(" in (ROOT / path).read_text(), test


def test_the_document_is_the_table() -> None:
    """docs/RACES.md has a row for each race, with its title, guard and the files of its tests."""
    text = (DOCS / "RACES.md").read_text()
    for race in RACES:
        row = re.search(rf"^\| {race.number} \| .*$", text, re.MULTILINE)
        assert row is not None, race.number
        assert row[0] == row_of(race)


def row_of(race: Race) -> str:
    """The race as a row of the document."""
    names = dict.fromkeys(_short(test) for test in race.tests)
    return f"| {race.number} | {race.title} | {race.guard} | {', '.join(names)} |"


def _short(test: str) -> str:
    path, name = test.split("::")
    if "[" in name:
        return f"{path}, replay of `{name.split('[')[1].split('-')[0]}`"
    return path


@pytest.fixture(scope="module")
def copy_of_it_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Code and tests in a place where guards can be taken out."""
    root = tmp_path_factory.mktemp("without")
    for name in ("relay", "tests", "docs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("race", [race for race in RACES if race.edits], ids=lambda race: str(race.number))
def test_the_test_of_a_race_fails_without_its_guard(race: Race, copy_of_it_all: Path) -> None:
    """The first test that the table names passes, and does not when the guard is taken out of the code."""
    files = {edit.file for edit in race.edits}
    assert _passes(race.tests[0], copy_of_it_all)
    for file in files:
        edits = [edit for edit in race.edits if edit.file == file]
        (copy_of_it_all / "relay" / file).write_text(text_without(file, edits))
    try:
        assert not _passes(race.tests[0], copy_of_it_all)
    finally:
        for file in files:
            shutil.copy(ROOT / "relay" / file, copy_of_it_all / "relay" / file)


def _passes(test: str, root: Path) -> bool:
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    # 1: tests failed. Anything else than that and 0 says nothing about the guard.
    assert ended.returncode in (0, 1), ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended.returncode == 0
