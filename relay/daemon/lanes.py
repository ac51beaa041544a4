"""Which lanes each worker of this process works on.

The database ends a session whenever it likes, and the lanes are free at that moment. The worker whose session it was
may still have records on the wire, and learns of it a little later. So a worker that claims a lane asks this book, too:
a lane that another worker of the process has not given back is left alone.
"""

from __future__ import annotations

import threading
from collections.abc import Collection


class LaneBook:
    """Shared by the workers of a process. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lanes: dict[int, frozenset[int]] = {}

    def take(self, worker: int, lanes: Collection[int]) -> set[int]:
        """Notes the lanes of a worker's unit; returns those that another worker still has, which it does not get."""
        with self._lock:
            others = {lane for index, held in self._lanes.items() if index != worker for lane in held}
            taken = others.intersection(lanes)
            self._lanes[worker] = frozenset(lanes) - taken
            return taken

    def give_back(self, worker: int) -> None:
        """Notes that a worker has nothing in flight that is not accounted for."""
        with self._lock:
            self._lanes[worker] = frozenset()
