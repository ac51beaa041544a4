"""What a batch of events does to the shared tier does not depend on how the events were cut, repeated or ordered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.cache.reference import ReferenceTier
from relay.consumer import Key, Stamp, events
from relay.consumer.effects import Effects
from relay.consumer.hooks import RESULTS_MAX, RubbishError, Wanted, wanted
from relay.core.change import Change, Malformed
from relay.core.record import UNKNOWN, decode_record

ids = st.sampled_from(["1", "2", "3"])
changes = st.lists(st.tuples(ids, st.integers(1, 9)), max_size=30)


def change(id_: str, version: int | None) -> Change:
    return Change("user", id_, "updated", version, None, None, b"{}")


def apply(tier: ReferenceTier, *batch: Change | Malformed) -> None:
    effects = Effects()
    for event in batch:
        if isinstance(event, Malformed):
            effects.add_malformed(event)
        else:
            effects.add(event)
    tier.apply(effects.bumps(), (), ())


def opened() -> ReferenceTier:
    tier = ReferenceTier(clock=lambda: 1000, token=lambda: b"12345678")
    tier.open("test", ())
    return tier


def record(tier: ReferenceTier, id_: str):
    return decode_record(tier.look([f"r:user:{id_}"]).records[0])


@given(changes, st.data())
def test_floors_end_alike_however_events_are_cut_repeated_and_ordered(found, data):
    """One by one in order, or shuffled, doubled and in batches of any size."""
    one_by_one, otherwise = opened(), opened()
    for id_, version in found:
        apply(one_by_one, change(id_, version))
    shuffled = data.draw(st.permutations(found + found[: len(found) // 2]))
    while shuffled:
        size = data.draw(st.integers(1, len(shuffled)))
        apply(otherwise, *[change(*each) for each in shuffled[:size]])
        shuffled = shuffled[size:]
    floors = [[(held := record(tier, id_)) and held.floor for id_ in "123"] for tier in (one_by_one, otherwise)]
    assert floors[0] == floors[1]


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "two batches"])
def test_a_later_event_makes_known_what_a_malformed_one_made_unknown(together):
    """And a malformed one after a good one makes it unknown, in one batch as in two."""
    malformed = Malformed("the value is no JSON", "user", "1")
    for first, second, is_unknown in ((malformed, change("1", 2), False), (change("1", 2), malformed, True)):
        tier = opened()
        batches = [(first, second)] if together else [(first,), (second,)]
        for batch in batches:
            apply(tier, *batch)
        assert bool(record(tier, "1").flags & UNKNOWN) is is_unknown


def test_an_event_without_a_version_counts_beside_those_that_have_one():
    """It takes the lease of whoever is loading, and the versions of the others still raise the floor."""
    tier = opened()
    lease = tier.lease("r:user:1", 0, (), refresh=False).lease
    apply(tier, change("1", 3), change("1", None), change("1", 2))
    assert (record(tier, "1").floor, record(tier, "1").lease == lease) == (3, False)


def test_what_a_hook_returns_is_taken_in_any_of_its_forms():
    """Nothing, one, several, or a generator of them."""
    into = Wanted([], [])
    for result in (None, Key("user", 7), Stamp("listing"), [Key("user", "8")], (Stamp(name) for name in "ab")):
        wanted(result, into)
    assert [bump.key for bump in into.bumps] == ["r:user:7", "r:user:8"]
    assert into.stamps == ["s:listing", "s:a", "s:b"]


@pytest.mark.parametrize(
    "result",
    ["text", b"", {"a": 1}, 5, [None], [Key("a:b", 1)], [Key("", 1)], [Stamp("")], [Stamp("a")] * (RESULTS_MAX + 1)],
)  # fmt: skip
def test_rubbish_is_refused_whole(result):
    """Nothing of it is taken, and the error tells no value."""
    into = Wanted([], [])
    with pytest.raises(RubbishError):
        wanted(result, into)
    assert into == ([], [])


def test_every_line_that_is_logged_is_documented_with_its_fields():
    """The table in `relay.consumer.events` has each event with exactly the fields that are said, and no other."""
    said: dict[str, set[str]] = {}
    for path in Path(events.__file__).parent.glob("*.py"):
        for call in re.finditer(r'say\(\s*logging\.\w+,\s*"([a-z_.]+)",([^#]*?)\)\s*(?:#|\n)', path.read_text()):
            said.setdefault(call[1], set()).update(re.findall(r"(\w+)=", call[2]))
    rows = re.findall(r"^\| ([a-z]+\.[a-z_]+) \| \w+ \| (.*) \|$", events.__doc__ or "", re.MULTILINE)
    assert {name: set(fields.split(", ")) for name, fields in rows} == said
