"""What a relay's workers share and decide: lanes, tenure, failures to settle, and records without an outcome."""

from __future__ import annotations

from types import SimpleNamespace

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.event import Row
from relay.core.settlement import without
from relay.daemon.clocks import clocks, elapsed
from relay.daemon.lanes import LaneBook
from relay.daemon.sender import STABLE_SECONDS, Pending
from relay.daemon.settling import PROBES_MAX, find_stuck
from relay.daemon.store import MovedError
from relay.daemon.tenure import FRESH_SECONDS, GAP_SECONDS, Tenure
from relay.daemon.unsettled import Unsettled, is_connection_lost


def row(id_: int, key: bytes | None = None, topic: str = "t") -> Row:
    return Row(0, id_, b"", topic, key, "", b"", b"x", None)


def test_a_lane_that_another_worker_has_not_given_back_is_left_alone():
    """The database frees a lane with the session, before the worker that had it knows."""
    book = LaneBook()
    assert book.take(0, [1, 2, 3]) == set()
    assert book.take(1, [3, 4]) == {3}
    assert book.take(0, [4, 5]) == {4}
    book.give_back(0)
    assert book.take(1, [1, 2, 3]) == set()


@given(
    st.lists(st.sampled_from([None, b"a", b"b"]), max_size=10),
    st.sets(st.integers(0, 9)),
)
def test_no_row_is_removed_behind_a_stuck_one_of_its_key(keys, stuck_ids):
    """A stuck row is published again. Were a later one of its key gone, the key would end on the stuck one."""
    rows = [row(id_, key) for id_, key in enumerate(keys)]
    stuck = [r for r in rows if r.id in stuck_ids]
    left = without(rows, stuck)
    assert not {r.id for r in left} & stuck_ids
    for r in rows:
        is_behind = any(s.key == r.key and s.id <= r.id for s in stuck if s.key is not None)
        assert (r in left) == (not is_behind and r.id not in stuck_ids)


class Refusing:
    """A store whose database refuses to remove some rows."""

    def __init__(self, stuck: set[int]) -> None:
        self.stuck = stuck
        self.tries = 0

    def allows(self, change) -> bool:
        self.tries += 1
        try:
            change()
        except MovedError:
            return False
        return True

    def remove(self, rows) -> None:
        if any(r.id in self.stuck for r in rows):
            raise MovedError


@given(st.integers(0, 200), st.sets(st.integers(0, 200), max_size=3))
def test_few_stuck_rows_are_found_exactly_and_many_in_bounded_tries(count, stuck):
    """Every stuck row is found; where telling them apart takes too many tries, innocent ones wait with them."""
    rows = [row(id_) for id_ in range(count)]
    store = Refusing(stuck)
    found = {r.id for r in find_stuck(store, rows)}
    assert found == stuck & set(range(count))
    every = Refusing(set(range(count)))
    assert {r.id for r in find_stuck(every, rows)} == set(range(count))
    assert every.tries <= PROBES_MAX


def test_pauses_grow_until_a_unit_is_settled():
    """The first lasts five seconds at least, the longest a minute; a settled unit ends them."""
    unsettled = Unsettled()
    assert not unsettled.is_careful
    pauses = [unsettled.refused(0.0) for _ in range(8)]
    assert pauses[0] >= 5
    assert 30 <= pauses[-1] <= 60
    assert unsettled.is_careful
    assert unsettled.seconds_left(1.0) == pytest.approx(max(pauses) - 1.0)
    assert unsettled.settled({"t"})
    assert not unsettled.is_careful


def test_the_first_lost_connection_costs_no_pause_and_the_second_does():
    """A failover happens once. What loses its connection at every commit would publish without end."""
    unsettled = Unsettled()
    assert unsettled.lost(0.0) == 0.0
    assert unsettled.lost(0.0) >= 5
    unsettled.settled(())
    assert unsettled.lost(0.0) == 0.0


def test_a_topic_with_stuck_rows_keeps_the_next_units_careful():
    """Other topics that are settled say nothing about it."""
    unsettled = Unsettled()
    assert unsettled.stuck({"t"}) >= 5
    assert not unsettled.settled({"u"})
    assert unsettled.is_careful
    assert unsettled.settled({"t"})


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (psycopg.OperationalError("server closed the connection unexpectedly"), True),
        (psycopg.errors.AdminShutdown(), True),
        (psycopg.errors.ReadOnlySqlTransaction(), True),
        (psycopg.errors.IdleInTransactionSessionTimeout(), True),
        (psycopg.errors.InsufficientPrivilege(), False),
        (psycopg.errors.QueryCanceled(), False),
        (psycopg.errors.RaiseException(), False),
        (psycopg.errors.UniqueViolation(), False),
        (psycopg.errors.NumericValueOutOfRange(), False),
    ],
)
def test_a_refused_statement_is_no_lost_connection(error, is_lost):
    """The one is answered by a connection, the other by a pause."""
    assert is_connection_lost(error) == is_lost


class Session:
    """A store that counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None
        self.has_ended = False

    def confirm(self) -> int:
        self.asked += 1
        if self.error:
            raise self.error
        return 7

    def is_alive(self) -> bool:
        return not self.has_ended


def tenure_of(session: Session, claimed: tuple[float, ...], *, age: float = 1.0) -> Tenure:
    """The hold of a unit whose rows came so many seconds ago."""
    asked = tuple(reading - age for reading in clocks())
    return Tenure(session, SimpleNamespace(asked=asked, now_ms=5), claimed, 60)


def test_the_lanes_are_confirmed_before_the_first_record_unless_the_rows_have_just_come():
    """From a session that has not ended meanwhile."""
    session = Session()
    fresh = tenure_of(session, clocks(), age=0)
    fresh.confirm()
    assert (fresh.timestamp_ms, session.asked) == (5, 0)
    session.has_ended = True
    tenure_of(session, clocks(), age=0).confirm()
    assert session.asked == 1
    session.has_ended = False
    tenure_of(session, clocks(), age=FRESH_SECONDS).confirm()
    assert session.asked == 2


def test_after_a_gap_of_any_clock_the_lanes_are_confirmed():
    """A paused machine's monotonic clock may stand still while others go on; asking is the only proof."""
    session = Session()
    tenure = tenure_of(session, clocks())
    tenure.confirm()
    assert (tenure.timestamp_ms, session.asked) == (7, 1)
    assert tenure.holds()
    assert session.asked == 1
    monotonic, boot, wall = tenure._confirmed
    for stood in ((monotonic, boot, wall - GAP_SECONDS - 1), (monotonic, boot - GAP_SECONDS - 1, wall)):
        tenure._confirmed = stood
        asked = session.asked
        assert tenure.holds()
        assert session.asked == asked + 1
    tenure._confirmed = (monotonic, boot, wall - 10)
    session.error = psycopg.OperationalError("gone")
    assert not tenure.holds()
    assert not tenure.is_alive()


def test_a_unit_is_over_by_the_clock_that_shows_most():
    """Whichever clock stood still."""
    assert elapsed((10.0, 10.0, 10.0), (10.0, 12.0, 11.0)) == 2.0
    monotonic, boot, wall = clocks()
    assert tenure_of(Session(), (monotonic, boot, wall - 100)).is_over
    assert not tenure_of(Session(), (monotonic, boot, wall)).is_over


class Quiet:
    """A sender with records that are not answered."""

    def __init__(self, *, is_exact: bool, pending: int, answered: dict[str, int] | None = None) -> None:
        self.is_exact = is_exact
        self.pending = pending
        self.answered = {"a": 0, "b": 0, **(answered or {})}


def test_an_exact_sender_names_the_topics_without_an_answer():
    """By its reports: one topic's silence says nothing about another."""
    rows = [row(1, topic="a"), row(2, topic="a"), row(3, topic="b")]
    pending = Pending(Quiet(is_exact=True, pending=1, answered={"a": 1, "b": 1}), rows)
    assert pending.left() == {"a"}
    assert pending.is_partial()
    assert pending.only({"a"})
    assert not pending.only({"b"})


def test_a_fast_sender_guesses_only_what_its_count_allows_and_after_a_while():
    """As many records as the sick topics had, and no answer meanwhile."""
    now = [0.0]
    rows = [row(1, topic="a"), row(2, topic="b"), row(3, topic="b")]
    sender = Quiet(is_exact=False, pending=2)
    pending = Pending(sender, rows, lambda: now[0])
    assert pending.left() is None
    assert not pending.is_partial()
    assert not pending.only({"a"})
    assert not pending.only({"b"})
    now[0] += STABLE_SECONDS
    assert pending.only({"b"})
    assert not pending.only({"a"})
    sender.pending = 1
    assert not pending.only({"b"})
