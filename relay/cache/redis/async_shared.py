"""The shared tier on Redis or Valkey, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from relay.cache.limits import TierLimits
from relay.cache.redis.async_connections import AsyncConnections
from relay.cache.redis.coalescing import Coalescer
from relay.cache.redis.commands import KEYS_MAX, Commands, parsed, pool_of, read_page, read_time
from relay.cache.redis.failures import FOREIGN, Breaker, tier_error
from relay.cache.redis.scripts import Call
from relay.cache.tiers import Applied, Bump, Lease, Page, Position, Progress, Put, Reject

T = TypeVar("T")


class Lane:
    """What belongs to one event loop: connections, and who waits for them."""

    def __init__(self, tier: AsyncRedisShared, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.readers = tier.connections(tier.timeout_seconds, lambda: tier.breaker.is_open)
        self.background = tier.connections(tier.background_timeout_seconds, lambda: False)
        self.coalescer = Coalescer(loop, tier.look_at_once, KEYS_MAX)


class AsyncRedisShared:
    """As `RedisShared`, with awaitable methods, for any number of event loops.

    Args:
        client: how to connect. Time-outs of its own come on top of these.
        namespace: of all keys.
        connections_max: in each loop, for readers, and as many for others.
        commands: for simulations, which bring a clock and tokens of their own.

    Raises:
        CacheError: RLY-903, if the namespace or the client will not do.
    """

    def __init__(
        self,
        client: Redis,
        namespace: str,
        *,
        timeout_seconds: float = 0.05,
        connect_timeout_seconds: float = 0.25,
        background_timeout_seconds: float = 2.0,
        connections_max: int = 32,
        limits: TierLimits | None = None,
        breaker: Breaker | None = None,
        commands: Commands | None = None,
    ) -> None:
        self.commands = commands or Commands(namespace, limits or TierLimits())
        self.breaker = breaker or Breaker()
        self.timeout_seconds = timeout_seconds
        self.connect_timeout_seconds = connect_timeout_seconds
        self.background_timeout_seconds = background_timeout_seconds
        self._connections_max = connections_max
        self._pool = pool_of(client)
        self._lanes: dict[asyncio.AbstractEventLoop, Lane] = {}
        self._latest: Lane | None = None

    @classmethod
    def from_url(
        cls,
        url: str,
        namespace: str,
        *,
        timeout_seconds: float = 0.05,
        connect_timeout_seconds: float = 0.25,
        background_timeout_seconds: float = 2.0,
        limits: TierLimits | None = None,
        breaker: Breaker | None = None,
        **options: Any,
    ) -> Self:
        """Connects when it is first used. The arguments are those of `RedisShared.from_url`."""
        client = Redis.from_url(
            url,
            **{
                "socket_timeout": None,
                "socket_keepalive": True,
                "retry": Retry(NoBackoff(), 0),
                "protocol": 2,
                **options,
            },
        )
        return cls(
            client,
            namespace,
            timeout_seconds=timeout_seconds,
            connect_timeout_seconds=connect_timeout_seconds,
            background_timeout_seconds=background_timeout_seconds,
            limits=limits,
            breaker=breaker,
        )

    async def look(self, keys: Sequence[str]) -> Page:
        """As `SharedTier.look`. The looks of one turn of the loop go out together."""
        return await self._lane().coalescer.look(keys)

    async def look_at_once(self, keys: Sequence[str]) -> Page:
        """As `look`, by a command of its own."""
        commands = list(self.commands.look(keys))
        replies = await self._guarded(lambda: self._lane().readers.ask_all(commands))
        page: Page = parsed(read_page, replies, len(keys))
        return page

    async def lease(self, key: str, want: int, stamps: Sequence[str], *, refresh: bool) -> Lease:
        """As `SharedTier.lease`."""
        call = self.commands.lease(key, want, stamps, refresh=refresh)
        return await self._guarded(lambda: _run(self._lane().readers, call))

    async def put(self, put: Put) -> Reject | None:
        """As `SharedTier.put`."""
        if len(put.payload) > self.commands.limits.value_bytes_max:
            await self.release(put.key, put.lease)
            return Reject.TOO_LARGE
        return await self._guarded(lambda: _run(self._lane().readers, self.commands.put(put)))

    async def release(self, key: str, lease: bytes) -> None:
        """As `SharedTier.release`."""
        await self._guarded(lambda: _run(self._lane().readers, self.commands.release(key, lease)))

    async def apply(self, bumps: Sequence[Bump], stamps: Sequence[str], positions: Sequence[Position]) -> Applied:
        """As `SharedTier.apply`."""
        applied = Applied(None, lost=False)
        for call in self.commands.apply(bumps, stamps, positions):
            applied = await self._patient(call)
            if applied.epoch is None or applied.lost:
                break
        return applied

    async def open(self, cause: str, positions: Sequence[Position]) -> bytes:
        """As `SharedTier.open`."""
        return await self._patient(self.commands.open(cause, positions))

    async def progress(self) -> Progress:
        """As `SharedTier.progress`."""
        return await self._patient(self.commands.progress())

    async def time(self) -> int:
        """As `SharedTier.time`."""
        if self.commands.clock is not None:
            return self.commands.clock()
        return int(parsed(read_time, await self._guarded(lambda: self._lane().readers.ask(("TIME",)))))

    async def close(self) -> None:
        """Closes the connections of this event loop. Using the tier again opens new ones."""
        lane = self._lane()
        await lane.readers.close()
        await lane.background.close()

    def connections(self, timeout_seconds: float, is_bypassed: Callable[[], bool]) -> AsyncConnections:
        """Connections for the running event loop."""
        return AsyncConnections(
            self._pool,
            timeout_seconds=timeout_seconds,
            connect_timeout_seconds=max(self.connect_timeout_seconds, timeout_seconds),
            connections_max=self._connections_max,
            is_bypassed=is_bypassed,
        )

    def _lane(self) -> Lane:
        loop = asyncio.get_running_loop()
        lane = self._latest
        if lane is None or lane.loop is not loop:
            lane = self._lanes.get(loop)
            if lane is None:
                for gone in [other for other in list(self._lanes) if other.is_closed()]:
                    del self._lanes[gone]
                lane = self._lanes[loop] = Lane(self, loop)
            self._latest = lane
        return lane

    async def _guarded(self, ask: Callable[[], Awaitable[T]]) -> T:
        """For readers: what is sick is not waited for."""
        breaker = self.breaker
        breaker.admit()
        try:
            answer = await ask()
        except FOREIGN as error:
            failure = tier_error(error)
            breaker.failed(failure.reason)
            raise failure from error
        breaker.succeeded()
        return answer

    async def _patient(self, call: Call[T]) -> T:
        """For consumers and feeds: they try again by themselves, and nobody waits for them."""
        try:
            return await _run(self._lane().background, call)
        except FOREIGN as error:
            raise tier_error(error) from error


async def _run(connections: AsyncConnections, call: Call[T]) -> T:
    try:
        reply = await connections.ask(call.by_digest())
    except NoScriptError:
        reply = await connections.ask(call.by_text())
    meaning: T = parsed(call.parse, reply)
    return meaning
