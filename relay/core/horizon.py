"""Floors: below which id a lane holds nothing and never will, so that its index scan can start there.

Deleted rows leave dead index entries, and while any old snapshot is open nobody may remove them. A scan from the start
of the lane would walk them all at every look. A floor skips them, but ids do not become visible in order: a writer may
draw an id now and commit in an hour. So a floor is only raised to what is proven:

    1. read M, the last id drawn;
    2. then note who holds a write lock on the outbox (a writer takes it before it draws an id and keeps it to its end);
    3. when all of those have ended, no row with an id up to M can appear any more: M is proven.

    ids   ... dead dead dead dead | live live live | M ......... new
                                  ^ floor = min(first live row, M + 1)

A writer that stays open must not hold everybody's floor for an hour. After `PATIENCE_SECONDS` it becomes a pin: its ids
are above what had been drawn before it was first seen, so that point is remembered, and the proof goes on without it.
From then on every read of rows is followed by a question: are all pins still open? If one has ended, its rows may have
become visible below the floor, and a row that was read may have to come after them. The read is thrown away, the floors
go back to the pin, once.

A transaction that is prepared (two-phase commit) goes on under another name, so its old name ends before it does. A
prepared writer that is new may be any of those that have just ended, and becomes a pin from where the earliest began.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

PATIENCE_SECONDS = 3.0
PREPARED = "-1/"
"""How the name of a prepared transaction begins: it has no backend any more."""


@dataclass(slots=True)
class Horizon:
    """What is proven about ids so far, for one relay process. One thread owns it."""

    proven: int = 0
    """No row with an id up to this can appear, except from a pin."""
    pins: dict[str, int] = field(default_factory=dict)
    """Long writers: virtual transaction to the id below which it wrote nothing (exclusive)."""
    _previous: int = 0
    _candidate: int = 0
    _since: float = 0.0
    _waiting: set[str] = field(default_factory=set)
    _first_seen: dict[str, int] = field(default_factory=dict)

    @classmethod
    def after(cls, proven: int) -> Horizon:
        """Goes on from what was proven before, with the rows of all pins above it."""
        return cls(proven=proven, _previous=proven)

    def observe(self, last_id: int, writers: Collection[str], now: float) -> int | None:
        """Takes in one observation: `last_id` was read first, `writers` after it.

        Returns the id to which floors must go back because a pin has ended, or None.
        """
        open_now = set(writers)
        before = self._first_seen
        earliest = min((low for w, low in before.items() if w not in open_now), default=self._previous)
        renamed = {w for w in open_now if w not in before and w.startswith(PREPARED)}
        back = self.end_pins(self.pins, open_now)
        self.pins.update(dict.fromkeys(renamed - set(self.pins), earliest))
        self._first_seen = {w: before.get(w, self.pins.get(w, self._previous)) for w in open_now}
        self._previous = last_id
        self._waiting &= open_now
        if self._waiting and now - self._since > PATIENCE_SECONDS:
            self.pins.update({w: self._first_seen[w] for w in self._waiting})
            self._waiting = set()
        if not self._waiting:
            self.proven = max(self.proven, self._candidate)
            self._candidate = last_id
            self._since = now
            self._waiting = open_now - set(self.pins)
        return back

    def end_pins(self, pins: Mapping[str, int], open_now: Collection[str]) -> int | None:
        """Lets go of those of these pins that are not open any more.

        Returns:
            The id to which floors must go back; None if all are open.
        """
        ended = [writer for writer in pins if writer not in open_now]
        back = min((pins[writer] for writer in ended), default=None)
        for writer in ended:
            self.pins.pop(writer, None)
        if back is not None:
            renamed = [writer for writer in open_now if writer.startswith(PREPARED) and writer not in self.pins]
            self.pins.update(dict.fromkeys(renamed, back))
        return back

    @property
    def is_settled(self) -> bool:
        """Whether everything up to the last observation is proven, and nobody holds back anything older."""
        return not self.pins and not self._waiting and self.proven >= self._previous


def raised_floor(floor: int, first_live: int | None, proven: int) -> int:
    """A lane's floor after a look at it: the first row that is there, but never beyond what is proven."""
    reachable = proven + 1 if first_live is None else min(first_live, proven + 1)
    return max(floor, reachable)
