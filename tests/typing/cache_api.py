"""Checked by `mypy --strict`, never run: what a type checker knows of caches.

An `ignore` below is a statement too: strict mypy reports it as unused when the wrong call becomes acceptable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_type

from relay.cache import (
    AsyncCache,
    AsyncEntity,
    AsyncRedisShared,
    Bounded,
    Cache,
    Entity,
    Local,
    Need,
    Read,
    RedisShared,
    Session,
    Versioned,
    presets,
)


@dataclass
class User:
    name: str


cache = Cache("shop", local=Local(), shared=RedisShared.from_url("redis://", "shop"))
tasks = AsyncCache("shop", local=Local(), shared=AsyncRedisShared.from_url("redis://", "shop"))


@cache.entity("user", **presets.user_profile())
def user(id: int, need: Need) -> Versioned[User | None]:  # noqa: A002
    return Versioned(User("x") if need.primary else None, 1)


@cache.entity("order", policy=Bounded(2.0), hard_ttl=600, soft_ttl=480, keep=True)
def order(id: str, need: Need) -> Versioned[list[int]]:  # noqa: A002
    return Versioned([1], 1)


@cache.derived("search", depends=lambda query: ["listing"], **presets.search_results())
def search(query: str, limit: int = 10) -> list[User]:
    return []


@tasks.entity("user", soft_ttl=480)
async def user_in_loop(id: int, need: Need) -> Versioned[User | None]:  # noqa: A002
    return Versioned(None, 0)


@tasks.derived("search", ttl=60)
async def search_in_loop(query: str) -> list[User]:
    return []


def values_have_the_types_of_their_loaders() -> None:
    assert_type(user(42), User | None)
    assert_type(user.read(42), Read[User | None])
    assert_type(user.read(42, policy=Session()).value, User | None)
    assert_type(user.many([1, 2]), dict[int, User | None])
    assert_type(user.prewarm(top=500), int)
    assert_type(order("x"), list[int])
    assert_type(search("q", limit=3), list[User])
    assert_type(search.read("q").value, list[User])
    assert_type(cache.renew("listing"), bool)
    as_protocol: Entity[int, User | None] = user
    as_protocol.invalidate(42)


async def the_same_is_awaited() -> None:
    assert_type(await user_in_loop(42), User | None)
    assert_type(await user_in_loop.read(42), Read[User | None])
    assert_type(await user_in_loop.many([1]), dict[int, User | None])
    assert_type(await search_in_loop("q"), list[User])
    as_protocol: AsyncEntity[int, User | None] = user_in_loop
    await as_protocol.prewarm([1, 2])


def refused() -> None:
    user("42")  # type: ignore[arg-type]
    order(42)  # type: ignore[arg-type]
    search(42)  # type: ignore[arg-type]
    user.many(["42"])  # type: ignore[list-item]
    user.read(42, policy="eventual")  # type: ignore[arg-type]
    cache.entity("x", hard_tll=5)  # type: ignore[call-arg]

    @cache.entity("y")  # type: ignore[arg-type]
    def without_version(id: int, need: Need) -> User:  # noqa: A002
        return User("x")
