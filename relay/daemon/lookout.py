"""Bounded looks at the outbox, on whichever connection asks: where each lane's first row is.

A look goes from the floors as far as `relay.core.reach` says. If that is not the end, the floors rise by what was
walked and the next look goes on from there, in this process or, by way of `relay.floor`, in the one that follows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from relay.core.reach import ID_MAX, REACH_FIRST, adapted_reach, ends_of
from relay.daemon import queries
from relay.daemon.floors import Floors, Hint, Server, View
from relay.daemon.sweep import WALK_SECONDS, Sweep

LOOK_SECONDS = 1.0
"""How long one may go on looking before the caller gets to say that it is alive."""

Ask = Callable[[Any, dict[str, Any]], list[Any]]
"""Runs one statement with these parameters, and returns its rows."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look has found."""

    heads: dict[int, int]
    """The first row of each lane that has one."""
    has_seen_all: bool
    """Whether there is nothing beyond in the other lanes."""
    is_stuck: bool = False
    """Whether the next look will see no more, because no floor can rise before more is proven."""


class VoidError(Exception):
    """What a look relied on does not hold: another server answered, or ids have begun again. To be started again."""


class FalteredError(Exception):
    """A look took too long, and a shorter one is worth a try at once. Its transaction has failed."""


class Lookout:
    """The looks of one connection."""

    def __init__(self, ask: Ask, floors: Floors, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._floors = floors
        self._clock = clock

    def view(self) -> View:
        """What is known, of a server that has been met. Through a pooler, only valid in the transaction that asks."""
        view = self._floors.view()
        while view.server is None:
            started, origin, last_id = self._ask(queries.SERVER, {})[0]
            allowed = self._ask(queries.HINTS_ALLOWED, {})[0][0]
            rows = self._ask(queries.HINTS, {}) if allowed else []
            hints = [Hint(frozenset(paused), floors, proven) for paused, floors, proven in rows]
            self._floors.begin(view, Server(started, origin), last_id, hints)
            view = self._floors.view()
        return view

    def search(self) -> Sight:
        """Looks until something is found, everything is seen, or a moment has passed.

        Raises:
            VoidError, FalteredError: as they say. A transaction that this is a part of has to be given up.
        """
        until = self._clock() + LOOK_SECONDS
        while True:
            # One at a time: two workers would walk the same.
            with self._floors.looking:
                view = self.view()
                is_sweeping = self._sweep(view)
                sight = Sight({}, has_seen_all=False) if is_sweeping else self.look(view)
                if not is_sweeping and not sight.heads and not sight.has_seen_all:
                    self._floors.sweep = self._new_sweep(self.view())
            if sight.heads or sight.has_seen_all or self._clock() >= until:
                return sight
            after = self.view()
            if not is_sweeping and (view.floors, view.reach) == (after.floors, after.reach):
                return replace(sight, is_stuck=True)

    def look(self, view: View) -> Sight:
        """Looks once, and raises the floors by what it has walked."""
        ends = ends_of(view.floors, view.reach)
        began = self._clock()
        with self.faltering(view):
            started, origin, last_id, found = self._ask(
                queries.LOOK, {"floors": view.floors, "ends": ends, "paused": view.paused}
            )[0]
        if not self._floors.is_still(view, Server(started, origin), last_id):
            raise VoidError
        heads = {lane: id_ for lane, id_ in enumerate(found) if id_ is not None}
        has_seen_all = all(lane in heads or end > last_id for lane, end in enumerate(ends))
        self._floors.raise_to(view, {lane: heads.get(lane, end) for lane, end in enumerate(ends)})
        if len(heads) < len(ends):
            self._floors.looked(view, self._clock() - began, has_seen_all=has_seen_all)
        return Sight(heads, has_seen_all)

    def _sweep(self, view: View) -> bool:
        """Takes one step of the sweep that is on its way; False if there is none that is of use."""
        sweep = self._floors.sweep
        if sweep is None or not sweep.serves(view):
            self._floors.sweep = None
            return False
        start, stop = sweep.bounds
        began = self._clock()
        try:
            rows = self._ask(queries.SWEEP, {"start": start, "stop": stop, "paused": sweep.view.paused})
        except psycopg.errors.QueryCanceled:
            if sweep.falter():
                raise FalteredError from None
            raise
        started, origin, last_id, file, lanes, ids = rows[0]
        if not self._floors.is_still(view, Server(started, origin), last_id):
            raise VoidError
        if not sweep.took(file, zip(lanes or [], ids or [], strict=True), self._clock() - began):
            self._floors.sweep = None
        elif (firsts := sweep.firsts) is not None:
            self._floors.sweep = None
            self._floors.raise_to(sweep.view, firsts)
        return True

    def _new_sweep(self, view: View) -> Sweep | None:
        """A sweep for what is ahead of a look that has found nothing, if it pays."""
        if view.walk_seconds < WALK_SECONDS:
            return None
        file, pages = self._ask(queries.PAGES, {})[0]
        return Sweep(view, file, pages) if Sweep.pays(view, pages) else None

    @contextmanager
    def faltering(self, view: View) -> Iterator[None]:
        """For statements that walk as far as the view's reach."""
        try:
            yield
        except psycopg.errors.QueryCanceled:
            if self._floors.falter(view):
                raise FalteredError from None
            raise

    def finds_any(self) -> bool:
        """Whether the outbox has any row, of whatever topic: above the floors, then below them, and in no lane."""
        floors = self._floors.whole_view().floors
        lanes = len(floors)
        return (
            self.walk(floors, [ID_MAX] * lanes)
            or self.walk([0] * lanes, floors)
            or bool(self._ask(queries.STRAYS, {"lanes": lanes})[0][0])
        )

    def walk(self, floors: Sequence[int], ends: Sequence[int]) -> bool:
        """Whether there is a row between these, looked for in bounded steps."""
        reach = REACH_FIRST
        starts = list(floors)
        while True:
            stops = [min(start + reach, end) for start, end in zip(starts, ends, strict=True)]
            began = self._clock()
            _, _, last_id, found = self._ask(queries.LOOK, {"floors": starts, "ends": stops, "paused": []})[0]
            if any(id_ is not None for id_ in found):
                return True
            if all(stop > last_id or stop >= end for stop, end in zip(stops, ends, strict=True)):
                return False
            reach = adapted_reach(reach, self._clock() - began)
            starts = stops


class Net:
    """The safety net under the floors, where no row may be: looks there step by step, and then from the beginning."""

    def __init__(self) -> None:
        self._at = 0
        self._reach = REACH_FIRST

    def step(self, ask: Ask, floors: Floors, clock: Callable[[], float] = time.monotonic) -> tuple[int, int] | None:
        """One step. Returns the lane of a row that its floor had passed, and by how much; the floors have gone back."""
        view = floors.whole_view()
        if view.server is None:
            return None
        if self._at >= max(view.floors):
            self._at = 0
        starts = [min(self._at, floor) for floor in view.floors]
        ends = [min(self._at + self._reach, floor) for floor in view.floors]
        began = clock()
        started, origin, last_id, found = ask(queries.LOOK, {"floors": starts, "ends": ends, "paused": []})[0]
        if not floors.is_still(view, Server(started, origin), last_id):
            return None
        ids = [(id_, lane) for lane, id_ in enumerate(found) if id_ is not None]
        if not ids:
            self._at += self._reach
            self._reach = adapted_reach(self._reach, clock() - began)
            return None
        if view.pins and floors.pins_ended(view, [row[0] for row in ask(queries.WRITERS, {})]):
            return None
        id_, lane = min(ids)
        return (lane, view.floors[lane] - id_) if floors.breached(id_, view.epoch) else None
