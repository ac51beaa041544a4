"""A sweep of the outbox by the pages of its table, where a walk by its index would take seconds.

A start without hints may have millions of entries before it that it can take nothing from. A look walks them in
outbox_pkey and fetches the row of each: about a microsecond an entry. A sweep reads the pages of the table in order, a
bounded number at a time, and notes the first row of each lane: a quarter to a third of that. It knows nothing before
its end, so looks come first, and a sweep only follows where they would go on for long.

What it proves is what a look without an end would have proven at its beginning. Up to the id that was proven by then,
no row can appear any more, and none moves to a page that has been read: whoever rewrites the table gives it another
file, which ends the sweep. Rows with larger ids may lie in any page, so no floor rises past that id.
"""

from __future__ import annotations

from collections.abc import Iterable

from relay.core.reach import REACH_MIN, adapted_reach
from relay.daemon.floors import View

WALK_SECONDS = 2.0
"""A walk of less is left to looks."""

PAGE_SECONDS = 5e-6
"""What a page of the table costs, within a factor of two, if the system has it in memory."""


class Sweep:
    """One sweep on its way. Whoever holds `Floors.looking` may use it."""

    def __init__(self, view: View, file: int, pages: int) -> None:
        self.view = view
        self._file = file
        self._pages = pages
        self._at = 0
        self._step = REACH_MIN
        self._firsts: dict[int, int] = {}

    @staticmethod
    def pays(view: View, pages: int) -> bool:
        """Whether a sweep of so many pages costs less than the walk that is known to be ahead."""
        return view.walk_seconds >= pages * PAGE_SECONDS

    def serves(self, view: View) -> bool:
        """Whether what it finds is of use to looks with this view."""
        return view.epoch == self.view.epoch and set(self.view.paused) <= set(view.paused)

    @property
    def bounds(self) -> tuple[str, str]:
        """The tuple ids between which the next step reads; the second is excluded."""
        return f"({self._at},0)", f"({self._at + self._step},0)"

    def took(self, file: int, firsts: Iterable[tuple[int, int]], seconds: float) -> bool:
        """Takes in the lanes and first ids of one step. False if the table has been rewritten: the sweep is void."""
        for lane, id_ in firsts:
            self._firsts[lane] = min(id_, self._firsts.get(lane, id_))
        self._at += self._step
        self._step = adapted_reach(self._step, seconds)
        return file == self._file

    def falter(self) -> bool:
        """Takes in that the server ended a step that took too long; True if a shorter one is worth a try at once."""
        was, self._step = self._step, REACH_MIN
        return was > REACH_MIN

    @property
    def firsts(self) -> dict[int, int | None] | None:
        """The first row of each lane, None where there is none; nothing before the end."""
        if self._at < self._pages:
            return None
        return {lane: self._firsts.get(lane) for lane in range(len(self.view.floors))}
