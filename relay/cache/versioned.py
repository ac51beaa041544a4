"""Versioned keys: values that never change, under `user:{id}:v{version}`, and a small record that says which is newest.

    version   the entity's record, without a value in it: events raise its floor, as they do for any other entity.
              Under `Strong` it is not asked: the version comes from the source, every time
    value     under a key of its own for each version, kept until its TTL, and never invalidated

One cheap write invalidates everywhere, and what was current before stays there for whoever is still reading it. It
costs a second round trip, and memory for old values until their TTL.

The version is never a counter in Redis, which would begin again at 1 after an eviction or a flush, and find the values
of its first life. It is the database's: a record that is gone is asked for anew, one that a failover took back belongs
to an epoch that is over, and so does each value. Entities that are deleted and made again count on.

A key holds exactly its version. What the source returns may be newer, when its event is still on the way: it is served,
not kept, and the version record is brought up to it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from relay.cache.batching import read_many
from relay.cache.effects import Look, Steps, Together
from relay.cache.glancing import Found
from relay.cache.heat import Heat
from relay.cache.reader import BYPASS, Reader, Sight, Target
from relay.cache.reading import Attempt, direct, through
from relay.cache.sessions import CURRENT
from relay.cache.tiers import Page, TierError
from relay.cache.values import Need, Versioned
from relay.core.policy import Eventual, Policy, Strong
from relay.errors import CacheError

if TYPE_CHECKING:
    from relay.cache.assembly import Assembly

VERSIONS: Final = 254
"""The codec of records that hold a version and nothing else."""


class Pair(NamedTuple):
    """The two readers of one entity."""

    versions: Reader
    values: Reader
    heat: Heat


class Key(NamedTuple):
    """What a value is found by."""

    id: Any
    version: int

    def __str__(self) -> str:
        return f"{self.id}:v{self.version}"


class VersionCodec:
    """For records without a value."""

    id: Final = VERSIONS

    def encode(self, _value: Any, /) -> bytes:
        """Nothing: the version stands in the header."""
        return b""

    def decode(self, data: bytes, /) -> bool:
        """Says that there is one.

        Raises:
            ValueError: somebody else wrote it.
        """
        if data:
            raise ValueError("the record of a version has a value")
        return True


def loaders(
    versions: Callable[[Any], int], load: Callable[[Any, Need], Versioned[Any]]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The loaders of the two readers, for threads."""

    def version(id: Any, _need: Need) -> Versioned[bool]:  # noqa: A002
        return Versioned(True, versions(id))

    def value(id: Any, version: int, need: Need) -> Versioned[Any]:  # noqa: A002
        return exactly(version, load(id, need))

    return version, value


def async_loaders(
    versions: Callable[[Any], Awaitable[int]], load: Callable[[Any, Need], Awaitable[Versioned[Any]]]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The same for tasks."""

    async def version(id: Any, _need: Need) -> Versioned[bool]:  # noqa: A002
        return Versioned(True, await versions(id))

    async def value(id: Any, version: int, need: Need) -> Versioned[Any]:  # noqa: A002
        return exactly(version, await load(id, need))

    return version, value


def exactly(version: int, loaded: Versioned[Any]) -> Versioned[Any]:
    """What was loaded, to be kept only if it is this version: its key says so. What is no value is refused later."""
    if getattr(loaded, "version", version) != version:
        return replace(loaded, cacheable=False)
    return loaded


def read_versioned(pair: Pair, id: Any, policy: Policy | None = None) -> Steps[Found]:  # noqa: A002
    """The value of the newest version that the policy asks for.

    Raises:
        CacheError, Exception: as `reading.read`.
    """
    versions, values, _ = pair
    policy = policy or versions.plan.policy
    target = versions.target(id)
    refuse_inside(versions, target)
    if BYPASS.get():
        # What this transaction has written: its version may never be committed.
        return (yield from direct(values, values.target(Key(id, 0)), 0))
    session = CURRENT.get()
    want = 0 if session is None else session.least(versions.plan.name, target.key)
    known = yield from newest(versions, target, want, policy)
    found = yield from value_of(pair, id, known)
    if found.version > known.version and not versions.is_off and not isinstance(policy, Strong):
        yield from through(versions, target, found.version, Eventual())
    if session is not None:
        session.observe(versions.plan.name, target.key, found.version)
    return found


def newest(versions: Reader, target: Target, want: int, policy: Policy) -> Steps[Found]:
    """The version to be read."""
    if versions.is_off or want < 0 or isinstance(policy, Strong):
        return (yield from direct(versions, target, max(want, 0)))
    return (yield from through(versions, target, want, policy))


def value_of(pair: Pair, id: Any, known: Found) -> Steps[Found]:  # noqa: A002
    """The value of a version. Nothing but its key has to fit: it is as fresh, or as stale, as its version is."""
    versions, values, _ = pair
    target = values.target(Key(id, known.version))
    refuse_inside(values, target)
    if versions.is_off:
        return (yield from direct(values, target, known.version))
    found = yield from through(values, target, known.version, Eventual())
    if found.tier == "source":
        return found
    return found._replace(as_of=known.as_of, is_stale=known.is_stale or found.is_stale)


def read_many_versioned(pair: Pair, ids: Iterable[Any], policy: Policy | None = None) -> Steps[dict[Any, Found]]:
    """The same of many, by one look for the versions and one for the values.

    Raises:
        CacheError, Exception: as `batching.read_many`.
    """
    versions, values, _ = pair
    wanted = list(dict.fromkeys(ids))
    if BYPASS.get() or versions.is_off:
        alone = yield Together([read_versioned(pair, id_, policy) for id_ in wanted])
        return dict(zip(wanted, alone, strict=True))
    known: Mapping[Any, Found] = yield from read_many(versions, wanted, policy)
    keys = {id_: Key(id_, one.version) for id_, one in known.items()}
    there = yield from _values_of(values, list(keys.values()))
    found = dict(zip(keys, there, strict=True))
    session = CURRENT.get()
    if session is not None:
        for id_, one in found.items():
            session.observe(versions.plan.name, f"{id_}", one.version)
    return found


def _values_of(values: Reader, keys: Sequence[Key]) -> Steps[list[Found]]:
    """Values in the order of the keys. Past the session, which knows no keys that have one version each."""
    mark, policy = values.mark(), Eventual()
    looked = {}
    for key in keys:
        target = values.target(key)
        refuse_inside(values, target)
        entry = values.space.entries.get(target.key)
        found, _ = (None, False) if entry is None else values.from_entry(entry, key.version, policy)
        looked[key] = Attempt(target, policy, Sight(key.version, found, is_away=True), mark, entry)
    missing = [key for key, attempt in looked.items() if attempt.sight.found is None]
    if missing and values.has_shared:
        try:
            page: Page = yield Look([looked[key].target.name for key in missing])
        except TierError as error:
            values.tier_failed(error)
        else:
            for key, data in zip(missing, page.records if page.epoch else (), strict=page.epoch is not None):
                sight = values.see(page.epoch or b"", data, key.version, policy)
                values.keep_local(looked[key].target, sight, mark)
                looked[key] = looked[key]._replace(sight=sight)
    steps = [through(values, one.target, key.version, policy, one) for key, one in looked.items()]
    together: list[Found] = yield Together(steps)
    return together


def refuse_inside(reader: Reader, target: Target) -> None:
    """Refuses a loader that reads what it is loading: it would wait for itself.

    Raises:
        CacheError: RLY-911.
    """
    if reader.flights.is_inside(target.key):
        raise CacheError(
            "RLY-911",
            f"the loader of {reader.plan.name} reads the key that it is loading",
            "let the loader read from the source",
        )


def make_pair(
    assembly: Assembly, name: str, settings: Mapping[str, Any], both: tuple[Callable[..., Any], Callable[..., Any]]
) -> Pair:
    """The readers of an entity with versioned keys.

    Raises:
        CacheError: RLY-915: a setting is wrong, or the name is taken.
    """
    version, value = both
    shared_by_both = {key: of for key, of in settings.items() if key not in ("codec", "schema", "negative_ttl")}
    versions, heat = assembly.make_entity(name, {**shared_by_both, "codec": VersionCodec()}, version)  # type: ignore[typeddict-item]
    values = assembly.make_values(name, {**settings, "policy": Eventual(), "soft_ttl": None, "early": 0.0}, value)
    return Pair(versions, values, heat)
