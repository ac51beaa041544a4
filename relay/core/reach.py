"""How far one look at the outbox may walk: a range of ids, so that it ends in a fraction of a second.

A look starts at the floors and wants the first row that it may take. Between them there may be millions of entries that
it can take nothing from: rows of a missing topic, or index entries of rows that were delivered while an old snapshot
keeps vacuum from removing them. The latter are not rows, so no LIMIT bounds them. Ids do: each belongs to one entry, in
one lane. A look at a range walks at most as many entries as the range has ids, and all lanes walk the same pages of the
table together: 12 million rows took 9 seconds by ranges of 100,000, and 33 in one statement, lane by lane.
"""

from __future__ import annotations

from collections.abc import Sequence

REACH_FIRST = 100_000
"""A range of which a busy machine walks every entry in about 0.1 seconds."""

REACH_MIN = 5_000

ID_MAX = (1 << 63) - 1
"""Nothing lies beyond the largest bigint."""

QUICK_SECONDS = 0.05
SLOW_SECONDS = 0.3


def ends_of(floors: Sequence[int], reach: int) -> list[int]:
    """Where a look from these floors ends, by lane; exclusive."""
    return [min(ID_MAX, floor + reach) for floor in floors]


def adapted_reach(reach: int, seconds: float) -> int:
    """The next reach after a look that walked this one to its end in so many seconds.

    Most ids have no entry any more, so a range that cost nothing is followed by a larger one.
    """
    if seconds < QUICK_SECONDS:
        return min(ID_MAX, reach * 4)
    return max(REACH_MIN, reach // 2) if seconds > SLOW_SECONDS else reach
