"""The floors of one process: what raises them, what sends them back, and what was looked at too early to count."""

from __future__ import annotations

import pytest

from relay.core.reach import REACH_FIRST, REACH_MIN
from relay.daemon.floors import KNOWN_MAX, Floors, Hint, Server, View

HERE = Server("started once", "one sequence")
PROVEN = 100


def begun(lanes: int, *hints: Hint, last_id: int = 0) -> Floors:
    """Floors that have met a server."""
    floors = Floors(lanes)
    floors.begin(floors.view(), HERE, last_id, hints)
    return floors


def observe(floors: Floors, last_id: int, *writers: str, now: float = 0.0, view: View | None = None) -> bool:
    return floors.observe(view or floors.view(), HERE, last_id, writers, now)


def prove(floors: Floors, last_id: int = PROVEN) -> None:
    for turn in range(3):
        observe(floors, last_id, now=float(turn))


@pytest.fixture
def floors() -> Floors:
    """Two lanes, with everything up to 100 proven."""
    floors = begun(2)
    prove(floors)
    assert floors.view().proven == PROVEN
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
    floors = begun(1)
    early = floors.view()
    prove(floors)
    floors.raise_to(early, {0: None})
    assert floors.view().floors == [1]


def test_a_long_writers_end_sends_the_floors_back_once():
    """To where the writer began; looks from before that do not count."""
    floors = begun(1)
    observe(floors, 10)
    for turn in range(6):
        observe(floors, 20 + turn, "3/1", now=1.0 + 10 * turn)
    view = floors.view()
    assert view.pins == {"3/1": 10}
    floors.raise_to(view, {0: None})
    assert floors.view().floors[0] > 11
    assert not floors.pins_ended(view, ["3/1", "3/2"])
    assert floors.pins_ended(view, ["3/2"])
    assert floors.view().floors == [11]
    floors.raise_to(view, {0: None})
    assert floors.view().floors == [11]
    assert not observe(floors, 30, now=100.0, view=view)


@pytest.mark.parametrize(
    ("server", "last_id"),
    [
        (Server("started again", HERE.origin), PROVEN + 5),
        (Server(HERE.started, "another sequence"), PROVEN + 5),
        (HERE, PROVEN - 1),
    ],
    ids=["another server", "another sequence", "ids that are drawn again"],
)
def test_what_was_proven_elsewhere_is_void(floors, server, last_id):
    """A look and an observation notice it alike, whichever comes first."""
    floors.raise_to(floors.view(), {0: None})
    for notices in (floors.is_still, lambda view, *seen: not floors.observe(view, *seen, [], 9.0)):
        view = floors.view()
        assert view.server == HERE
        assert not notices(view, server, last_id)
        after = floors.view()
        assert (after.server, after.proven, after.floors, after.last_id) == (None, 0, [0, 0], 0)
        floors.raise_to(view, {1: None})
        assert floors.view().floors == [0, 0], "a look from before does not count"
        floors.begin(after, HERE, PROVEN, [])
        prove(floors)


def test_a_look_that_was_taken_before_another_one_is_no_step_back(floors):
    """Workers look at once, and the one that saw fewer ids may be the last to say so."""
    early = floors.view()
    assert floors.is_still(floors.view(), HERE, 500)
    assert floors.is_still(early, HERE, 400)
    assert floors.view().last_id == 500


def test_only_the_first_to_meet_a_server_begins():
    floors = Floors(1)
    view = floors.view()
    floors.begin(view, HERE, 50, [Hint(frozenset(), [40], 45)])
    floors.begin(view, Server("another", "one"), 10, [])
    after = floors.view()
    assert (after.server, after.floors, after.proven, after.last_id) == (HERE, [40], 45, 50)


def test_hints_are_what_the_next_relay_may_rely_on(floors):
    """About all topics, and about those that are not paused."""
    floors.raise_to(floors.view(), {0: 10})
    floors.pause("t", until=5.0)
    floors.raise_to(floors.view(), {0: 90, 1: None})
    server, last_id, hints = floors.hints()
    assert (server, last_id) == (HERE, PROVEN)
    assert hints == [Hint(frozenset(), [10, 0], PROVEN), Hint(frozenset({"t"}), [90, 101], PROVEN)]
    after = begun(2, *hints, last_id=last_id)
    assert (after.view().floors, after.view().proven) == ([90, 101], PROVEN)
    assert after.due(0.0) == ["t"], "it may be there again"
    after.resume("t")
    assert after.view().floors == [10, 0]


def test_hints_stay_below_what_a_long_writer_may_still_commit():
    """It may have ended by the time that somebody believes them."""
    floors = begun(1)
    observe(floors, 10)
    for turn in range(6):
        observe(floors, 20 + turn, "3/1", now=1.0 + 10 * turn)
    floors.raise_to(floors.view(), {0: None})
    assert floors.view().floors[0] > 11
    assert floors.hints()[2] == [Hint(frozenset(), [11], 10)]


def test_a_writer_that_is_open_at_the_start_began_above_the_hint():
    """What its end sends the floors back to is not the beginning."""
    floors = begun(1, Hint(frozenset(), [90], 95), last_id=200)
    for turn in range(6):
        observe(floors, 200 + turn, "3/1", now=10.0 * turn)
    assert floors.view().pins == {"3/1": 95}
    floors.raise_to(floors.view(), {0: None})
    assert observe(floors, 300, now=100.0)
    assert floors.view().floors == [96]


def test_a_row_below_a_floor_sends_the_floors_back_to_it(floors):
    """The net under the floors; twice for one row it catches nothing."""
    floors.raise_to(floors.view(), {0: None, 1: None})
    epoch = floors.view().epoch
    assert floors.breached(50, epoch)
    assert floors.view().floors == [50, 50]
    assert not floors.breached(50, epoch)


def test_paused_topics_are_skipped_and_found_again(floors):
    """What was looked through while a topic is paused is looked through again when it is not."""
    floors.raise_to(floors.view(), {0: 10})
    assert floors.pause("t", until=5.0)
    assert not floors.pause("t", until=6.0)
    view = floors.view()
    assert (view.paused, view.floors) == (["t"], [10, 0])
    floors.raise_to(view, {0: 90, 1: None})
    assert floors.view().floors == [90, 101]
    assert floors.whole_view().floors == [10, 0]
    floors.resume("t")
    assert (floors.view().paused, floors.view().floors) == ([], [10, 0])


def test_what_was_skipped_once_is_not_walked_again(floors):
    """Not when one more topic is paused, nor when that is resumed, nor when the first one is paused once more."""
    floors.pause("t", until=5.0)
    floors.raise_to(floors.view(), {0: 90})
    floors.pause("u", until=5.0)
    assert floors.view().floors == [90, 0]
    floors.raise_to(floors.view(), {0: 95, 1: 20})
    floors.resume("u")
    assert floors.view().floors == [90, 0]
    floors.resume("t")
    assert floors.view().floors == [0, 0]
    floors.pause("u", until=5.0)
    assert floors.view().floors == [0, 0], "rows of the other topic lie there"
    floors.pause("t", until=5.0)
    assert floors.view().floors == [95, 20]


def test_a_step_back_is_one_for_every_set_of_topics(floors):
    floors.pause("t", until=5.0)
    floors.raise_to(floors.view(), {0: 90})
    assert floors.breached(50, floors.view().epoch)
    assert floors.view().floors == [50, 0]


def test_floors_are_kept_for_a_few_sets_of_topics_and_always_for_all(floors):
    """Topics may come and go for years."""
    floors.raise_to(floors.view(), {0: 10})
    for number in range(3 * KNOWN_MAX):
        floors.hold({f"t{number}"})
        floors.raise_to(floors.view(), {0: 20 + number})
    for held, floor in (((), 10), ({f"t{3 * KNOWN_MAX - 1}"}, 19 + 3 * KNOWN_MAX), ({"t0"}, 10)):
        floors.hold(held)
        assert floors.view().floors == [floor, 0]


def test_held_topics_are_skipped_like_paused_ones(floors):
    floors.pause("t", until=5.0)
    floors.hold({"u"})
    assert floors.view().paused == ["t", "u"]
    floors.raise_to(floors.view(), {0: 90})
    floors.hold(())
    assert (floors.view().paused, floors.view().floors) == (["t"], [0, 0])


def test_a_reach_grows_while_looks_are_quick_and_shrinks_when_they_are_not(floors):
    assert floors.view().reach == REACH_FIRST
    floors.looked(floors.view(), 0.001, has_seen_all=False)
    assert floors.view().reach > REACH_FIRST
    before = floors.view()
    floors.looked(before, 5.0, has_seen_all=False)
    floors.looked(before, 5.0, has_seen_all=False)
    assert floors.view().reach == before.reach // 2, "what two looks have seen of one reach counts once"


def test_a_reach_begins_anew_where_looks_may_take_less_or_begin_lower(floors):
    """Quick looks say nothing about rows that they could take and now cannot."""
    for change in (
        lambda: floors.pause("t", 1.0),
        lambda: floors.hold({"u"}),
        lambda: floors.resume("t"),
        lambda: floors.breached(1, floors.view().epoch),
    ):
        for _ in range(50):
            floors.looked(floors.view(), 0.0, has_seen_all=True)
        assert floors.view().is_near
        assert floors.is_settled
        change()
        assert floors.view().reach == REACH_FIRST
        assert not floors.is_settled


def test_a_look_that_the_server_ends_is_followed_by_shorter_ones(floors):
    """By one at once if it reached far; else the connection is at fault, or the next one is shorter."""
    for _ in range(50):
        floors.looked(floors.view(), 0.0, has_seen_all=True)
    far = floors.view()
    assert floors.falter(far)
    assert floors.falter(far), "another worker's, that had looked as far"
    assert floors.view().reach == REACH_FIRST
    for _ in range(50):
        assert not floors.falter(floors.view())
    assert floors.view().reach == REACH_MIN


def test_topics_are_due_when_their_time_has_come(floors):
    """And only then; resuming one that is not paused changes nothing."""
    floors.pause("t", until=5.0)
    floors.pause("u", until=7.0)
    assert floors.due(4.9) == []
    assert floors.due(5.0) == ["t"]
    assert sorted(floors.due(8.0)) == ["t", "u"]
    floors.looked(floors.view(), 0.0, has_seen_all=False)
    reach = floors.view().reach
    floors.resume("v")
    assert floors.view().reach == reach
    assert floors.paused() == ["t", "u"]


def test_a_view_is_a_copy(floors):
    """What a unit relies on does not change under it."""
    view = floors.view()
    floors.pause("t", until=1.0)
    floors.raise_to(floors.view(), {0: None, 1: None})
    assert (view.floors, view.paused) == ([0, 0], [])
