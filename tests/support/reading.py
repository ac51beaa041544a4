"""A cache of either face over a tier in memory and a source written by hand, on a clock that the test moves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from relay.cache import AsyncCache, Cache, Local, Need, Versioned
from relay.cache.effects import Pause, Wait
from relay.cache.limits import TierLimits
from relay.cache.numbers import REJECTS, Numbers
from relay.cache.reference import ReferenceTier
from relay.cache.tiers import Bump, Lease, Page, TierError
from relay.core.names import record_name

ENTITY = "user"
FACES = ("threads", "tasks")
OPERATIONS = ("look", "lease", "put", "release", "apply", "time")
PATIENCE_SECONDS = 20.0
Hook = Callable[[], None]


class Hooks:
    """What happens while something else is under way: each hook is called once."""

    def __init__(self) -> None:
        self.in_load: list[Hook] = []
        self.in_look: list[Hook] = []
        self.in_wait: list[Hook] = []

    @staticmethod
    def call(hooks: list[Hook]) -> None:
        if hooks:
            hooks.pop(0)()


class Tier:
    """The reference, with hooks after a look has read, and a switch that lets every call fail."""

    def __init__(self, reference: ReferenceTier, hooks: Hooks) -> None:
        self.reference = reference
        self.hooks = hooks
        self.is_down = False
        self.looks: list[int] = []

    def look(self, keys: Any) -> Page:
        self._answer()
        self.looks.append(len(keys))
        page = self.reference.look(keys)
        self.hooks.call(self.hooks.in_look)
        return page

    def lease(self, key: str, want: int, stamps: Any, *, refresh: bool) -> Lease:
        self._answer()
        return self.reference.lease(key, want, stamps, refresh=refresh)

    def __getattr__(self, name: str) -> Any:
        if name not in OPERATIONS:
            raise AttributeError(name)
        self._answer()
        return getattr(self.reference, name)

    def _answer(self) -> None:
        if self.is_down:
            raise TierError("connection")


class AsyncTier:
    """The same, awaitable."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier

    def __getattr__(self, name: str) -> Any:
        if name not in OPERATIONS:
            raise AttributeError(name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(self._tier, name)(*args, **kwargs)

        return call


class Blocking:
    """The face for tasks, called from a test that is not one."""

    def __init__(self, run: Callable[[Any], Any], face: Any) -> None:
        self._run, self._face = run, face

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._face(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._face, name)
        if name in ("read", "many", "prewarm", "invalidate"):
            return lambda *args, **kwargs: self._run(found(*args, **kwargs))
        return found


class World:
    """One process, its tiers and its source.

    Args:
        face: of FACES.
        local, shared: whether there is such a tier.
    """

    def __init__(self, face: str, *, local: bool = True, shared: bool = True, **settings: Any) -> None:
        self.face = face
        self.now = 1000.0
        self.rows: dict[Any, tuple[Any, int]] = {}
        self.loads: list[tuple[Any, Need]] = []
        self.error: Exception | None = None
        self.hooks = Hooks()
        self.numbers = Numbers()
        reference = ReferenceTier(limits=TierLimits(), clock=lambda: round(self.now * 1000))
        reference.open("test", ())
        self.tier = Tier(reference, self.hooks)
        self.local = Local(clock=self.clock, **settings) if local else None
        self._runner = asyncio.Runner() if face == "tasks" else None
        kind: Any = Cache if self._runner is None else AsyncCache
        tier: Any = self.tier if self._runner is None else AsyncTier(self.tier)
        self.cache = kind(
            "test",
            local=self.local,
            shared=tier if shared else None,
            recorder=self.numbers,
            clock=self.clock,
            draw=lambda: 0.5,
        )

        def pass_time(pause: Pause) -> None:
            self.now += pause.seconds

        async def pass_time_in_loop(pause: Pause) -> None:
            pass_time(pause)

        def wait(wait: Wait) -> bool:
            if not self.hooks.in_wait:
                return wait.signal.wait(wait.seconds)
            self.hooks.call(self.hooks.in_wait)
            return wait.signal.has_fired

        async def wait_in_loop(asked: Wait) -> bool:
            return wait(asked) if self.hooks.in_wait else await asked.signal.wait_in_loop(asked.seconds)

        self.cache.driver._perform[Pause] = pass_time if self._runner is None else pass_time_in_loop
        self.cache.driver._perform[Wait] = wait if self._runner is None else wait_in_loop

    def clock(self) -> float:
        return self.now

    def commit(self, id_: Any, value: Any) -> int:
        """A change in the database. Returns the version."""
        version = self.rows.get(id_, (None, 0))[1] + 1
        self.rows[id_] = (value, version)
        return version

    def apply(self, id_: Any, version: int | None) -> None:
        """The event of a change reaches the shared tier."""
        self.tier.reference.apply([Bump(record_name(ENTITY, str(id_)), version, unknown=False)], (), ())

    def record(self, id_: Any) -> str:
        return record_name(ENTITY, str(id_))

    def load(self, id_: Any, need: Need) -> Versioned[Any]:
        """Reads first, then lets happen what happens meanwhile."""
        self.loads.append((id_, need))
        value, version = self.rows.get(id_, (None, 0))
        self.hooks.call(self.hooks.in_load)
        if self.error is not None:
            raise self.error
        return Versioned(value, version)

    def entity(self, loader: Callable[..., Any] | None = None, name: str = ENTITY, **settings: Any) -> Any:
        """A cache of one entity."""
        load = loader or self.load
        return self.face_of(self.cache.entity(name, jitter=0.0, early=0.0, **settings), load)

    def derived(self, function: Callable[..., Any], **settings: Any) -> Any:
        """A cache of the results of a function."""
        return self.face_of(self.cache.derived("search", jitter=0.0, early=0.0, **settings), function)

    def face_of(self, decorate: Any, function: Callable[..., Any]) -> Any:
        """What a decorator makes of a function: of a coroutine function, if the face is that of tasks."""
        if self._runner is None:
            return decorate(function)

        async def in_loop(*args: Any) -> Any:
            return function(*args)

        in_loop.__wrapped__ = function  # type: ignore[attr-defined]
        return Blocking(self._run, decorate(in_loop))

    def _run(self, awaitable: Any) -> Any:
        assert self._runner is not None
        return self._runner.run(awaitable, context=copy_context())

    def settle(self) -> None:
        """Waits until nothing is refreshed any more."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(reader.flights.count for reader in self.cache.readers.values()):
            assert time.monotonic() < deadline
            if self._runner is None:
                time.sleep(0.001)
            else:
                self._runner.run(asyncio.sleep(0.001))

    def renew(self, *stamps: str) -> bool:
        renewed = self.cache.renew(*stamps)
        return renewed if self._runner is None else self._run(renewed)

    def rejects(self) -> set[tuple[str, str]]:
        """Tiers that took no value, and why."""
        return {labels[1:] for metric, labels in self.numbers.snapshot().values if metric is REJECTS}  # type: ignore[misc]

    def close(self) -> None:
        if self._runner is None:
            self.cache.close()
        else:
            self._runner.run(self.cache.aclose())
            self._runner.close()
