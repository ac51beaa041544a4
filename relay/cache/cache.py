"""The cache for threads."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, Unpack, cast

from relay.cache.assembly import Assembly
from relay.cache.background import Workers
from relay.cache.callables import Derived, Entity
from relay.cache.driving import Driver
from relay.cache.faces import derived_face, entity_face, renew, versioned_face
from relay.cache.local import Local
from relay.cache.numbers import Recorder
from relay.cache.reader import BYPASSES
from relay.cache.reading import read
from relay.cache.sessions import CURRENT, Sessions
from relay.cache.settings import DerivedSettings, EntitySettings, VersionedSettings
from relay.cache.tiers import SharedTier
from relay.cache.values import Need, Versioned
from relay.cache.versioned import loaders, make_pair, read_versioned

K = TypeVar("K")
V = TypeVar("V")
P = ParamSpec("P")


class Cache(Assembly):
    """Reads through a process tier and a shared tier to the source. Safe for threads and forks.

    Args:
        name: of the cache; session tokens of another one are refused.
        local: the process tier, or None. Its values are shared by all who read them: do not change them.
        shared: the shared tier, or None.
        sessions: opens sessions; needed with keys where tokens are to be signed.
        recorder: where its figures go; by default they are kept in `recorder`, see `relay.cache.numbers`.
        clock: monotonic seconds; by default that of the process tier. It and `draw`, of the uniform distribution over
            [0, 1), are for tests.
    """

    def __init__(
        self,
        name: str,
        *,
        local: Local | None = None,
        shared: SharedTier | None = None,
        sessions: Sessions | None = None,
        recorder: Recorder | None = None,
        clock: Callable[[], float] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(name, local, sessions, recorder, has_shared=shared is not None, clock=clock, draw=draw)
        self.shared = shared
        self._workers = Workers()
        self.driver = Driver(shared, self._workers)

    def entity(
        self, name: str, **settings: Unpack[EntitySettings]
    ) -> Callable[[Callable[[K, Need], Versioned[V]]], Entity[K, V]]:
        """Makes a loader of versioned values a cache of them.

            @cache.entity("user", hard_ttl=600, soft_ttl=480)
            def user(id: int, need: Need) -> Versioned[User | None]: ...

        Args:
            name: of the entity, as events name it.

        Raises:
            CacheError: RLY-915: a setting is wrong, or the name is taken.
        """

        def decorate(loader: Callable[[K, Need], Versioned[V]]) -> Entity[K, V]:
            reader, heat = self.make_entity(name, settings, loader)
            run, get, clock = self.driver.run, reader.space.entries.get, reader.clock
            session, bypasses, note = CURRENT.get, BYPASSES, heat.note

            # The hit is written out, with everything in local names: all the rest is `reading.read`.
            def call(id: Any, /) -> Any:  # noqa: A002
                entry = get(f"{id}")
                if entry is not None and entry.fresh_until > clock() and session() is None and not bypasses:
                    entry.hits += 1
                    return entry.value
                note((id,))
                return run(read(reader, id)).value

            return cast("Entity[K, V]", entity_face(self, run, reader, heat, call))

        return decorate

    def versioned(
        self, name: str, *, versions: Callable[[K], int], **settings: Unpack[VersionedSettings]
    ) -> Callable[[Callable[[K, Need], Versioned[V]]], Entity[K, V]]:
        """As `entity`, with a key of its own for each version: `user:{id}:v{version}`. See `relay.cache.versioned`.

            @cache.versioned("user", versions=user_version, hard_ttl=600)
            def user(id: int, need: Need) -> Versioned[User | None]: ...

        Args:
            versions: the entity's committed version in the primary, 0 if it has none: asked where no copy of it may be
                taken, which under the policy `Strong` is every time.

        Raises:
            CacheError: RLY-915: a setting is wrong, or the name is taken.
        """

        def decorate(loader: Callable[[K, Need], Versioned[V]]) -> Entity[K, V]:
            pair = make_pair(self, name, settings, loaders(versions, loader))
            run, note = self.driver.run, pair.heat.note

            def call(id: Any, /) -> Any:  # noqa: A002
                note((id,))
                return run(read_versioned(pair, id)).value

            return cast("Entity[K, V]", versioned_face(self, run, pair, loader, call))

        return decorate

    def derived(self, name: str, **settings: Unpack[DerivedSettings]) -> Callable[[Callable[P, V]], Derived[P, V]]:
        """Makes a function a cache of its results.

            @cache.derived("search", depends=lambda query: ["listing"], ttl=60, soft_ttl=30)
            def search(query: str) -> list[Hit]: ...

        Raises:
            CacheError: RLY-915: a setting is wrong, or the name is taken.
        """

        def decorate(function: Callable[P, V]) -> Derived[P, V]:
            reader = self.make_derived(name, settings, function)
            run = self.driver.run

            def call(*args: Any, **kwargs: Any) -> Any:
                return run(read(reader, (args, kwargs))).value

            return cast("Derived[P, V]", derived_face(self, run, reader, call))

        return decorate

    def renew(self, *stamps: str) -> bool:
        """Lets everything that depends on these stamps be computed anew. Returns whether the shared tier, if there is
        one, has heard of it."""
        return self.driver.run(renew(self, stamps))

    def close(self) -> None:
        """Ends the threads that refresh. Reads go on; values are no longer refreshed before they expire."""
        self._workers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def after_fork(self) -> None:
        """As `Assembly.after_fork`."""
        super().after_fork()
        self._workers.reset()
