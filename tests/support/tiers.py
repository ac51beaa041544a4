"""Shared tiers for tests: with a clock and tokens that the test decides, and both faces behind one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import MethodType
from typing import Any

from relay.cache.limits import TierLimits
from relay.cache.redis import AsyncRedisShared, RedisShared

START_MS = 1_700_000_000_000
PATIENCE_SECONDS = 20.0
"""For tests that assume a healthy server: on a busy machine 50 ms are soon over."""


class Clock:
    """Milliseconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def __call__(self) -> int:
        return self.now_ms


def tokens() -> Callable[[], bytes]:
    """1, 2, 3 and so on, in eight bytes."""
    count = iter(range(1, 2**63))
    return lambda: next(count).to_bytes(8)


class Blocking:
    """The asynchronous face, called from a test that is not: every call runs in one event loop until it is done."""

    def __init__(self, tier: Any) -> None:
        self.tier = tier
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.tier, name)
        if not isinstance(method, MethodType):
            return method

        async def awaited(*arguments: Any, **named: Any) -> Any:
            return await method(*arguments, **named)

        return lambda *arguments, **named: self._runner.run(awaited(*arguments, **named))

    def close(self) -> None:
        self._runner.run(self.tier.close())
        self._runner.close()


def connect(face: str, url: str, namespace: str, **options: Any) -> Any:
    """One of the faces, "sync" or "async", with plain methods either way."""
    if face == "sync":
        return RedisShared.from_url(url, namespace, **options)
    return Blocking(AsyncRedisShared.from_url(url, namespace, **options))


def staged(face: str, url: str, namespace: str, limits: TierLimits, clock: Clock) -> Any:
    """A tier of a patient client whose time and tokens are the test's."""
    tier = connect(face, url, namespace, limits=limits, timeout_seconds=PATIENCE_SECONDS)
    tier.commands.__init__(namespace, limits, clock=clock, token=tokens())
    return tier
