"""The floors of all lanes for one process, shared by its workers: see relay.core.horizon for what they are.

Floors belong to the topics that a look left alone. Below the floor of a lane, as it is known for a set of topics, there
is no row of any other topic. That holds for every larger set too, so a look that leaves topics alone starts at the
highest floor that is known for a part of them. Nothing is walked again when one more topic is left alone, or the same
one again.

Floors also belong to one server and to ids that only grow. Behind a pooler, a proxy or a name, another server may
answer from one transaction to the next: a standby that lacks the last moments, or a copy. So every look brings along
who answered and the last id drawn, and what was proven elsewhere, or before ids began again, is void.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from relay.core.horizon import Horizon, raised_floor
from relay.core.reach import REACH_FIRST, adapted_reach

if TYPE_CHECKING:
    from relay.daemon.sweep import Sweep

KNOWN_MAX = 8
"""Sets of topics for which floors are kept. Those that were used least recently are forgotten."""

EVERY_TOPIC: frozenset[str] = frozenset()


class Server(NamedTuple):
    """Who answered, as `queries.SERVER` says it."""

    started: str
    """When the server was started, and when it last recovered from a crash."""
    origin: str
    """Database, table and sequence that the ids are from. Standbys and restarts have the same, a copy has not."""


class Hint(NamedTuple):
    """What was proven about one set of topics: worth keeping over a restart, see `relay.floor`."""

    topics: frozenset[str]
    """Those that the floors skip."""
    floors: list[int]
    proven: int


@dataclass(frozen=True, slots=True)
class View:
    """What one unit may rely on: taken before its lanes are locked, valid while `epoch` stands."""

    floors: list[int]
    proven: int
    pins: Mapping[str, int]
    paused: list[str]
    """The topics that are left alone."""
    epoch: int
    server: Server | None
    """None until a server has been met."""
    last_id: int
    """The last id that this server is known to have drawn."""
    reach: int
    pace: float
    """Seconds for each id that the last look of its reach took; 0 if there was none."""

    @property
    def walk_seconds(self) -> float:
        """How long looks at this pace will walk to the end of what is proven."""
        return (self.proven - min(self.floors)) * self.pace

    @property
    def is_near(self) -> bool:
        """Whether one look reaches all that is known to be there."""
        return min(self.floors) + self.reach > self.last_id


class Floors:
    """Floors, pins and paused topics. Every method may be called from any thread."""

    def __init__(self, lanes: int) -> None:
        self._lock = threading.Lock()
        self.looking = threading.Lock()
        """Held by whoever walks, while it does."""
        self.sweep: Sweep | None = None
        """The one that is on its way. For whoever holds `looking`."""
        self._lanes = lanes
        self._paused: dict[str, float] = {}
        self._held: frozenset[str] = frozenset()
        self._epoch = -1
        self._forget()

    def _forget(self) -> None:
        self._epoch += 1
        self._horizon = Horizon()
        self._known: dict[frozenset[str], list[int]] = {EVERY_TOPIC: [0] * self._lanes}
        self._server: Server | None = None
        self._last_id = 0
        self._look_afresh()

    def _look_afresh(self) -> None:
        """Looks start lower, or may take less than before, so it is unknown how far the next one may walk."""
        self._reach = REACH_FIRST
        self._pace = 0.0
        self._has_seen_all = False

    def view(self) -> View:
        """A consistent copy, for looks that leave the paused and held topics alone."""
        with self._lock:
            return self._view(self._held.union(self._paused))

    def whole_view(self) -> View:
        """A consistent copy, for looks that leave no topic alone."""
        with self._lock:
            return self._view(EVERY_TOPIC)

    def _view(self, topics: frozenset[str]) -> View:
        parts = [floors for known, floors in self._known.items() if known <= topics]
        return View(
            list(map(max, zip(*parts, strict=True))),
            self._horizon.proven,
            dict(self._horizon.pins),
            sorted(topics),
            self._epoch,
            self._server,
            self._last_id,
            self._reach,
            self._pace,
        )

    def begin(self, view: View, server: Server, last_id: int, hints: Sequence[Hint]) -> None:
        """Starts from what was proven of this server before, if `view` has met none yet.

        The topics that were left alone then are paused, and due at once: whether they still cannot be written is asked
        before anything is walked again on their account.
        """
        with self._lock:
            if view.epoch != self._epoch or self._server is not None:
                return
            self._epoch += 1
            self._server = server
            self._last_id = last_id
            self._horizon = Horizon.after(max((hint.proven for hint in hints), default=0))
            for hint in hints:
                for topic in hint.topics:
                    self._paused.setdefault(topic, -math.inf)
                known = self._known.setdefault(hint.topics, [0] * self._lanes)
                for lane, floor in enumerate(hint.floors[: self._lanes]):
                    known[lane] = raised_floor(known[lane], floor, hint.proven)

    def forget(self) -> None:
        """Proves everything again. For rows or lanes that were hidden from looks."""
        with self._lock:
            self._forget()

    def is_still(self, view: View, server: Server, last_id: int) -> bool:
        """Whether a look at `server`, which has drawn `last_id`, may rely on the view; else all floors are void."""
        with self._lock:
            return self._is_still(view, server, last_id)

    def _is_still(self, view: View, server: Server, last_id: int) -> bool:
        is_still = view.server == server and last_id >= view.last_id
        if view.epoch == self._epoch:
            if is_still:
                self._last_id = max(self._last_id, last_id)
            else:
                self._forget()
        return is_still

    def hints(self) -> tuple[Server | None, int, list[Hint]]:
        """What a relay that starts may rely on, about all topics and about those that are not paused now, with the
        server that it is true of and its last id.

        Without the pins: their rows may have become visible by the time that somebody reads this.
        """
        with self._lock:
            sure = min([self._horizon.proven, *self._horizon.pins.values()])
            sets = {EVERY_TOPIC, frozenset(self._paused)}
            views = [(topics, self._view(topics).floors) for topics in sorted(sets, key=len)]
            server, last_id = self._server, self._last_id
        hints = [Hint(topics, [min(floor, sure + 1) for floor in floors], sure) for topics, floors in views]
        return server, last_id, hints

    def raise_to(self, view: View, first_live: Mapping[int, int | None]) -> None:
        """Takes in what a look has shown: the first row at or above the floor, or how far there is none, by lane.

        No lock is needed for a lane without one: rows do not come back. None stands for a look without an end.
        """
        with self._lock:
            if view.epoch != self._epoch:
                return
            topics = frozenset(view.paused)
            # Taken out and put in again, so that the sets that are in use stay at the end.
            floors = self._known.pop(topics, None) or [0] * self._lanes
            for lane, first in first_live.items():
                floors[lane] = raised_floor(max(floors[lane], view.floors[lane]), first, view.proven)
            self._known[topics] = floors
            if len(self._known) > KNOWN_MAX:
                del self._known[next(known for known in self._known if known != EVERY_TOPIC)]

    def looked(self, view: View, seconds: float, *, has_seen_all: bool) -> None:
        """Takes in how long a look took that walked to the end of its reach, and whether that was the end of all."""
        with self._lock:
            if view.epoch == self._epoch:
                self._has_seen_all = has_seen_all
                if view.reach == self._reach:
                    self._pace = seconds / view.reach
                    self._reach = adapted_reach(self._reach, seconds)

    def falter(self, view: View) -> bool:
        """Takes in that the server ended a look that took too long; True if a shorter one is worth a try at once."""
        with self._lock:
            if view.reach > REACH_FIRST:
                self._reach = min(self._reach, REACH_FIRST)
                return True
            self._reach = adapted_reach(min(self._reach, view.reach), math.inf)
            return False

    def observe(self, view: View, server: Server, last_id: int, writers: Collection[str], now: float) -> bool:
        """One observation of the horizon, in the order of relay.core.horizon; `view` is from before it.

        Returns:
            True if there may be rows below where the floors were: a long writer has ended, or the floors are void.
        """
        with self._lock:
            if view.epoch != self._epoch or view.server is None:
                return False
            if not self._is_still(view, server, last_id):
                return True
            back = self._horizon.observe(last_id, writers, now)
            if back is None:
                return False
            self._go_back(back)
            return True

    @property
    def is_settled(self) -> bool:
        """Whether nothing can appear any more below what has been observed, and a look has reached the end of it."""
        with self._lock:
            return self._has_seen_all and self._horizon.is_settled

    def pins_ended(self, view: View, writers: Iterable[str]) -> bool:
        """Whether a pin of `view` has ended by now; the floors have gone back then, and what was read is void."""
        with self._lock:
            back = self._horizon.end_pins(view.pins, set(writers))
            if back is None:
                return False
            self._go_back(back)
            return True

    def breached(self, found: int, epoch: int) -> bool:
        """A row was found below a floor: go back to it. False if the floors have moved meanwhile."""
        with self._lock:
            if epoch != self._epoch:
                return False
            self._go_back(found - 1)
            return True

    def _go_back(self, low: int) -> None:
        for floors in self._known.values():
            floors[:] = [min(floor, low + 1) for floor in floors]
        self._epoch += 1
        self._look_afresh()

    def pause(self, topic: str, until: float) -> bool:
        """Leaves a topic's rows alone for now. True if it was not paused before."""
        with self._lock:
            new = topic not in self._paused
            self._paused[topic] = until
            if new:
                self._look_afresh()
            return new

    def resume(self, topic: str) -> None:
        """Takes a topic up again."""
        with self._lock:
            if self._paused.pop(topic, None) is not None:
                self._look_afresh()

    def hold(self, topics: Collection[str]) -> None:
        """Leaves exactly these topics alone, besides the paused ones, until they are named no longer."""
        with self._lock:
            if self._held != frozenset(topics):
                self._held = frozenset(topics)
                self._look_afresh()

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
