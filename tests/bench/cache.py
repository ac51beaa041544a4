"""What a read costs: hits of both tiers beside what they are made of, batches, and how many loads a stampede causes."""

from __future__ import annotations

import asyncio
import functools
import gc
import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import redis
import redis.asyncio

from relay.cache import AsyncCache, AsyncRedisShared, Cache, Local, Need, RedisShared, Versioned
from relay.demo.redis import EmbeddedRedis
from tests.bench.parts import SCALE, median, report
from tests.support.stampede import NAMESPACE, loads_of

SLICES = max(20, round(400 * SCALE))
HITS = 1_000
"""In one slice; of round trips fewer, so that a slice takes a millisecond or two."""
TRIPS = 20
KEYS = 100
VALUE = {"id": 42, "name": "somebody", "email": "somebody@example.org", "tags": ["a", "b"], "active": True}
PROCESSES, READERS = 4, 2_500
Timed = Callable[[], float]


def passed_through(function: Callable[..., Any]) -> Callable[..., Any]:
    """The least that a cache can be: no expiry, no bound, no counting."""
    kept: dict[Any, Any] = {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        key = (args, tuple(sorted(kwargs.items()))) if kwargs else args
        try:
            return kept[key]
        except KeyError:
            value = kept[key] = function(*args, **kwargs)
            return value

    return call


def passed_through_in_loop(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """The same for coroutines."""
    kept: dict[Any, Any] = {}

    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        key = (args, tuple(sorted(kwargs.items()))) if kwargs else args
        try:
            return kept[key]
        except KeyError:
            value = kept[key] = await function(*args, **kwargs)
            return value

    return call


def compare(ours: Timed, theirs: Timed, slices: int = SLICES) -> tuple[float, float, float]:
    """Seconds of each and their ratio: medians over many short slices that take turns, so that a noise hits both."""
    gc.collect()
    pairs = [(ours(), theirs()) for _ in range(slices)]
    mine, other = median([pair[0] for pair in pairs[1:]]), median([pair[1] for pair in pairs[1:]])
    return mine, other, mine / other


def clocked(call: Callable[[int], Any], times: int) -> Timed:
    """Seconds per call, ids going round."""

    def run() -> float:
        start = time.perf_counter()
        for number in range(times):
            call(number % KEYS)
        return (time.perf_counter() - start) / times

    return run


def clocked_in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[int], Awaitable[Any]], times: int) -> Timed:
    """The same for coroutines, one after the other."""

    async def go() -> float:
        start = time.perf_counter()
        for number in range(times):
            await call(number % KEYS)
        return (time.perf_counter() - start) / times

    return lambda: loop.run_until_complete(go())


def say(what: str, figures: tuple[float, float, float], limit: str, bar: float) -> None:
    """One line of the report."""
    ours, theirs, ratio = figures
    report(what, f"{ours * 1e6:.2f} µs", f"{limit} {theirs * 1e6:.2f} µs", ratio, f"<= {bar:g}", ratio <= bar)


def local_hits() -> None:
    """A hit of the process tier beside a dictionary behind a decorator."""
    cache = Cache("bench", local=Local(ttl=3600))

    @cache.entity("user", hard_ttl=3600)
    def user(id: int, need: Need) -> Versioned[dict[str, Any]]:  # noqa: A002
        return Versioned(VALUE, 1)

    @passed_through
    def plain(id: int) -> dict[str, Any]:  # noqa: A002
        return VALUE

    say("hit of the process tier", compare(clocked(user, HITS), clocked(plain, HITS)), "dict", 3)
    cache.close()


def local_hits_in_loop() -> None:
    """The same for tasks."""
    cache = AsyncCache("bench", local=Local(ttl=3600))

    @cache.entity("user", hard_ttl=3600)
    async def user(id: int, need: Need) -> Versioned[dict[str, Any]]:  # noqa: A002
        return Versioned(VALUE, 1)

    @passed_through_in_loop
    async def plain(id: int) -> dict[str, Any]:  # noqa: A002
        return VALUE

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        ours, theirs = clocked_in_loop(loop, user, HITS), clocked_in_loop(loop, plain, HITS)
        say("hit of the process tier, asyncio", compare(ours, theirs), "dict", 2)
        runner.run(cache.aclose())


def shared_hits(server: EmbeddedRedis) -> None:
    """Hits of the shared tier beside GET and MGET of redis-py with the same decoding."""
    shared = RedisShared.from_url(server.url, NAMESPACE)
    cache = Cache("bench", shared=shared)

    @cache.entity("user", hard_ttl=3600)
    def user(id: int, need: Need) -> Versioned[dict[str, Any]]:  # noqa: A002
        return Versioned(VALUE, 1)

    ids = range(KEYS)
    user.many(ids)
    plain = redis.Redis.from_url(server.url)
    keys = [f"plain:{number}" for number in ids]
    plain.mset(dict.fromkeys(keys, orjson.dumps(VALUE)))

    def get(number: int) -> Any:
        return orjson.loads(plain.get(keys[number]))

    def mget(_: int) -> Any:
        return {number: orjson.loads(found) for number, found in zip(ids, plain.mget(keys), strict=True)}

    say("hit of the shared tier", compare(clocked(user, TRIPS), clocked(get, TRIPS)), "GET", 1.25)
    batch = compare(clocked(lambda _: user.many(ids), 2), clocked(mget, 2))
    say(f"{KEYS} hits of the shared tier, one call", batch, "MGET", 1.5)
    plain.close()
    cache.close()
    shared.close()


def shared_hits_in_loop(server: EmbeddedRedis) -> None:
    """The same for tasks, one after the other and a hundred at once."""
    shared = AsyncRedisShared.from_url(server.url, NAMESPACE)
    cache = AsyncCache("bench", shared=shared)

    @cache.entity("user", hard_ttl=3600)
    async def user(id: int, need: Need) -> Versioned[dict[str, Any]]:  # noqa: A002
        return Versioned(VALUE, 1)

    plain = redis.asyncio.Redis.from_url(server.url)

    async def get(number: int) -> Any:
        return orjson.loads(await plain.get(f"plain:{number}"))

    async def at_once(_: int) -> None:
        await asyncio.gather(*(user(number) for number in range(KEYS)))

    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        theirs = clocked_in_loop(loop, get, TRIPS)
        say("hit of the shared tier, asyncio", compare(clocked_in_loop(loop, user, TRIPS), theirs), "GET", 1.25)
        together = clocked_in_loop(loop, at_once, 2)
        say(f"each of {KEYS} tasks at once", compare(lambda: together() / KEYS, theirs), "GET", 0.25)
        runner.run(plain.aclose())
        runner.run(cache.aclose())
        runner.run(shared.close())


def stampede(server: EmbeddedRedis) -> None:
    """All readers of four processes miss one key in the same moment; and again while Redis is down."""
    readers = f"{READERS * PROCESSES:,} readers, {PROCESSES} processes"
    loads = sum(loads_of(server.url, processes=PROCESSES, readers=READERS))
    report("loads of one key, Redis healthy", f"{loads}", readers, float(loads), "== 1", loads == 1)
    server.kill()
    loads = max(loads_of(server.url, processes=PROCESSES, readers=READERS))
    report("loads per process, Redis down", f"{loads}", readers, float(loads), "<= 1", loads == 1)


def caching() -> None:
    """All bars of reading."""
    local_hits()
    local_hits_in_loop()
    with EmbeddedRedis() as server:
        shared = RedisShared.from_url(server.url, NAMESPACE)
        shared.open("bench", ())
        shared.close()
        shared_hits(server)
        shared_hits_in_loop(server)
        stampede(server)
