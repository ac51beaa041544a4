"""In which order rows may be sent: one that may fail alone is never overtaken by a row of its own key."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from relay.core.event import Row
from relay.core.waves import plan

LARGE = 5_000


@st.composite
def units(draw) -> list[Row]:
    """A few rows of few keys, some of them large; in two topics and without a key as well."""
    drawn = draw(
        st.lists(st.tuples(st.sampled_from("st"), st.sampled_from([None, b"a", b"b"]), st.booleans()), max_size=14)
    )
    return [
        Row(0, id_, b"", topic, key, "", b"", None if large else b"x", LARGE if large else None)
        for id_, (topic, key, large) in enumerate(drawn)
    ]


def is_strict(topic: str) -> bool:
    return topic == "s"


def is_risky(row: Row) -> bool:
    return row[8] is not None


@given(units())
def test_every_row_has_exactly_one_place(rows):
    """No row is sent twice or forgotten."""
    waves = plan(rows, is_strict, is_risky)
    places = Counter([*waves.together, *(index for queue in waves.queues for index in queue)])
    assert places == Counter(range(len(rows)))


@given(units())
def test_rows_of_a_key_keep_their_order(rows):
    """What goes at once stands before what goes one by one, and both are in id order per key."""
    waves = plan(rows, is_strict, is_risky)
    together = set(waves.together)
    assert waves.together == sorted(waves.together)
    for queue in waves.queues:
        assert queue == sorted(queue)
        name = rows[queue[0]][3:5]
        assert {rows[index][3:5] for index in queue} == {name}
        if name[1] is not None:
            of_key = [index for index, row in enumerate(rows) if row[3:5] == name]
            assert of_key == [index for index in of_key if index in together] + queue


@given(units())
def test_what_may_fail_alone_and_what_is_strict_goes_one_by_one(rows):
    """A risky or strict row is in a queue, and so is every later row of its key; nothing else is held up."""
    waves = plan(rows, is_strict, is_risky)
    together = set(waves.together)
    for index, row in enumerate(rows):
        earlier = [rows[i] for i in range(index) if rows[i][3:5] == row[3:5] and row[4] is not None]
        careful = is_strict(row[3]) or is_risky(row) or any(map(is_risky, earlier))
        assert (index not in together) == careful


@given(units())
def test_rows_without_a_key_wait_for_nobody(rows):
    """Order is not owed to them: each that is careful has a queue of its own."""
    for queue in plan(rows, is_strict, is_risky).queues:
        if rows[queue[0]].key is None:
            assert len(queue) == 1


def test_a_unit_of_ordinary_rows_is_one_wave():
    """The fast path: nothing strict and nothing risky."""
    rows = [Row(0, id_, b"", "t", b"k", "", b"", b"x", None) for id_ in range(5)]
    waves = plan(rows, is_strict, is_risky)
    assert (waves.together, waves.queues) == ([0, 1, 2, 3, 4], [])
