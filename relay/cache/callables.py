"""What `entity` and `derived` return: the types that a type checker sees, with the types of the loader carried over."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

from relay.cache.values import Read
from relay.core.policy import Policy

K = TypeVar("K")
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)
P = ParamSpec("P")


class Stats(NamedTuple):
    """Of one cache in this process."""

    local_hits: int
    local_entries: int
    loads_waiting: int
    """Reads that wait for a place to load."""
    is_off: bool


class Entity(Protocol[K, V]):
    """A cache of entities, to be called with an id."""

    def __call__(self, key: K, /) -> V:
        """The value, from the nearest copy that the cache's policy accepts, or from the loader.

        Raises:
            CacheError: RLY-911 to RLY-914: the loader is at fault, or too many of its calls are under way.
            Exception: whatever the loader raises, if no copy may be served instead.
        """
        ...

    def read(self, key: K, /, *, policy: Policy | None = None) -> Read[V]:
        """The same, with how it came about, and under another policy if one is given."""
        ...

    def many(self, ids: Iterable[K], /, *, policy: Policy | None = None) -> dict[K, V]:
        """The values of several ids: one look into each tier for all of them."""
        ...

    def prewarm(self, ids: Iterable[K] | None = None, /, *, top: int = 0) -> int:
        """Reads these ids, or those that were read most lately, so that they are there. Returns how many could be."""
        ...

    def invalidate(self, key: K, /) -> bool:
        """Drops the value in both tiers, with whatever is being loaded; other processes keep their own copies until
        their TTL. Returns whether the shared tier, if there is one, has done it."""
        ...

    def off(self) -> None:
        """From now on every read of this process goes to the source, and nothing is kept."""
        ...

    def on(self) -> None:
        """Ends `off`."""
        ...

    def stats(self) -> Stats:
        """Counts of this moment."""
        ...


class AsyncEntity(Protocol[K, V]):
    """As `Entity`, for tasks."""

    async def __call__(self, key: K, /) -> V:
        """As `Entity.__call__`."""
        ...

    async def read(self, key: K, /, *, policy: Policy | None = None) -> Read[V]:
        """As `Entity.read`."""
        ...

    async def many(self, ids: Iterable[K], /, *, policy: Policy | None = None) -> dict[K, V]:
        """As `Entity.many`."""
        ...

    async def prewarm(self, ids: Iterable[K] | None = None, /, *, top: int = 0) -> int:
        """As `Entity.prewarm`."""
        ...

    async def invalidate(self, key: K, /) -> bool:
        """As `Entity.invalidate`."""
        ...

    def off(self) -> None:
        """As `Entity.off`."""
        ...

    def on(self) -> None:
        """As `Entity.on`."""
        ...

    def stats(self) -> Stats:
        """As `Entity.stats`."""
        ...


class Derived(Protocol[P, V_co]):
    """A cache of results, to be called as the function that computes them."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> V_co:
        """The result, from a copy whose stamps have not changed, or computed.

        Raises:
            CacheError: RLY-916: an argument of which nobody can say when two are the same. RLY-911, RLY-914.
            Exception: whatever the function raises, if no copy may be served instead.
        """
        ...

    def read(self, *args: P.args, **kwargs: P.kwargs) -> Read[V_co]:
        """The same, with how it came about."""
        ...

    def off(self) -> None:
        """As `Entity.off`."""
        ...

    def on(self) -> None:
        """As `Entity.on`."""
        ...

    def stats(self) -> Stats:
        """As `Entity.stats`."""
        ...


class AsyncDerived(Protocol[P, V_co]):
    """As `Derived`, for tasks."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> V_co:
        """As `Derived.__call__`."""
        ...

    async def read(self, *args: P.args, **kwargs: P.kwargs) -> Read[V_co]:
        """As `Derived.read`."""
        ...

    def off(self) -> None:
        """As `Entity.off`."""
        ...

    def on(self) -> None:
        """As `Entity.on`."""
        ...

    def stats(self) -> Stats:
        """As `Entity.stats`."""
        ...
