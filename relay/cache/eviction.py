"""Which entry of the process tier makes room: SIEVE (Zhang et al., NSDI 2024).

Entries stand in the order in which they came. A hand goes from the oldest to the newest, spares what was read since it
last came by, and evicts the first one that was not. A hit moves nothing, so it needs no lock: it counts.
"""

from __future__ import annotations

from typing import Any


class Entry:
    """A value in the process tier. Only `hits`, `fresh_until` and `soft_until` change after it was put."""

    __slots__ = (
        "as_of",
        "fresh_until",
        "hard_until",
        "hits",
        "home",
        "key",
        "newer",
        "older",
        "seen",
        "soft_until",
        "told",
        "value",
        "version",
    )

    def __init__(
        self,
        key: str,
        value: Any,
        version: int,
        *,
        as_of: float,
        fresh_until: float,
        soft_until: float,
        hard_until: float,
    ) -> None:
        self.key = key
        self.value = value
        self.version = version
        self.fresh_until = fresh_until
        """Served without a second thought before; afterwards judged by the two below, and by the reader's policy."""
        self.soft_until = soft_until
        self.hard_until = hard_until
        self.as_of = as_of
        """The moment for which it is certified to have been the newest."""
        self.hits = 0
        self.seen = 0
        """`hits` when the hand came by."""
        self.told = 0
        """`hits` when they were last asked for."""
        self.older: Entry | None = None
        self.newer: Entry | None = None
        self.home: Any = None
        """Where its owner keeps it."""


class Queue:
    """The order and the hand. Its owner holds a lock."""

    def __init__(self) -> None:
        self.count = 0
        self.evictions = 0
        self._oldest: Entry | None = None
        self._newest: Entry | None = None
        self._hand: Entry | None = None

    def add(self, entry: Entry, home: Any) -> None:
        """As the newest."""
        entry.home = home
        entry.older, entry.newer = self._newest, None
        if self._newest is None:
            self._oldest = entry
        else:
            self._newest.newer = entry
        self._newest = entry
        self.count += 1

    def remove(self, entry: Entry) -> None:
        """An entry that is in the queue."""
        if self._hand is entry:
            self._hand = entry.newer
        if entry.older is None:
            self._oldest = entry.newer
        else:
            entry.older.newer = entry.newer
        if entry.newer is None:
            self._newest = entry.older
        else:
            entry.newer.older = entry.older
        entry.older = entry.newer = None
        self.count -= 1

    def evict(self) -> tuple[Entry, Any]:
        """Takes one out and returns it with its home. There must be one."""
        entry = self._at_hand()
        # Bounded: readers who count on while the hand goes round must not keep it going for ever.
        for _ in range(self.count):
            if entry.hits == entry.seen:
                break
            entry.seen = entry.hits
            self._hand = entry.newer
            entry = self._at_hand()
        self._hand = entry.newer
        self.remove(entry)
        self.evictions += 1
        return entry, entry.home

    def _at_hand(self) -> Entry:
        entry = self._hand or self._oldest
        if entry is None:
            raise LookupError("the queue is empty")
        return entry
