"""Which keys are read most, lately: for warming a cache before it is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from heapq import nlargest
from itertools import islice
from typing import Any, Final

KEYS_MAX: Final = 10_000
COUNTED: Final = 4
"""One read in so many is counted: what is hot is met often enough."""
HALVED_AFTER: Final = 50_000
"""Reads after which all counts are halved: what was hot an hour ago gives way to what is hot now."""


class Heat:
    """Counts of reads by id, which decay. Ids that are hardly ever read are forgotten.

    Args:
        hits: hits of the process tier by key since they were last asked for: the fast path counts for itself.
    """

    def __init__(self, hits: Callable[[], Mapping[str, int]]) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Any, float] = {}
        self._reads = 0
        self._since = 0
        self._hits = hits

    def note(self, ids: Collection[Any]) -> None:
        """These were read, and not from the process tier. One read in a few is counted, for all of them."""
        self._since += len(ids)
        if self._since < COUNTED:
            return
        with self._lock:
            skip, self._since = COUNTED - 1 - (self._since - len(ids)) % COUNTED, 0
            counts = self._counts
            for id_ in islice(ids, skip, None, COUNTED):
                counts[id_] = counts.get(id_, 0.0) + COUNTED
                self._reads += COUNTED
            if self._reads >= HALVED_AFTER or len(counts) > 2 * KEYS_MAX:
                self._decay()

    def top(self, count: int) -> list[Any]:
        """The ids that were read most, the hottest first."""
        with self._lock:
            self._take_hits()
            return nlargest(count, self._counts, key=self._counts.__getitem__)

    def _take_hits(self) -> None:
        hits = self._hits()
        for id_ in list(self._counts):
            more = hits.get(f"{id_}", 0)
            self._counts[id_] += more
            self._reads += more

    def _decay(self) -> None:
        self._take_hits()
        kept = nlargest(KEYS_MAX, self._counts.items(), key=lambda item: item[1])
        self._counts = {id_: count / 2 for id_, count in kept if count >= 2}
        self._reads = 0

    def reset(self) -> None:
        """For a forked child: the lock may be held by a thread that is not there."""
        self._lock = threading.Lock()
