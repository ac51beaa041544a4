"""The caches in use, each as its documentation says to use it: read-through with a time to live of an hour, a delete
where the row has changed, its lock against stampedes where it has one.

Only the environment of `make races` has these libraries.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from importlib.metadata import version
from typing import Any

import redis

from relay.demo.redis import EmbeddedRedis
from tests.races.source import WAIT_SECONDS, Source

KEY = "user:42"
TTL = 3600


class OnRedis:
    """What is common to those that keep their copies in Redis: two processes see the same."""

    package = ""
    name = ""

    def __init__(self, source: Source, server: EmbeddedRedis) -> None:
        self.source, self.server = source, server
        self.client = redis.Redis.from_url(server.url, decode_responses=True)
        server.flush()
        self.set_up()

    def set_up(self) -> None:
        """What the library needs."""

    def read(self, process: int = 0) -> str | None:
        raise NotImplementedError

    def invalidate(self, version: int) -> None:
        raise NotImplementedError

    def write_through(self, value: str, version: int) -> None:
        raise NotImplementedError

    def announce(self, version: int) -> None:
        self.invalidate(version)

    def deliver(self) -> None:
        """There is no outbox."""

    def evict(self) -> None:
        for key in self.client.scan_iter("*"):
            self.client.delete(key)

    def flush(self) -> None:
        self.server.flush()

    def close(self) -> None:
        self.client.close()


class CacheAside(OnRedis):
    """GET, load, SETEX; DEL."""

    package = "redis"
    name = "cache-aside, redis-py"

    def read(self, process: int = 0) -> str | None:
        found = self.client.get(KEY)
        if found is not None:
            return str(found) or None
        row = self.source.load()
        self.client.set(KEY, row.value or "", ex=TTL)
        return row.value

    def invalidate(self, version: int) -> None:
        self.client.delete(KEY)

    def write_through(self, value: str, version: int) -> None:
        self.client.set(KEY, value, ex=TTL)


class VersionKey(OnRedis):
    """`user:42:v{n}` with n in a key that INCR raises: the classic scheme."""

    package = "redis"
    name = "version key by INCR, redis-py"

    def read(self, process: int = 0) -> str | None:
        at = f"{KEY}:v{self.client.get(f'{KEY}:version') or 0}"
        found = self.client.get(at)
        if found is not None:
            return str(found) or None
        row = self.source.load()
        self.client.set(at, row.value or "", ex=TTL)
        return row.value

    def invalidate(self, version: int) -> None:
        self.client.incr(f"{KEY}:version")

    def write_through(self, value: str, version: int) -> None:
        self.client.set(f"{KEY}:v{self.client.incr(f'{KEY}:version')}", value, ex=TTL)

    def evict(self) -> None:
        """Of all keys the version hurts most."""
        self.client.delete(f"{KEY}:version")


class Cachetools:
    """`cached` over a TTLCache, in each process its own."""

    package = "cachetools"
    name = "cachetools"

    def __init__(self, source: Source, server: EmbeddedRedis) -> None:
        from cachetools import TTLCache, cached
        from cachetools.keys import hashkey

        def user(id_: str) -> str | None:
            return source.load().value

        self.key = hashkey("42")
        self.caches: list[Any] = [TTLCache(100, TTL) for _ in range(2)]
        self.locks = [threading.Lock() for _ in range(2)]
        self.users: list[Any] = [
            cached(cache, lock=lock)(user) for cache, lock in zip(self.caches, self.locks, strict=True)
        ]

    def read(self, process: int = 0) -> str | None:
        value: str | None = self.users[process]("42")
        return value

    def invalidate(self, version: int) -> None:
        with self.locks[0]:
            self.caches[0].pop(self.key, None)

    def write_through(self, value: str, version: int) -> None:
        with self.locks[0]:
            self.caches[0][self.key] = value

    def announce(self, version: int) -> None:
        self.invalidate(version)

    def deliver(self) -> None:
        """There is no outbox."""

    def evict(self) -> None:
        self.flush()

    def flush(self) -> None:
        for cache, lock in zip(self.caches, self.locks, strict=True):
            with lock:
                cache.clear()

    def close(self) -> None:
        """Nothing is open."""


class Dogpile(OnRedis):
    """`get_or_create` under the distributed lock."""

    package = "dogpile.cache"
    name = "dogpile.cache"

    def set_up(self) -> None:
        from dogpile.cache import make_region

        self.region: Any = make_region().configure(
            "dogpile.cache.redis",
            expiration_time=TTL,
            arguments={
                "url": self.server.url,
                "distributed_lock": True,
                "thread_local_lock": False,
                "lock_timeout": 60,
            },
        )

    def read(self, process: int = 0) -> str | None:
        value: str | None = self.region.get_or_create(KEY, lambda: self.source.load().value)
        return value

    def invalidate(self, version: int) -> None:
        self.region.delete(KEY)

    def write_through(self, value: str, version: int) -> None:
        self.region.set(KEY, value)


class OnLoop(OnRedis):
    """What is common to the asynchronous ones: an event loop in a thread."""

    def set_up(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(WAIT_SECONDS)

    async def load(self) -> str | None:
        """In a thread, so that a held load does not hold the loop."""
        return (await asyncio.to_thread(self.source.load)).value

    def end(self) -> Coroutine[Any, Any, Any]:
        """Closes the library's connections."""
        raise NotImplementedError

    def close(self) -> None:
        self.run(self.end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(WAIT_SECONDS)
        self.loop.close()
        super().close()


class Cashews(OnLoop):
    """The decorator with its lock."""

    package = "cashews"
    name = "cashews"

    def set_up(self) -> None:
        super().set_up()
        from cashews import Cache

        self.cache: Any = Cache()
        self.cache.setup(self.server.url)

        @self.cache(ttl=TTL, key="user:{id_}", lock=True)
        async def user(id_: str) -> str | None:
            return await self.load()

        self.user: Any = user

    def read(self, process: int = 0) -> str | None:
        value: str | None = self.run(self.user("42"))
        return value

    def invalidate(self, version: int) -> None:
        self.run(self.cache.delete(KEY))

    def write_through(self, value: str, version: int) -> None:
        self.run(self.cache.set(KEY, value, expire=TTL))

    def end(self) -> Coroutine[Any, Any, Any]:
        ended: Coroutine[Any, Any, Any] = self.cache.close()
        return ended


class Aiocache(OnLoop):
    """The decorator that has a lock against stampedes."""

    package = "aiocache"
    name = "aiocache"

    def set_up(self) -> None:
        super().set_up()
        self.run(self._set_up())

    async def _set_up(self) -> None:
        from aiocache import Cache, cached_stampede
        from aiocache.serializers import JsonSerializer

        where = {"endpoint": "127.0.0.1", "port": self.server.port, "serializer": JsonSerializer()}
        self.cache: Any = Cache(Cache.REDIS, **where)

        @cached_stampede(
            lease=60, ttl=TTL, cache=Cache.REDIS, key_builder=lambda _function, id_: f"user:{id_}", **where
        )
        async def user(id_: str) -> str | None:
            return await self.load()

        self.user: Any = user

    def read(self, process: int = 0) -> str | None:
        value: str | None = self.run(self.user("42"))
        return value

    def invalidate(self, version: int) -> None:
        self.run(self.cache.delete(KEY))

    def write_through(self, value: str, version: int) -> None:
        self.run(self.cache.set(KEY, value, ttl=TTL))

    async def end(self) -> None:
        await self.cache.close()
        await self.user.cache.close()


ALL: tuple[type[Any], ...] = (CacheAside, VersionKey, Cachetools, Dogpile, Cashews, Aiocache)


def title(kind: type[Any]) -> str:
    """The head of its column: the name, and what was played."""
    return f"{kind.name} {version(kind.package)}"
