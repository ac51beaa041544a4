"""Something that happens once, and those who wait for it: threads as well as tasks, of any loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from math import inf


class Signal:
    """Fired once; whoever subscribes afterwards is called at once."""

    __slots__ = ("_calls", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[Callable[[], None]] | None = []

    @property
    def has_fired(self) -> bool:
        """Whether it happened."""
        return self._calls is None

    def subscribe(self, call: Callable[[], None]) -> None:
        """Calls once it has happened: in the thread that fires it, or here and now if it already has."""
        with self._lock:
            if self._calls is not None:
                self._calls.append(call)
                return
        call()

    def fire(self) -> None:
        """It has happened. The second time is no event."""
        with self._lock:
            calls, self._calls = self._calls, None
        for call in calls or ():
            call()

    def wait(self, seconds: float) -> bool:
        """Blocks the thread until it happens, or for so long. Returns whether it happened."""
        gate = threading.Lock()
        gate.acquire()
        self.subscribe(gate.release)
        return gate.acquire(timeout=max(0.0, seconds))

    async def wait_in_loop(self, seconds: float) -> bool:
        """The same for a task. Cancelling it concerns nobody else."""
        loop = asyncio.get_running_loop()
        thread = threading.get_ident()
        happened: asyncio.Future[None] = loop.create_future()

        def settle() -> None:
            if not happened.done():
                happened.set_result(None)

        def wake() -> None:
            if threading.get_ident() == thread:
                settle()
            elif not loop.is_closed():
                loop.call_soon_threadsafe(settle)

        self.subscribe(wake)
        if happened.done():
            return True
        timer = None if seconds == inf else loop.call_later(max(0.0, seconds), settle)
        try:
            await happened
        finally:
            if timer is not None:
                timer.cancel()
        return self.has_fired
