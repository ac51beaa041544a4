"""One read of the real code, taken forward effect by effect: what the drivers do, with a stop after every effect.

An effect is performed at one step, and its answer is sent into the protocol at the next. So anything may happen between
an answer of Redis and what the process makes of it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from relay.cache.background import Workers
from relay.cache.driving import AsyncDriver, AsyncSharedTier, Driver
from relay.cache.effects import Effect, Lead, Pause, Spawn, Steps, Wait
from relay.cache.flights import Flight
from relay.cache.tiers import SharedTier

Perform = Callable[[Effect], Any]


def in_thread(shared: SharedTier | None) -> Perform:
    """Performs one effect by the driver for threads."""
    driver = Driver(shared, Workers())
    return lambda effect: driver.run(_once(effect))


def in_loop(shared: AsyncSharedTier | None, loop: asyncio.AbstractEventLoop) -> Perform:
    """Performs one effect by the driver for tasks."""
    driver = AsyncDriver(shared)
    return lambda effect: loop.run_until_complete(driver.run(_once(effect)))


def _once(effect: Effect) -> Steps[Any]:
    return (yield effect)


class _Level(NamedTuple):
    steps: Generator[Effect, Any, Any]
    flights: tuple[Flight[Any], ...]
    """The flights that these steps lead."""


class Stepper:
    """A read under way.

    Args:
        steps: the protocol.
        perform: how effects are performed.
        spawn: takes over the steps of a refresh in the background; says whether there was room.
        setup: called in the context of the read before anything else.
    """

    def __init__(
        self,
        steps: Steps[Any],
        perform: Perform,
        spawn: Callable[[Spawn], bool],
        setup: Callable[[], None] = lambda: None,
    ) -> None:
        self._levels = [_Level(steps, ())]
        self._perform = perform
        self._spawn = spawn
        self._context = contextvars.Context()
        self._context.run(setup)
        self._answer: Any = None
        self._error: Exception | None = None
        self._waits_for: Wait | None = None
        self.is_done = False
        self.result: Any = None
        self.failure: Exception | None = None

    @property
    def is_blocked(self) -> bool:
        """Whether it waits for something that has not happened: only `step(gives_up=True)` takes it further."""
        return self._waits_for is not None and not self._waits_for.signal.has_fired

    def until(self, *kinds: type) -> None:
        """Steps until an effect of these kinds has been performed, or the read has ended."""
        while not self.is_done and not isinstance(self.step(), kinds):
            pass

    def finish(self) -> None:
        """Steps to the end."""
        while not self.is_done:
            self.step(gives_up=True)

    def step(self, *, gives_up: bool = False) -> Effect | None:
        """Sends the last answer and performs the next effect, which is returned; None if the read has ended.

        Args:
            gives_up: if it is waiting for something, the time for that is over.
        """
        if self._waits_for is not None:
            if self.is_blocked and not gives_up:
                return self._waits_for
            self._answer, self._waits_for = self._waits_for.signal.has_fired, None
        while (effect := self._next_effect()) is not None:
            if isinstance(effect, Lead):
                self._levels.append(_Level(effect.steps, effect.flights))
                continue
            if isinstance(effect, Wait):
                self._waits_for = effect
            elif isinstance(effect, Spawn):
                self._answer = self._spawn(effect)
            elif not isinstance(effect, Pause):
                self._do(effect)
            return effect
        return None

    def _do(self, effect: Effect) -> None:
        try:
            self._answer = self._context.run(self._perform, effect)
        except Exception as error:
            self._error = error

    def _next_effect(self) -> Effect | None:
        while not self.is_done:
            level = self._levels[-1]
            answer, self._answer = self._answer, None
            error, self._error = self._error, None
            try:
                if error is not None:
                    return self._context.run(level.steps.throw, error)
                return self._context.run(level.steps.send, answer)
            except StopIteration as ended:
                self._end(level, ended.value)
            except Exception as raised:
                self._end(level, None)
                self.failure = raised
        return None

    def _end(self, level: _Level, result: Any) -> None:
        self._levels.pop()
        for flight in level.flights:
            flight.table.leave(flight)
        if not self._levels:
            self.is_done, self.result = True, result
