"""Reading through caches that follow the database.

Nothing foreign is imported until it is used: redis-py by the two tiers on Redis, orjson by codecs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relay.cache import presets
from relay.cache.async_cache import AsyncCache
from relay.cache.cache import Cache
from relay.cache.callables import AsyncDerived, AsyncEntity, Derived, Entity
from relay.cache.local import Local
from relay.cache.sessions import OpenSession, Sessions, current_session
from relay.cache.values import Need, Read, Versioned
from relay.core.policy import Bounded, Eventual, Policy, Session, Strong

if TYPE_CHECKING:
    from relay.cache.redis import AsyncRedisShared, RedisShared

__all__ = [
    "AsyncCache",
    "AsyncDerived",
    "AsyncEntity",
    "AsyncRedisShared",
    "Bounded",
    "Cache",
    "Derived",
    "Entity",
    "Eventual",
    "Local",
    "Need",
    "OpenSession",
    "Policy",
    "Read",
    "RedisShared",
    "Session",
    "Sessions",
    "Strong",
    "Versioned",
    "current_session",
    "presets",
]


def __getattr__(name: str) -> Any:
    if name in ("RedisShared", "AsyncRedisShared"):
        from relay.cache import redis

        return getattr(redis, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
