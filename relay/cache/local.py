"""The process tier: entries in this process, floors below which none may be, and the generation that fills belong to.

    closed --open(ticket)--> open          close() and open() both begin a new generation
      ^                        |
      +-------- close() -------+           a fill may put only in the generation in which its reading began

Without a feed of events the tier is open from the start, and its TTL is the promise. With a feed it is closed while the
feed cannot say that it has everything. Clearing it then is not enough: it would be filled again from a shared tier that
has not applied the missed events either; so the feed opens it when the shared tier has passed the point where the feed
began, and what was read before that moment is not put any more.

All operations are short and under one lock, except the hit, which takes none: it gets an entry from a dictionary, and
whoever drops or replaces entries does so in that dictionary.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple
from weakref import WeakSet

from relay.cache.eviction import Entry, Queue

Rejection = Literal["closed", "generation", "deadline", "floor"]
"""Why the process tier did not take a value."""

At = tuple[str, int, int]
"""Topic, partition, offset of an event."""


class Mark(NamedTuple):
    """When a fill began to read, taken before it looked anywhere."""

    generation: int
    began: float


class Floor(NamedTuple):
    """The version below which nothing may be served or put."""

    version: int
    at: At | None
    """The event that raised it, while the shared tier may not have applied it; None if it has, or if the floor came
    from elsewhere, such as a session that wrote."""
    since: float
    """Of a floor without `at`: fills that began until then may have read what it forbids."""
    is_void: bool
    """An invalidation without a version: no version can tell what is old. Nothing is put while the shared tier may have
    the old value, and then by no fill that began before."""


class Space:
    """The entries and floors of one entity, by id."""

    __slots__ = ("entity", "entries", "floors", "hits_gone", "is_off", "keep", "kept", "void_until")

    def __init__(self, entity: str) -> None:
        self.entity = entity
        self.entries: dict[str, Entry] = {}
        """Read without the lock. Never replaced: the hit of each face holds on to its `get`."""
        self.floors: dict[str, Floor] = {}
        self.kept: OrderedDict[str, Entry] = OrderedDict()
        """What was dropped, for those who may have an old value when the source fails."""
        self.keep = False
        self.is_off = False
        self.void_until = float("-inf")
        """Fills that began until then put nothing, whatever their key."""
        self.hits_gone = 0
        """Hits of entries that are no longer there."""

    def floor(self, key: str) -> int:
        """The version below which nothing may be served."""
        floor = self.floors.get(key)
        return 0 if floor is None else floor.version

    @property
    def hits(self) -> int:
        """Hits since the beginning; a few are lost when threads count in the same moment."""
        return self.hits_gone + sum(entry.hits for entry in list(self.entries.values()))

    def take_heat(self) -> dict[str, int]:
        """Hits by key since this was last asked."""
        taken = {}
        for entry in list(self.entries.values()):
            taken[entry.key], entry.told = entry.hits - entry.told, entry.hits
        return taken


@dataclass(frozen=True, slots=True)
class Size:
    """What there is at this moment."""

    entries: int
    floors: int
    evictions: int


_all: WeakSet[Local] = WeakSet()


class Local:
    """The process tier of one process, for all of its caches.

    Args:
        entries_max: entries in all; the next one evicts one that was not read lately (SIEVE).
        ttl: seconds after which an entry is looked up again in the tier behind it. Without a feed this is how old an
            invalidated value can get here.
        floors_max: floors in all. With more than that the tier forgets all of them, and with them all entries.
        fill_seconds: what took longer from its first look to its end is not put. Floors stay at least as long.
    """

    def __init__(
        self,
        *,
        entries_max: int = 10_000,
        ttl: float = 30.0,
        floors_max: int = 100_000,
        fill_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ttl: Final = ttl
        self.fill_seconds: Final = fill_seconds
        self.clock: Final = clock
        self.generation = 0
        self.is_open = True
        self.closed_because = ""
        self._entries_max = entries_max
        self._floors_max = floors_max
        self._floor_count = 0
        self._has_feed = False
        self._spaces: dict[str, Space] = {}
        self._queue = Queue()
        self._lock = threading.Lock()
        _all.add(self)

    def space(self, entity: str) -> Space:
        """The entries of an entity; floors may be there before anybody reads it."""
        space = self._spaces.get(entity)
        if space is None:
            with self._lock:
                space = self._spaces.setdefault(entity, Space(entity))
        return space

    # -- what readers do

    def mark(self) -> Mark | None:
        """To be taken before the first look of a read whose result shall be put; None while closed."""
        # The generation first: if the tier is opened in between, the mark is of an old one, and good for nothing.
        generation = self.generation
        return Mark(generation, self.clock()) if self.is_open else None

    def put(self, space: Space, entry: Entry, mark: Mark | None) -> Rejection | None:
        """Puts an entry, unless something happened since the mark that it cannot know of."""
        with self._lock:
            rejection = self._rejection(space, entry, mark)
            if rejection is not None:
                return rejection
            present = space.entries.get(entry.key)
            if present is not None:
                self._remove(space, present)
            while self._queue.count >= self._entries_max:
                victim, home = self._queue.evict()
                self._forget(home, victim)
            space.entries[entry.key] = entry
            self._queue.add(entry, space)
            space.kept.pop(entry.key, None)
            return None

    # -- what feeds, sessions and people do

    def apply(self, entity: str, id: str, version: int, at: At | None = None) -> None:  # noqa: A002
        """Nothing below this version is served or put from now on.

        Args:
            version: a committed one, never one of a transaction that may still be rolled back.
            at: where the event lies; without it the floor is dropped when no fill from before can be under way.
        """
        space = self.space(entity)
        with self._lock:
            floor = space.floors.get(id)
            if floor is None or version >= floor.version:
                self._raise(space, id, version, at, is_void=False)
            entry = space.entries.get(id)
            if entry is not None and entry.version < version:
                self._drop(space, entry)

    def invalidate(self, entity: str, id: str, at: At | None = None) -> None:  # noqa: A002
        """The same for a change without a version: the entry goes, and nothing that was read before is put."""
        space = self.space(entity)
        with self._lock:
            self._raise(space, id, space.floor(id), at, is_void=True)
            entry = space.entries.get(id)
            if entry is not None:
                self._drop(space, entry)

    def close(self, cause: str) -> int:
        """Serves nothing and takes nothing until it is opened. Returns the ticket with which it may be."""
        with self._lock:
            self._has_feed = True
            return self._close(cause)

    def open(self, ticket: int) -> bool:
        """Opens, if nothing has closed it again since: else the feed has to begin anew and take a new ticket.

        Only when the tier behind has applied everything from before the point at which the feed began after `close`.
        """
        with self._lock:
            if ticket != self.generation or self.is_open:
                return False
            self.generation += 1
            self.closed_because = ""
            self.is_open = True
            return True

    def sweep(self, progress: Mapping[tuple[str, int], int]) -> int:
        """Drops the floors that nobody needs any more, and returns how many.

        A floor is needed while the shared tier has not applied its event, because the old value can be had from there;
        and then until no fill can be under way that looked before. Those are refused after `fill_seconds`.

        Args:
            progress: all events below these offsets have been applied by the shared tier, in its present epoch.
        """
        with self._lock:
            now = self.clock()
            gone = 0
            for space in self._spaces.values():
                for key, floor in list(space.floors.items()):
                    if floor.at is not None:
                        if progress.get(floor.at[:2], 0) > floor.at[2]:
                            space.floors[key] = floor._replace(at=None, since=now)
                    # Not `>=`: a fill is refused when it is older than `fill_seconds`, not when it is as old.
                    elif now - floor.since > self.fill_seconds:
                        del space.floors[key]
                        gone += 1
            self._floor_count -= gone
            return gone

    def turn(self, space: Space, *, is_off: bool) -> None:
        """Switches the entries of one entity off or on. While off there are none; floors are kept all the same."""
        with self._lock:
            space.is_off = is_off
            space.void_until = self.clock()
            for entry in list(space.entries.values()):
                self._drop(space, entry)

    def void(self, space: Space) -> None:
        """Drops all entries of one entity, and what is being loaded."""
        with self._lock:
            space.void_until = self.clock()
            for entry in list(space.entries.values()):
                self._drop(space, entry)

    def size(self) -> Size:
        """Counts of this moment."""
        return Size(self._queue.count, self._floor_count, self._queue.evictions)

    # -- under the lock

    def _rejection(self, space: Space, entry: Entry, mark: Mark | None) -> Rejection | None:
        if mark is None or not self.is_open or space.is_off:
            return "closed"
        if mark.generation != self.generation:
            return "generation"
        # Floors are swept after this time, so an older fill could not be judged any more.
        if self.clock() - mark.began > self.fill_seconds:
            return "deadline"
        floor, present = space.floors.get(entry.key), space.entries.get(entry.key)
        is_void = mark.began <= space.void_until
        is_old = present is not None and present.version > entry.version
        if floor is not None:
            is_void |= floor.is_void and (floor.at is not None or mark.began <= floor.since)
            is_old |= entry.version < floor.version
        return "floor" if is_void or is_old else None

    def _raise(self, space: Space, key: str, version: int, at: At | None, *, is_void: bool) -> None:
        floor = space.floors.get(key)
        if floor is None:
            if self._floor_count >= self._floors_max:
                self._forget_floors()
            self._floor_count += 1
        else:
            at, is_void = at or floor.at, is_void or floor.is_void
        space.floors[key] = Floor(version, at, self.clock(), is_void)

    def _forget_floors(self) -> None:
        """Floors without number cannot be kept, and without floors nothing that is under way may be put."""
        for space in self._spaces.values():
            space.floors.clear()
        self._floor_count = 0
        if self._has_feed:
            self._close("floors")
        else:
            self.generation += 1

    def _close(self, cause: str) -> int:
        # First closed, then emptied: a hit that comes in between is one from before.
        self.is_open = False
        self.closed_because = cause
        self.generation += 1
        for space in self._spaces.values():
            for entry in list(space.entries.values()):
                self._drop(space, entry)
        return self.generation

    def _drop(self, space: Space, entry: Entry) -> None:
        self._remove(space, entry)
        if space.keep:
            space.kept[entry.key] = entry
            if len(space.kept) > self._entries_max:
                space.kept.popitem(last=False)

    def _remove(self, space: Space, entry: Entry) -> None:
        self._queue.remove(entry)
        self._forget(space, entry)

    def _forget(self, space: Space, entry: Entry) -> None:
        del space.entries[entry.key]
        space.hits_gone += entry.hits

    def after_fork(self) -> None:
        """In a child: the lock may have been held by a thread that is not here, and a feed is not here either."""
        self._lock = threading.Lock()
        if self._has_feed:
            self._close("fork")


def _after_fork() -> None:
    for local in list(_all):
        local.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
