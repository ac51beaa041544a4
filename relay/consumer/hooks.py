"""A service's own hooks: which are called for an entity, and what they may ask to be invalidated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from relay.cache.tiers import Bump
from relay.core.change import Change
from relay.core.names import record_name, stamp_name
from relay.errors import CacheError

RESULTS_MAX: Final = 10_000
"""A hook may name so many keys and stamps for one event."""

EVERY: Final = "*"

Hook = Callable[[Change], Any]
"""A function or a coroutine function. What it returns is to be invalidated: None, or keys and stamps."""


class Key(NamedTuple):
    """An entity whose copies have to go, although it has no event of its own."""

    entity: str
    id: object
    """As in the cache: taken as text."""


class Stamp(NamedTuple):
    """What derived records depend on: all that depend on this stamp have to go."""

    name: str


class RubbishError(Exception):
    """A hook returned something else."""


class Wanted(NamedTuple):
    """What hooks asked for, in terms of the shared tier."""

    bumps: list[Bump]
    stamps: list[str]


class Hooks:
    """The hooks of one consumer, by entity."""

    def __init__(self) -> None:
        self._by_entity: dict[str, list[Hook]] = {}

    def add(self, entity: str, hook: Hook) -> None:
        """One more.

        Raises:
            CacheError: RLY-930, it cannot be called.
        """
        if not callable(hook):
            raise CacheError("RLY-930", f"the hook of {entity} cannot be called", "pass a function")
        self._by_entity.setdefault(entity, []).append(hook)

    def of(self, entity: str) -> list[Hook]:
        """Those of the entity, then those of every entity, each in the order in which they were added."""
        by_entity = self._by_entity
        return by_entity.get(entity, []) + by_entity.get(EVERY, []) if by_entity else []


def wanted(result: Any, into: Wanted) -> None:
    """Takes in what a hook returned. Runs its generator, if it is one.

    Raises:
        RubbishError: it is neither None nor keys and stamps.
    """
    if result is None:
        return
    if isinstance(result, Key | Stamp):
        result = (result,)
    if isinstance(result, str | bytes | dict) or not isinstance(result, Iterable):
        raise RubbishError(f"a {type(result).__name__}")
    bumps, stamps = [], []
    for found in itertools.islice(result, RESULTS_MAX + 1):
        if isinstance(found, Key) and _is_name(found.entity):
            bumps.append(Bump(record_name(found.entity, str(found.id)), None, unknown=False))
        elif isinstance(found, Stamp) and _is_name(found.name):
            stamps.append(stamp_name(found.name))
        else:
            raise RubbishError(f"a {type(found).__name__} among its results")
    if len(bumps) + len(stamps) > RESULTS_MAX:
        raise RubbishError(f"more than {RESULTS_MAX} results")
    into.bumps.extend(bumps)
    into.stamps.extend(stamps)


def _is_name(text: object) -> bool:
    return isinstance(text, str) and text != "" and ":" not in text
