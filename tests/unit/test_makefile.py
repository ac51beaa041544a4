"""`make faults` in parts: together they run every test that is marked, and no name of a part leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = dict(re.findall(r"^PART_(\w+) *:= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))


def files() -> list[str]:
    """The test files that hold a marked test."""
    return [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if path != Path(__file__) and re.search(r"mark\.faults|ONE_MAJOR", path.read_text())
    ]


def places() -> list[str]:
    return [place for part in PARTS.values() for place in part.split()]


def test_the_parts_of_the_fault_run_are_those_that_help_lists():
    listed = re.search(r"^PARTS *:= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed is not None
    assert listed[1].split() == list(PARTS)


@pytest.mark.parametrize("place", places())
def test_every_part_of_the_fault_run_exists(place):
    assert (ROOT / place).exists()


@pytest.mark.parametrize("file", files())
def test_each_fault_test_is_in_exactly_one_part(file):
    assert len([place for place in places() if Path(file).is_relative_to(place)]) == 1
