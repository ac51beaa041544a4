"""Caches of one entity on a real Redis, of either face and scheme, over a source that a test writes by hand."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import Any

import redis

from relay.cache import AsyncCache, AsyncRedisShared, Cache, Local, Need, RedisShared, Sessions, Versioned
from relay.cache.tiers import Bump
from relay.core.names import record_name


class Source:
    """The database: rows with versions that outlive their row, and how often each was asked for."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str | None, int]] = {}
        self.loads: list[str] = []
        self.asked: list[str] = []
        self.is_down = False
        self.lags: dict[str, tuple[str | None, int]] = {}
        """What a replica shows."""

    def write(self, id_: str, value: str | None) -> int:
        version = self.version(id_) + 1
        self.rows[id_] = (value, version)
        return version

    def version(self, id_: str) -> int:
        return self.rows.get(id_, (None, 0))[1]

    def ask(self, id_: str) -> int:
        self.asked.append(id_)
        if self.is_down:
            raise ConnectionError
        return self.version(id_)

    def load(self, id_: str, need: Need) -> Versioned[str | None]:
        self.loads.append(id_)
        if self.is_down:
            raise ConnectionError
        if id_ in self.lags and not need.primary:
            return Versioned(*self.lags[id_], cacheable=False)
        return Versioned(*self.rows.get(id_, (None, 0)))


class World:
    """A cache of one face, its tier, and what a consumer does."""

    def __init__(self, face: str, url: str, namespace: str, *, scheme: str = "versioned", **settings: Any) -> None:
        self.source, self.namespace = Source(), namespace
        self.consumer = RedisShared.from_url(url, namespace, timeout_seconds=5)
        self.client = redis.Redis.from_url(url)
        self._runner = asyncio.Runner()
        local = Local(ttl=600) if settings.pop("with_local", True) else None
        sessions = Sessions([b"k" * 32])
        if face == "sync":
            shared = RedisShared.from_url(url, namespace, timeout_seconds=5)
            self.cache: Any = Cache("shop", local=local, shared=shared, sessions=sessions)
            self.user: Any = self._decorator(scheme, self._ask, settings)(self._load)
        else:
            shared = AsyncRedisShared.from_url(url, namespace, timeout_seconds=5)
            self.cache = AsyncCache("shop", local=local, shared=shared, sessions=sessions)

            async def ask(id_: str) -> int:
                return self._ask(id_)

            async def load(id_: str, need: Need) -> Versioned[str | None]:
                return self._load(id_, need)

            self.user = self._decorator(scheme, ask, settings)(load)
        self.shared, self.local = shared, local

    def _ask(self, id_: str) -> int:
        return self.source.ask(id_)

    def _load(self, id_: str, need: Need) -> Versioned[str | None]:
        return self.source.load(id_, need)

    def _decorator(self, scheme: str, versions: Any, settings: Any) -> Any:
        if scheme == "versioned":
            return self.cache.versioned("user", versions=versions, **settings)
        return self.cache.entity("user", **settings)

    def do(self, answer: Any) -> Any:
        return self._runner.run(_awaited(answer), context=copy_context()) if asyncio.iscoroutine(answer) else answer

    def read(self, id_: str = "42", **options: Any) -> Any:
        return self.do(self.user.read(id_, **options))

    def use(self, source: Source) -> None:
        """Reads from the source of another process."""
        self.source = source

    def announce(self, id_: str = "42", version: int = 0) -> None:
        """The event of the last write arrives in both tiers, or one of another version."""
        version = version or self.source.version(id_)
        self.consumer.apply([Bump(record_name("user", id_), version, unknown=False)], (), ())
        if self.local is not None:
            self.local.apply("user", id_, version)

    def forget_local(self) -> None:
        self.user.off()
        self.user.on()
        values = self.cache.readers.get("values of user")
        if self.local is not None and values is not None:
            self.local.void(values.space)

    def keys(self, pattern: str = "*") -> set[str]:
        prefix = f"relay:{{{self.namespace}}}:"
        return {key.decode().removeprefix(prefix) for key in self.client.scan_iter(prefix + pattern)}

    def close(self) -> None:
        self.do(self.cache.close() if isinstance(self.cache, Cache) else self.cache.aclose())
        self.do(self.shared.close())
        self.consumer.close()
        self.client.close()
        self._runner.close()


async def _awaited(answer: Any) -> Any:
    return await answer
