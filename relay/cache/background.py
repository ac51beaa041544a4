"""Threads for what nobody waits for: refreshing values while the old ones are served."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Final

THREADS: Final = 4
WAITING_MAX: Final = 1000
"""Refreshes that wait for a thread. More are not begun: their values stay as they are until their TTL."""

Work = tuple[Callable[[], None], Callable[[], None]]


class Workers:
    """A few daemon threads, started when there is something to do for the first time, and anew after a fork."""

    def __init__(self, threads: int = THREADS) -> None:
        self._threads_max = threads
        self.reset()

    def reset(self) -> None:
        """As new: in a forked child there are no threads, and the lock may be held by one of the parent."""
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._is_closed = False
        self._idle = 0

    def submit(self, work: Callable[[], None], drop: Callable[[], None]) -> bool:
        """Has the work done by and by. `drop` is called instead if the end comes first. False: there is no room."""
        with self._lock:
            if self._is_closed or self._queue.qsize() >= WAITING_MAX:
                return False
            self._queue.put((work, drop))
            if self._idle < self._queue.qsize() and len(self._threads) < self._threads_max:
                thread = threading.Thread(target=self._run, name="relay-cache", daemon=True)
                self._threads.append(thread)
                # With nothing of the context in which a reader happened to ask for it.
                contextvars.Context().run(thread.start)
            return True

    def _run(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            work = self._queue.get()
            with self._lock:
                self._idle -= 1
            if work is None:
                return
            # Steps that lead a flight keep its exceptions in it: what comes out here is a fault, and shows as one.
            work[0]()

    def close(self, seconds: float = 5.0) -> None:
        """Drops what has not begun, and waits for what has, for so long at most."""
        with self._lock:
            self._is_closed = True
            threads = self._threads
            self._threads = []
            dropped = []
            while not self._queue.empty():
                dropped.append(self._queue.get())
            for _ in threads:
                self._queue.put(None)
        for work in dropped:
            if work is not None:
                work[1]()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(seconds)
