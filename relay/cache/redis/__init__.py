"""The shared tier on Redis or Valkey: Lua scripts for what has to be atomic, one MGET for everything that is read.

Importing this package needs no redis-py; using one of its two faces does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay.cache.redis.async_shared import AsyncRedisShared
    from relay.cache.redis.shared import RedisShared

__all__ = ["AsyncRedisShared", "RedisShared"]


def __getattr__(name: str) -> Any:
    if name == "RedisShared":
        from relay.cache.redis.shared import RedisShared

        return RedisShared
    if name == "AsyncRedisShared":
        from relay.cache.redis.async_shared import AsyncRedisShared

        return AsyncRedisShared
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
