"""Loading from the source: within the bulkhead, at the version that is needed, and once more if it was not."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from relay.cache.effects import Effect, Load, Steps, Wait
from relay.cache.flights import CHAIN, Flight
from relay.cache.numbers import LOAD_SECONDS, LOADS
from relay.cache.reader import Reader, Target
from relay.cache.values import Need, Versioned
from relay.core.record import VERSION_MAX
from relay.errors import CacheError


def load(reader: Reader, target: Target, need: Need, flight: Flight[Any]) -> Steps[Versioned[Any]]:
    """What the loader returns, at `need.min_version` or above.

    A loader that returns less is asked once more for the primary. Absence on the primary is always good enough: the
    versions that were asked for are committed, so whatever had them is gone since; it is only not kept.

    Raises:
        CacheError: RLY-911: the loader reads what it is loading. RLY-912, RLY-913: it returned something that is no
            `Versioned`, or is older than what was committed. RLY-914: too many loads are under way.
        Exception: whatever the loader raises.
    """
    yield from enter(reader)
    try:
        versioned = yield from called(reader, target, need, flight)
        if versioned.version < need.min_version and not need.primary:
            reader.count(LOADS, "old")
            need = need._replace(primary=True)
            versioned = yield from called(reader, target, need, flight)
    finally:
        leave(reader)
    if versioned.version >= need.min_version:
        return versioned
    reader.count(LOADS, "old")
    if versioned.value is None:
        return Versioned(None, versioned.version, cacheable=False)
    raise CacheError(
        "RLY-913",
        f"the loader of {reader.plan.name} returned version {versioned.version}; {need.min_version} is committed",
        "read value and version from the primary, in one statement, when need.primary is set",
    )


def called(reader: Reader, target: Target, need: Need, flight: Flight[Any]) -> Steps[Versioned[Any]]:
    """One call of the loader."""
    arguments = target.arguments if reader.is_derived else (*target.arguments, need)
    began = reader.clock()
    try:
        loaded = yield Load(reader.loader, arguments, (flight,))
    except Exception:
        reader.count(LOADS, "error")
        raise
    reader.count(LOADS, "ok")
    reader.recorder.measure(LOAD_SECONDS, reader.plan.name, value=max(0.0, reader.clock() - began))
    return Versioned(loaded, need.min_version) if reader.is_derived else checked(reader, loaded)


def too_old(versioned: Versioned[Any], need: Need) -> bool:
    """Whether it is below what is known to be committed."""
    return versioned.version < need.min_version


def checked(reader: Reader, loaded: Any) -> Versioned[Any]:
    """What a loader returned, if it is what loaders return."""
    if not isinstance(loaded, Versioned):
        what = f"a {type(loaded).__name__}"
    elif type(loaded.version) is not int or not 0 <= loaded.version <= VERSION_MAX:
        what = f"a version that is no whole number from 0 to {VERSION_MAX}"
    else:
        return loaded
    raise CacheError("RLY-912", f"the loader of {reader.plan.name} returned {what}", "return Versioned(value, version)")


def enter(reader: Reader) -> Generator[Effect, Any, None]:
    """Takes a place in the bulkhead, or raises RLY-914."""
    if CHAIN.get():
        return
    ticket = reader.bulkhead.enter()
    if ticket is None:
        return
    try:
        came = yield Wait(ticket, reader.plan.load_seconds)
    except BaseException:
        reader.bulkhead.withdraw(ticket)
        raise
    if not came:
        reader.bulkhead.withdraw(ticket)
        reader.count(LOADS, "refused")
        raise CacheError(
            "RLY-914",
            f"{reader.plan.loads_max} loads of {reader.plan.name} are under way, and none ended within"
            f" {reader.plan.load_seconds:g} s",
            "see why loading is slow; raise loads_max if the source can take it",
        )


def leave(reader: Reader) -> None:
    """Gives the place back."""
    if not CHAIN.get():
        reader.bulkhead.leave()
