"""The floors of all lanes for one process, shared by its workers: see relay.core.horizon for what they are."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from relay.core.horizon import Horizon, raised_floor


@dataclass(frozen=True, slots=True)
class View:
    """What one unit may rely on: taken before its lanes are locked, valid while `epoch` stands."""

    floors: list[int]
    proven: int
    pins: Mapping[str, int]
    paused: list[str]
    epoch: int


class Floors:
    """Floors, pins and paused topics. Every method may be called from any thread.

    While topics are paused, their rows lie about in the lanes. A second set of floors then skips what has been looked
    through, no further than is proven, and is forgotten when the set of paused topics changes.
    """

    def __init__(self, lanes: int) -> None:
        self._lock = threading.Lock()
        self._horizon = Horizon()
        self._floors = [0] * lanes
        self._skips = [0] * lanes
        self._paused: dict[str, float] = {}
        self._held: frozenset[str] = frozenset()
        self._epoch = 0

    def view(self) -> View:
        """A consistent copy."""
        with self._lock:
            floors = self._skips if self._paused or self._held else self._floors
            left_alone = [*self._paused, *(self._held - self._paused.keys())]
            return View(list(floors), self._horizon.proven, dict(self._horizon.pins), left_alone, self._epoch)

    def whole_view(self) -> View:
        """A consistent copy, for looks that leave no topic alone."""
        with self._lock:
            return View(list(self._floors), self._horizon.proven, dict(self._horizon.pins), [], self._epoch)

    def raise_to(self, view: View, first_live: Mapping[int, int | None]) -> None:
        """Takes in what a look under the lanes' locks has shown: the first row at or above the floor, by lane."""
        with self._lock:
            if view.epoch != self._epoch:
                return
            floors = self._skips if self._paused or self._held else self._floors
            for lane, first in first_live.items():
                floors[lane] = raised_floor(floors[lane], first, view.proven)

    def raise_all(self, view: View) -> None:
        """Takes in that a look at all lanes found nothing. No lock is needed for that: rows do not come back."""
        if min(view.floors) <= view.proven:
            self.raise_to(view, dict.fromkeys(range(len(view.floors))))

    def observe(self, last_id: int, writers: Collection[str], now: float, epoch: int) -> bool:
        """One observation of the horizon, in the order of relay.core.horizon; `epoch` is from before it.

        Returns:
            True if a long writer has ended, so that there may be rows below where the floors were.
        """
        with self._lock:
            if epoch != self._epoch:
                return False
            back = self._horizon.observe(last_id, writers, now)
            if back is None:
                return False
            self._go_back(back)
            return True

    @property
    def is_settled(self) -> bool:
        """Whether nothing can appear any more below what has been observed."""
        with self._lock:
            return self._horizon.is_settled

    def pins_ended(self, view: View, writers: Iterable[str]) -> bool:
        """Whether a pin of `view` has ended by now; the floors have gone back then, and what was read is void."""
        with self._lock:
            back = self._horizon.end_pins(view.pins, set(writers))
            if back is None:
                return False
            self._go_back(back)
            return True

    def breached(self, lane: int, found: int, epoch: int) -> bool:
        """A row was found below the floor of a lane: go back to it. False if the floors have moved meanwhile."""
        with self._lock:
            if epoch != self._epoch:
                return False
            self._go_back(found - 1)
            return True

    def forget(self) -> None:
        """Proves everything anew. For a lost connection: a crash of the database may bring back rows whose removal was
        not flushed, and draw ids again whose rows were not."""
        with self._lock:
            self._horizon = Horizon()
            self._go_back(-1)

    def _go_back(self, low: int) -> None:
        self._floors = [min(floor, low + 1) for floor in self._floors]
        self._skips = list(self._floors)
        self._epoch += 1

    def pause(self, topic: str, until: float) -> bool:
        """Leaves a topic's rows alone for now. True if it was not paused before."""
        with self._lock:
            new = topic not in self._paused
            self._paused[topic] = until
            if new:
                self._skips = list(self._floors)
                self._epoch += 1
            return new

    def resume(self, topic: str) -> None:
        """Takes a topic up again."""
        with self._lock:
            if self._paused.pop(topic, None) is not None:
                self._skips = list(self._floors)
                self._epoch += 1

    def hold(self, topics: Collection[str]) -> None:
        """Leaves exactly these topics alone, besides the paused ones, until they are named no longer."""
        with self._lock:
            if self._held != frozenset(topics):
                self._held = frozenset(topics)
                self._skips = list(self._floors)
                self._epoch += 1

    @property
    def held(self) -> frozenset[str]:
        """The topics that `hold` named last."""
        return self._held

    def due(self, now: float) -> list[str]:
        """Paused topics whose time has come."""
        with self._lock:
            return [topic for topic, until in self._paused.items() if until <= now]

    def paused(self) -> list[str]:
        """The topics that are paused."""
        with self._lock:
            return list(self._paused)
