"""How stale reads were, as the demo tells it: by the commits of the journal, in calm and overall."""

from __future__ import annotations

import pytest

from relay.demo.staleness import Histogram, Staleness


def wrote(staleness: Staleness, account: int, version: int, at: float, outcome: str = "committed") -> None:
    event = ("event", f"account:{account}", version, "digest")
    staleness.wrote({"outcome": outcome, "at": at, "events": [event]})


def read(staleness: Staleness, *reads: tuple[int, int, float], service: str = "s", **counts: int) -> None:
    line = {"reads": reads, "older": 0, "marked": 0, "failed": 0, "hits": 0, "all": 0, "loads": 0, "saved": 0}
    staleness.read(service, line | counts)


def test_a_read_is_stale_since_the_next_version_was_committed():
    """Not since its own, and not by a version that came after the read began."""
    staleness = Staleness()
    wrote(staleness, 1, 1, 10.0)
    wrote(staleness, 1, 2, 20.0)
    wrote(staleness, 1, 3, 30.0)
    read(staleness, (1, 1, 19.0), (1, 1, 20.5), (1, 2, 29.0), (1, 2, 32.0))
    found = staleness.figures(100.0).overall
    assert (found.reads, found.fresh, found.p50, found.worst) == (4, 0.5, 0.5, 2.0)


def test_a_read_is_judged_only_when_the_journal_has_told_of_its_time():
    """A commit that the journal tells of a moment later still counts."""
    staleness = Staleness()
    wrote(staleness, 1, 1, 10.0)
    read(staleness, (1, 1, 20.5))
    assert staleness.figures(20.6).overall.reads == 0
    wrote(staleness, 1, 2, 20.0)
    assert staleness.figures(22.0).overall.worst == 0.5


def test_commits_of_unknown_outcome_and_rolled_back_ones_prove_nothing():
    """The version after an unknown one tells the least that is known of the time."""
    staleness = Staleness()
    wrote(staleness, 1, 2, 20.0, "unknown")
    read(staleness, (1, 1, 21.0))
    assert staleness.figures(30.0).overall.fresh == 1.0
    wrote(staleness, 1, 3, 22.0)
    read(staleness, (1, 1, 23.0))
    assert staleness.figures(30.0).overall.worst == 1.0


def test_reads_count_as_calm_between_the_turns():
    """Before the first turn nothing is calm; reads after the end of writing are not judged at all."""
    staleness = Staleness()
    staleness.turn(10.0, is_calm=True)
    staleness.turn(20.0, is_calm=False)
    staleness.turn(21.0, is_calm=False)
    staleness.turn(30.0, is_calm=True)
    staleness.end(40.0)
    read(staleness, *((1, 1, at) for at in (5.0, 10.0, 19.9, 20.0, 29.0, 31.0, 41.0)))
    found = staleness.figures(100.0)
    assert (found.calm.reads, found.overall.reads, found.reads) == (3, 6, 7)


def test_an_account_is_behind_while_the_last_read_of_some_service_was_older():
    """Also one that a service has never read."""
    staleness = Staleness()
    read(staleness, (1, 5, 1.0), (2, 1, 1.0), service="a")
    read(staleness, (1, 4, 1.0), (2, 1, 1.0), service="b")
    assert staleness.behind({1: 5, 2: 1}) == 1
    read(staleness, (1, 5, 2.0), service="b")
    assert staleness.behind({1: 5, 2: 1}) == 0
    assert staleness.behind({1: 5, 2: 1, 3: 1}) == 2


def test_what_services_count_is_added_up():
    """Counters are totals of a process, the others are since its last line."""
    staleness = Staleness()
    read(staleness, (1, 1, 1.0), older=1, hits=2, all=4, loads=1, saved=1)
    read(staleness, (1, 1, 1.0), marked=2, failed=3, hits=5, all=10, loads=2, saved=3)
    read(staleness, service="other", hits=5, all=10, loads=1, saved=1)
    found = staleness.figures(10.0)
    assert (found.reads, found.older, found.marked, found.failed) == (2, 1, 2, 3)
    assert (found.hit_rate, found.loads, found.saved) == (0.5, 3, 4)


@pytest.mark.parametrize("fresh", [0, 1, 98, 99, 100, 1000])
def test_quantiles_count_the_fresh_reads_too(fresh):
    """They are those of the sorted list of all reads."""
    times = sorted([0.0] * fresh + [0.2, 0.1, 0.3])
    histogram = Histogram()
    for seconds in times:
        histogram.add(seconds)
    found = histogram.figures()
    assert (found.p50, found.p99) == (times[int(len(times) * 0.5)], times[int(len(times) * 0.99)])
    assert (found.worst, found.reads) == (0.3, len(times))
