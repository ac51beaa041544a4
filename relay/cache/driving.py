"""The drivers of the protocol for threads and for tasks: they perform effects, and decide nothing."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Coroutine, Generator, Iterable
from math import inf
from typing import Any, Protocol, TypeVar

from relay.cache.background import Workers
from relay.cache.effects import (
    Apply,
    AskTime,
    Lead,
    Load,
    Look,
    Pause,
    PutValue,
    Release,
    Spawn,
    TakeLease,
    Together,
    Wait,
)
from relay.cache.flights import CHAIN, Flight
from relay.cache.tiers import Applied, Lease, Page, Put, Reject, SharedTier

T = TypeVar("T")


class AsyncSharedTier(Protocol):
    """What reading needs of the asynchronous face of a shared tier; see `relay.cache.tiers.SharedTier`."""

    async def look(self, keys: Any, /) -> Page: ...
    async def lease(self, key: str, want: int, stamps: Any, *, refresh: bool) -> Lease: ...
    async def put(self, put: Put, /) -> Reject | None: ...
    async def release(self, key: str, lease: bytes, /) -> None: ...
    async def apply(self, bumps: Any, stamps: Any, positions: Any, /) -> Applied: ...
    async def time(self) -> int: ...


def leave(flights: Iterable[Flight[Any]]) -> None:
    """Ends flights that may have ended already."""
    for flight in flights:
        flight.table.leave(flight)


class Driver:
    """Runs steps in the thread that asks, and background steps in a few threads of its own."""

    def __init__(self, shared: SharedTier | None, workers: Workers) -> None:
        self._shared = shared
        self._workers = workers
        self._perform: dict[type, Callable[[Any], Any]] = {
            Lead: self._lead,
            Spawn: self._spawn,
            Load: _load,
            Wait: lambda wait: wait.signal.wait(wait.seconds),
            Pause: lambda pause: time.sleep(pause.seconds),
            Together: self._together,
        }
        if shared is not None:
            self._perform |= {
                Look: lambda look: shared.look(look.names),
                TakeLease: lambda take: shared.lease(take.name, take.want, take.stamps, refresh=take.refresh),
                PutValue: lambda put: shared.put(put.put),
                Release: lambda given: shared.release(given.name, given.lease),
                Apply: lambda drop: shared.apply(drop.bumps, drop.stamps, ()),
                AskTime: lambda _: shared.time(),
            }

    def run(self, steps: Generator[Any, Any, T]) -> T:
        """Performs all effects of the steps and returns what they return."""
        perform = self._perform
        try:
            effect = next(steps)
            while True:
                try:
                    answer = perform[type(effect)](effect)
                except BaseException as error:  # Whatever it is, it concerns the steps first.
                    effect = steps.throw(error)
                else:
                    effect = steps.send(answer)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    def _lead(self, lead: Lead) -> None:
        try:
            self.run(lead.steps)
        finally:
            leave(lead.flights)

    def _spawn(self, spawn: Spawn) -> bool:
        return self._workers.submit(lambda: self._lead(Lead(*spawn)), lambda: leave(spawn.flights))

    def _together(self, together: Together) -> list[Any]:
        ended: list[Any] = []
        failed: Exception | None = None
        for steps in together.steps:
            try:
                ended.append(self.run(steps))
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return ended


def _load(load: Load) -> Any:
    token = CHAIN.set((*CHAIN.get(), *load.flights))
    try:
        return load.loader(*load.arguments)
    finally:
        CHAIN.reset(token)


class AsyncDriver:
    """Runs steps in the task that asks. Loads of flights are tasks of their own: whoever is cancelled leaves the others
    their load."""

    def __init__(self, shared: AsyncSharedTier | None) -> None:
        self._shared = shared
        self._tasks: set[asyncio.Task[Any]] = set()
        self.is_closed = False
        self._perform: dict[type, Callable[[Any], Coroutine[Any, Any, Any]]] = {
            Lead: self._lead,
            Spawn: self._spawn,
            Load: _load_in_loop,
            Wait: lambda wait: wait.signal.wait_in_loop(wait.seconds),
            Pause: lambda pause: asyncio.sleep(pause.seconds),
            Together: self._together,
        }
        if shared is not None:
            self._perform |= {
                Look: lambda look: shared.look(look.names),
                TakeLease: lambda take: shared.lease(take.name, take.want, take.stamps, refresh=take.refresh),
                PutValue: lambda put: shared.put(put.put),
                Release: lambda given: shared.release(given.name, given.lease),
                Apply: lambda drop: shared.apply(drop.bumps, drop.stamps, ()),
                AskTime: lambda _: shared.time(),
            }

    async def run(self, steps: Generator[Any, Any, T]) -> T:
        """Performs all effects of the steps and returns what they return."""
        perform = self._perform
        try:
            effect = next(steps)
            while True:
                try:
                    answer = await perform[type(effect)](effect)
                except BaseException as error:  # Also a cancellation concerns the steps first.
                    effect = steps.throw(error)
                else:
                    effect = steps.send(answer)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    async def _lead(self, lead: Lead) -> None:
        self._start(lead, contextvars.copy_context())
        for flight in lead.flights:
            await flight.ended.wait_in_loop(inf)

    async def _spawn(self, spawn: Spawn) -> bool:
        if self.is_closed:
            return False
        self._start(Lead(*spawn), contextvars.Context())
        return True

    def _start(self, lead: Lead, context: contextvars.Context) -> None:
        task = asyncio.get_running_loop().create_task(self.run(lead.steps), context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A task that is cancelled before it began runs no step, not even the one that ends the flight.
        task.add_done_callback(lambda _: leave(lead.flights))

    async def _together(self, together: Together) -> list[Any]:
        ended = await asyncio.gather(*(self.run(steps) for steps in together.steps), return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, BaseException):
                raise outcome
        return ended

    async def aclose(self) -> None:
        """Cancels the loads that nobody waits for any more, of this loop, and waits until they have ended."""
        self.is_closed = True
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._tasks if task.get_loop() is loop]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _load_in_loop(load: Load) -> Any:
    token = CHAIN.set((*CHAIN.get(), *load.flights))
    try:
        return await load.loader(*load.arguments)
    finally:
        CHAIN.reset(token)
