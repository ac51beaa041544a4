"""The cache for tasks: the same names, awaited."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, Unpack, cast

from relay.cache.assembly import Assembly
from relay.cache.callables import AsyncDerived, AsyncEntity
from relay.cache.driving import AsyncDriver, AsyncSharedTier
from relay.cache.faces import derived_face, entity_face, renew, versioned_face
from relay.cache.local import Local
from relay.cache.numbers import Recorder
from relay.cache.reader import BYPASSES
from relay.cache.reading import read
from relay.cache.sessions import CURRENT, Sessions
from relay.cache.settings import DerivedSettings, EntitySettings, VersionedSettings
from relay.cache.values import Need, Versioned
from relay.cache.versioned import async_loaders, make_pair, read_versioned

K = TypeVar("K")
V = TypeVar("V")
P = ParamSpec("P")


class AsyncCache(Assembly):
    """As `Cache`, with coroutines as loaders. Tasks of several event loops may use one.

    Args:
        name, local, shared, sessions, recorder, clock, draw: as those of `Cache`; `shared` is an asynchronous tier.
    """

    def __init__(
        self,
        name: str,
        *,
        local: Local | None = None,
        shared: AsyncSharedTier | None = None,
        sessions: Sessions | None = None,
        recorder: Recorder | None = None,
        clock: Callable[[], float] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(name, local, sessions, recorder, has_shared=shared is not None, clock=clock, draw=draw)
        self.shared = shared
        self.driver = AsyncDriver(shared)

    def entity(
        self, name: str, **settings: Unpack[EntitySettings]
    ) -> Callable[[Callable[[K, Need], Awaitable[Versioned[V]]]], AsyncEntity[K, V]]:
        """As `Cache.entity`, of a coroutine function."""

        def decorate(loader: Callable[[K, Need], Awaitable[Versioned[V]]]) -> AsyncEntity[K, V]:
            reader, heat = self.make_entity(name, settings, loader)
            run, get, clock = self.driver.run, reader.space.entries.get, reader.clock
            session, bypasses, note = CURRENT.get, BYPASSES, heat.note

            # As in `Cache.entity`.
            async def call(id: Any, /) -> Any:  # noqa: A002
                entry = get(f"{id}")
                if entry is not None and entry.fresh_until > clock() and session() is None and not bypasses:
                    entry.hits += 1
                    return entry.value
                note((id,))
                return (await run(read(reader, id))).value

            return cast("AsyncEntity[K, V]", entity_face(self, run, reader, heat, call))

        return decorate

    def versioned(
        self, name: str, *, versions: Callable[[K], Awaitable[int]], **settings: Unpack[VersionedSettings]
    ) -> Callable[[Callable[[K, Need], Awaitable[Versioned[V]]]], AsyncEntity[K, V]]:
        """As `Cache.versioned`, of coroutine functions."""

        def decorate(loader: Callable[[K, Need], Awaitable[Versioned[V]]]) -> AsyncEntity[K, V]:
            pair = make_pair(self, name, settings, async_loaders(versions, loader))
            run, note = self.driver.run, pair.heat.note

            async def call(id: Any, /) -> Any:  # noqa: A002
                note((id,))
                return (await run(read_versioned(pair, id))).value

            return cast("AsyncEntity[K, V]", versioned_face(self, run, pair, loader, call))

        return decorate

    def derived(
        self, name: str, **settings: Unpack[DerivedSettings]
    ) -> Callable[[Callable[P, Awaitable[V]]], AsyncDerived[P, V]]:
        """As `Cache.derived`, of a coroutine function."""

        def decorate(function: Callable[P, Awaitable[V]]) -> AsyncDerived[P, V]:
            reader = self.make_derived(name, settings, function)
            run = self.driver.run

            async def call(*args: Any, **kwargs: Any) -> Any:
                return (await run(read(reader, (args, kwargs)))).value

            return cast("AsyncDerived[P, V]", derived_face(self, run, reader, call))

        return decorate

    async def renew(self, *stamps: str) -> bool:
        """As `Cache.renew`."""
        return await self.driver.run(renew(self, stamps))

    async def aclose(self) -> None:
        """Cancels what is being refreshed or loaded in this event loop, and waits until it has ended."""
        await self.driver.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
