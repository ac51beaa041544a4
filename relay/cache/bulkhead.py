"""How many loads of a cache run at once: when the tiers are away, the database gets this many and not one more."""

from __future__ import annotations

import threading
from collections import deque

from relay.cache.signal import Signal


class Bulkhead:
    """Places for loads. Whoever waits is served in the order of coming.

    A load inside of another load takes no place: if it had to wait for one, loads that hold all places and wait for
    places would wait for ever. What runs at once is therefore bounded by the outer loads.
    """

    def __init__(self, places: int) -> None:
        self._lock = threading.Lock()
        self._places = places
        self._free = places
        self._queue: deque[Signal] = deque()

    def enter(self) -> Signal | None:
        """None: go ahead, and `leave` afterwards. Else wait for the signal: it comes with a place."""
        with self._lock:
            if self._free:
                self._free -= 1
                return None
            ticket = Signal()
            self._queue.append(ticket)
            return ticket

    def leave(self) -> None:
        """Gives the place to the next one."""
        with self._lock:
            if not self._queue:
                self._free += 1
                return
            ticket = self._queue.popleft()
        ticket.fire()

    def withdraw(self, ticket: Signal) -> None:
        """For one who no longer wants to wait: leaves the queue, or hands on the place that came meanwhile."""
        with self._lock:
            if ticket in self._queue:
                self._queue.remove(ticket)
                return
        self.leave()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    def reset(self) -> None:
        """For a forked child: the threads that hold the places are not in this process."""
        self._lock = threading.Lock()
        self._queue = deque()
        self._free = self._places
