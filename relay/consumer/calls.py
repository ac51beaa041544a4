"""Calling hooks: each call has a deadline, is tried again if it raises, and is given up with a code.

A thread cannot be ended from outside. A plain function that hangs is left behind in its thread by whoever watches the
deadlines; a coroutine is cancelled.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import threading
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from relay.consumer.events import say
from relay.consumer.hooks import Hook, RubbishError, Wanted, wanted
from relay.consumer.lane import Lane
from relay.core.backoff import backoff_seconds
from relay.core.change import Change


@dataclass(frozen=True, slots=True)
class HookSettings:
    """How hooks are run."""

    workers: int = 4
    """Threads; each partition is in the hands of one at a time."""
    hook_seconds: float = 10.0
    """The deadline of one call."""
    tries: int = 3
    retry_seconds: float = 0.2
    """Before the second try; doubled each time, up to 5 s."""
    queue_max: int = 1000
    """Events of one partition that may wait for their hooks; then no more are fetched of it."""


class GivenUp(NamedTuple):
    """Why hooks of an event were given up."""

    code: str
    reason: str
    attempts: int


@dataclass(eq=False)
class Worker:
    """A thread and what it is doing. `deadline` and `is_left_behind` are under the lock of the calls."""

    lane: Lane | None = None
    deadline: float | None = None
    """Of the call that is under way in this thread."""
    is_left_behind: bool = False


class HungError(Exception):
    """A coroutine did not end in time, and was cancelled."""


class Calls:
    """Calls hooks, in whatever thread it is asked to.

    Args:
        lock: guards the deadlines of workers.
        closing: once set, nothing is tried again.
        loop: where coroutines run; by default in a thread of our own.
    """

    def __init__(
        self,
        name: str,
        settings: HookSettings,
        lock: threading.Condition,
        closing: threading.Event,
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self._name = name
        self._settings = settings
        self._lock = lock
        self._closing = closing
        self._loop = loop
        self._own_loop: asyncio.AbstractEventLoop | None = None

    def call_all(self, worker: Worker, hooks: list[Hook], event: Change, into: Wanted) -> GivenUp | None:
        """Calls them one after the other; None if all have succeeded, or the worker was left behind."""
        for hook in hooks:
            given_up = self._call(worker, hook, event, into)
            if given_up is not None or worker.is_left_behind or self._closing.is_set():
                return given_up
        return None

    def close(self) -> None:
        """Ends our own loop, if there is one."""
        if self._own_loop is not None:
            self._own_loop.call_soon_threadsafe(self._own_loop.stop)

    def _call(self, worker: Worker, hook: Hook, event: Change, into: Wanted) -> GivenUp | None:
        for attempt in range(1, self._settings.tries + 1):
            try:
                self._until(worker, self._settings.hook_seconds)
                result = hook(event)
                if inspect.isawaitable(result):
                    result = self._await(worker, result)
                wanted(result, into)
                return None
            except RubbishError as error:
                return GivenUp("RLY-937", f"a hook returned {error}", attempt)
            except HungError:
                return GivenUp("RLY-936", "the hook did not end in time", attempt)
            except BaseException as error:  # whatever a service's own code raises, sys.exit() too
                given_up = GivenUp("RLY-935", type(error).__name__, attempt)
                say(
                    logging.WARNING, "consumer.hook_failed", consumer=self._name, code="RLY-935",
                    entity=event.entity, attempt=attempt, kind=given_up.reason,
                )  # fmt: skip
            finally:
                self._until(worker, None)
            if attempt == self._settings.tries:
                return given_up
            pause = backoff_seconds(attempt, random.random(), first=self._settings.retry_seconds)  # noqa: S311
            if worker.is_left_behind or self._closing.wait(pause):
                return None
        return None

    def _until(self, worker: Worker, seconds: float | None) -> None:
        with self._lock:
            worker.deadline = None if seconds is None else time.monotonic() + seconds

    def _await(self, worker: Worker, awaitable: Any) -> Any:
        """The result of a coroutine. No thread need be left behind for it: it is cancelled."""
        future = asyncio.run_coroutine_threadsafe(_awaited(awaitable), self._event_loop())
        self._until(worker, None)
        try:
            result = future.result(self._settings.hook_seconds)
        except TimeoutError:
            if future.done():
                raise  # its own: an error like any other
            future.cancel()
            raise HungError from None
        self._until(worker, self._settings.hook_seconds)
        return result

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is not None:
            return self._loop
        with self._lock:
            if self._own_loop is None:
                self._own_loop = asyncio.new_event_loop()
                threading.Thread(target=self._own_loop.run_forever, name="relay-hooks-loop", daemon=True).start()
            return self._own_loop


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
