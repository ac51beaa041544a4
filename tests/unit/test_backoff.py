"""The pause before another try: long enough for what is broken, never so long that nobody looks, and never in step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.core.backoff import backoff_seconds

ATTEMPTS = st.integers(1, 10**6)
DRAWS = st.floats(0, 1, exclude_max=True)


@given(ATTEMPTS, DRAWS)
def test_a_pause_is_between_half_of_its_ceiling_and_the_cap(attempt, draw):
    """No draw makes the pause nothing, and no number of attempts makes it longer than the cap."""
    pause = backoff_seconds(attempt, draw, first=0.2, cap=7.0)
    ceiling = min(7.0, 0.2 * 2.0 ** min(attempt - 1, 60))
    assert ceiling / 2 <= pause <= ceiling


@given(ATTEMPTS, DRAWS)
def test_a_later_try_never_comes_sooner(attempt, draw):
    """With the same draw, the pause grows or stays."""
    assert backoff_seconds(attempt + 1, draw) >= backoff_seconds(attempt, draw)


def test_it_doubles_from_the_first_pause_to_the_cap():
    """The ceilings of one tenth of a second, doubled until five seconds."""
    assert [backoff_seconds(n, 0.0) * 2 for n in range(1, 9)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


@given(ATTEMPTS)
def test_two_relays_that_fail_together_do_not_come_back_together(attempt):
    """Different draws give different pauses, at the cap as well."""
    pauses = [backoff_seconds(attempt, draw / 10) for draw in range(10)]
    assert len(set(pauses)) == 10
