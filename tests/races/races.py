"""The ten races, and how their outcome is told: by a last read, after everything has settled, beside the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from tests.races.contender import Contender, Reading
from tests.races.source import Source

STALE: Final = "**stale until its TTL**"


def fill_overlaps_invalidation(cache: Contender, source: Source) -> Iterator[int]:
    """A fill overlaps an invalidation"""
    filling = Reading(cache, source)
    cache.invalidate(source.commit("B"))
    filling.end()
    yield 0


def evicted_during_fill(cache: Contender, source: Source) -> Iterator[int]:
    """The same, and what would have refused the old value is evicted meanwhile"""
    filling = Reading(cache, source)
    cache.invalidate(source.commit("B"))
    cache.evict()
    filling.end()
    yield 0


def flushed_during_fill(cache: Contender, source: Source) -> Iterator[int]:
    """A flush during a fill"""
    filling = Reading(cache, source)
    cache.invalidate(source.commit("B"))
    cache.flush()
    filling.end()
    yield 0


def invalidated_before_commit(cache: Contender, source: Source) -> Iterator[int]:
    """An invalidation from inside the transaction, before its commit is visible"""
    cache.read()
    cache.announce(2)
    cache.read()
    source.commit("B")
    yield 0
    cache.deliver()
    yield 0


def filled_from_lagging_replica(cache: Contender, source: Source) -> Iterator[int]:
    """A fill from a replica that lags"""
    cache.read()
    cache.invalidate(source.commit("B", seen_by_replica=False))
    yield 0
    source.catch_up()
    yield 0


def two_writers(cache: Contender, source: Source) -> Iterator[int]:
    """Two writers write through, in the other order than they committed"""
    cache.read()
    first = source.commit("B")
    second = source.commit("C")
    cache.write_through("C", second)
    cache.write_through("B", first)
    yield 0


def writer_dies(cache: Contender, source: Source) -> Iterator[int]:
    """A writer dies between its commit and the invalidation"""
    cache.read()
    source.commit("B")
    yield 0
    cache.deliver()
    yield 0


def evicted_between_reads(cache: Contender, source: Source) -> Iterator[int]:
    """An eviction between two reads: of the version, if it has a key of its own"""
    cache.read()
    cache.invalidate(source.commit("B"))
    cache.read()
    cache.evict()
    yield 0


def made_anew_during_fill(cache: Contender, source: Source) -> Iterator[int]:
    """A fill of an absence overlaps the re-creation, and the deletion is told twice"""
    cache.read()
    deleted = source.commit(None)
    cache.invalidate(deleted)
    filling = Reading(cache, source)
    cache.invalidate(source.commit("C"))
    cache.invalidate(deleted)
    filling.end()
    yield 0


def copy_of_another_process(cache: Contender, source: Source) -> Iterator[int]:
    """A copy in another process"""
    cache.read(0)
    cache.read(1)
    cache.invalidate(source.commit("B"))
    yield 1


Race = Callable[[Contender, Source], Iterator[int]]


@dataclass(frozen=True)
class Place:
    """A race, and its number in docs/RACES.md."""

    number: str
    race: Race

    @property
    def name(self) -> str:
        return self.race.__doc__ or ""


RACES: Final = (
    Place("1", fill_overlaps_invalidation),
    Place("2", evicted_during_fill),
    Place("9", flushed_during_fill),
    Place("3", invalidated_before_commit),
    Place("5", filled_from_lagging_replica),
    Place("6", two_writers),
    Place("26", writer_dies),
    Place("8", evicted_between_reads),
    Place("7, 18", made_anew_during_fill),
    Place("11", copy_of_another_process),
)


def play(race: Race, make: Callable[[Source], Contender]) -> str:
    """The outcome of one race for one cache, in words.

    A race yields the process that is to read, each time after the database has changed; the last time everything has
    settled. What is stale then is asked again: nothing is left that could heal it but its time to live.
    """
    source = Source()
    cache = make(source)

    def is_right(process: int) -> bool:
        return cache.read(process) == source.primary.value

    try:
        process, seen = 0, [True]
        for process in race(cache, source):
            seen.append(is_right(process))
        outcome = "ok" if all(seen) else "stale for a moment"
        if not seen[-1] and not is_right(process):
            outcome = STALE
    finally:
        cache.close()
    return f"an exception, {outcome}" if source.has_raised else outcome
