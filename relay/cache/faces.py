"""What can be done with a cache besides calling it: written once, as steps, for both faces."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from functools import update_wrapper
from typing import Any, Final

from relay.cache.assembly import Assembly
from relay.cache.batching import many, read_many
from relay.cache.effects import Apply, Steps
from relay.cache.glancing import Found
from relay.cache.heat import Heat
from relay.cache.reader import Reader
from relay.cache.reading import read
from relay.cache.tiers import Bump, TierError
from relay.cache.values import Read
from relay.cache.versioned import Pair, read_many_versioned, read_versioned
from relay.core.names import record_name, stamp_name
from relay.core.policy import Policy

PREWARM_BATCH: Final = 100

Run = Callable[[Generator[Any, Any, Any]], Any]
"""Runs steps: returns what they return, or an awaitable of it."""


def entity_face(assembly: Assembly, run: Run, reader: Reader, heat: Heat, call: Any) -> Any:
    """Gives a callable the methods of `callables.Entity` or `AsyncEntity`."""

    def read_one(id: Any, /, *, policy: Policy | None = None) -> Any:  # noqa: A002
        heat.note((id,))
        return run(_read(reader, id, policy))

    def many(ids: Iterable[Any], /, *, policy: Policy | None = None) -> Any:
        return run(_many(reader, heat, ids, policy))

    def prewarm(ids: Iterable[Any] | None = None, /, *, top: int = 0) -> Any:
        return run(_prewarm(lambda batch: read_many(reader, batch), heat.top(top) if ids is None else list(ids)))

    def invalidate(id: Any, /) -> Any:  # noqa: A002
        return run(_invalidate(assembly, reader, f"{id}"))

    call.read, call.many, call.prewarm, call.invalidate = read_one, many, prewarm, invalidate
    return _switches(assembly, reader, call)


def versioned_face(assembly: Assembly, run: Run, pair: Pair, loader: Any, call: Any) -> Any:
    """The same for versioned keys."""
    versions, _, heat = pair

    def read_one(id: Any, /, *, policy: Policy | None = None) -> Any:  # noqa: A002
        heat.note((id,))
        return run(_read_versioned(pair, id, policy))

    def many(ids: Iterable[Any], /, *, policy: Policy | None = None) -> Any:
        return run(_many_versioned(pair, ids, policy))

    def prewarm(ids: Iterable[Any] | None = None, /, *, top: int = 0) -> Any:
        wanted = heat.top(top) if ids is None else list(ids)
        return run(_prewarm(lambda batch: read_many_versioned(pair, batch), wanted))

    def invalidate(id: Any, /) -> Any:  # noqa: A002
        return run(_invalidate(assembly, versions, f"{id}"))

    call.read, call.many, call.prewarm, call.invalidate = read_one, many, prewarm, invalidate
    return update_wrapper(_switches(assembly, versions, call), loader)


def derived_face(assembly: Assembly, run: Run, reader: Reader, call: Any) -> Any:
    """Gives a callable the methods of `callables.Derived` or `AsyncDerived`."""
    call.read = lambda *args, **kwargs: run(_read(reader, (args, kwargs), None))
    return _switches(assembly, reader, call)


def _switches(assembly: Assembly, reader: Reader, call: Any) -> Any:
    update_wrapper(call, reader.loader)
    call.off = lambda: assembly.switch(reader, is_off=True)
    call.on = lambda: assembly.switch(reader, is_off=False)
    call.stats = lambda: assembly.stats_of(reader)
    return call


def renew(assembly: Assembly, stamps: Iterable[str]) -> Steps[bool]:
    """Lets everything that depends on these stamps be computed anew."""
    assembly.void_derived()
    return (yield from _apply(assembly, [], [stamp_name(stamp) for stamp in stamps]))


def _read(reader: Reader, id: Any, policy: Policy | None) -> Steps[Read[Any]]:  # noqa: A002
    return reader.as_read((yield from read(reader, id, policy)))


def _many(reader: Reader, heat: Heat, ids: Iterable[Any], policy: Policy | None) -> Steps[dict[Any, Any]]:
    values = yield from many(reader, ids, policy)
    heat.note(values)
    return values


def _read_versioned(pair: Pair, id: Any, policy: Policy | None) -> Steps[Read[Any]]:  # noqa: A002
    return pair.versions.as_read((yield from read_versioned(pair, id, policy)))


def _many_versioned(pair: Pair, ids: Iterable[Any], policy: Policy | None) -> Steps[dict[Any, Any]]:
    found = yield from read_many_versioned(pair, ids, policy)
    pair.heat.note(found)
    return {id_: one.value for id_, one in found.items()}


def _prewarm(read_batch: Callable[[list[Any]], Steps[dict[Any, Found]]], ids: list[Any]) -> Steps[int]:
    warm = 0
    for start in range(0, len(ids), PREWARM_BATCH):
        try:
            warm += len((yield from read_batch(ids[start : start + PREWARM_BATCH])))
        except Exception:  # noqa: S112  # The count tells, and whoever needs the value meets the exception again.
            continue
    return warm


def _invalidate(assembly: Assembly, reader: Reader, key: str) -> Steps[bool]:
    if reader.local is not None:
        reader.local.invalidate(reader.plan.name, key)
    return (yield from _apply(assembly, [Bump(record_name(reader.plan.name, key), None, unknown=False)], []))


def _apply(assembly: Assembly, bumps: list[Bump], stamps: list[str]) -> Steps[bool]:
    if not assembly.has_shared:
        return True
    try:
        # A closed tier serves nothing, so there is nothing to drop.
        yield Apply(bumps, stamps)
    except TierError:
        return False
    return True
