"""The floors of one process: what raises them, what sends them back, and what was looked at too early to count."""

from __future__ import annotations

import pytest

from relay.daemon.floors import Floors


@pytest.fixture
def floors() -> Floors:
    """Two lanes, with everything up to 100 proven."""
    floors = Floors(2)
    for turn in range(3):
        floors.observe(100, [], float(turn), 0)
    assert floors.view().proven == 100
    return floors


def test_a_look_raises_the_floors_of_its_lanes_only(floors):
    """To the first row that is there, and behind the proof where there is none."""
    floors.raise_to(floors.view(), {0: 40})
    assert floors.view().floors == [40, 0]
    floors.raise_to(floors.view(), {1: None})
    assert floors.view().floors == [40, 101]


def test_a_floor_never_falls_by_a_look(floors):
    """A look that was taken earlier and arrives later changes nothing."""
    early = floors.view()
    floors.raise_to(floors.view(), {0: 40})
    floors.raise_to(early, {0: 30})
    assert floors.view().floors[0] == 40


def test_no_look_raises_a_floor_beyond_what_was_proven_when_it_was_taken():
    """The proof may have grown since, over rows that the look did not see."""
    floors = Floors(1)
    early = floors.view()
    for turn in range(3):
        floors.observe(100, [], float(turn), 0)
    floors.raise_to(early, {0: None})
    assert floors.view().floors == [1]


def test_an_empty_outbox_raises_all(floors):
    """Without any lock: what was removed does not come back."""
    floors.raise_all(floors.view())
    assert floors.view().floors == [101, 101]


def test_a_long_writers_end_sends_the_floors_back_once():
    """To where the writer began; looks from before that do not count."""
    floors = Floors(1)
    floors.observe(10, [], 0.0, 0)
    for turn in range(6):
        floors.observe(20 + turn, ["3/1"], 1.0 + 10 * turn, 0)
    view = floors.view()
    assert view.pins == {"3/1": 10}
    floors.raise_to(view, {0: None})
    assert floors.view().floors[0] > 11
    assert not floors.pins_ended(view, ["3/1", "3/2"])
    assert floors.pins_ended(view, ["3/2"])
    assert floors.view().floors == [11]
    floors.raise_to(view, {0: None})
    assert floors.view().floors == [11]
    assert not floors.observe(30, [], 100.0, view.epoch)


def test_an_observation_from_before_the_floors_went_back_is_dropped(floors):
    """It may speak of ids that are drawn again after a crash."""
    epoch = floors.view().epoch
    floors.forget()
    for turn in range(3):
        floors.observe(500, [], float(turn), epoch)
    assert floors.view().proven == 0


def test_a_lost_connection_proves_everything_anew(floors):
    """A crash of the database may bring removed rows back, at any id."""
    floors.raise_all(floors.view())
    floors.forget()
    view = floors.view()
    assert (view.floors, view.proven, view.pins) == ([0, 0], 0, {})


def test_a_row_below_a_floor_sends_the_floors_back_to_it(floors):
    """The net under the floors; twice for one row it catches nothing."""
    floors.raise_all(floors.view())
    epoch = floors.view().epoch
    assert floors.breached(0, 50, epoch)
    assert floors.view().floors == [50, 50]
    assert not floors.breached(0, 50, epoch)


def test_paused_topics_are_skipped_and_found_again(floors):
    """What was looked through while a topic is paused is looked through again when it is not."""
    floors.raise_to(floors.view(), {0: 10})
    assert floors.pause("t", until=5.0)
    assert not floors.pause("t", until=6.0)
    view = floors.view()
    assert (view.paused, view.floors) == (["t"], [10, 0])
    floors.raise_to(view, {0: 90, 1: None})
    assert floors.view().floors == [90, 101]
    floors.resume("t")
    assert (floors.view().paused, floors.view().floors) == ([], [10, 0])


def test_another_paused_topic_starts_the_skipping_anew(floors):
    """The skips belong to one set of paused topics; a look with another set does not count."""
    floors.pause("t", until=5.0)
    before = floors.view()
    floors.raise_to(before, {0: 90})
    floors.pause("u", until=5.0)
    assert floors.view().floors == [0, 0]
    floors.raise_to(before, {0: 95})
    assert floors.view().floors == [0, 0]


def test_topics_are_due_when_their_time_has_come(floors):
    """And only then; resuming one that is not paused changes nothing."""
    floors.pause("t", until=5.0)
    floors.pause("u", until=7.0)
    assert floors.due(4.9) == []
    assert floors.due(5.0) == ["t"]
    assert sorted(floors.due(8.0)) == ["t", "u"]
    epoch = floors.view().epoch
    floors.resume("v")
    assert floors.view().epoch == epoch
    assert floors.paused() == ["t", "u"]


def test_a_view_is_a_copy(floors):
    """What a unit relies on does not change under it."""
    view = floors.view()
    floors.pause("t", until=1.0)
    floors.raise_all(floors.view())
    assert (view.floors, view.paused) == ([0, 0], [])
