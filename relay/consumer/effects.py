"""The built-in effects of a batch: for each entity the newest version, whatever the order and number of its events."""

from __future__ import annotations

from collections.abc import Iterable

from relay.cache.tiers import Bump
from relay.core.change import Change, Malformed
from relay.core.names import record_name


class Effects:
    """Collects what a batch does to the shared tier: for an entity its newest version, and, for an event without one,
    that whatever is there has to go."""

    def __init__(self) -> None:
        self._versioned: dict[str, Bump] = {}
        self._unversioned: dict[str, Bump] = {}
        self._unknown: dict[str, Bump] = {}

    def add(self, change: Change, *, stays_unknown: bool = False) -> None:
        """A change. `stays_unknown`: an earlier event of it failed, and the hooks of this one are yet to run."""
        entity, id_, _, version, _, _, _ = change
        key = f"r:{entity}:{id_}"
        if version is None:
            self._unversioned[key] = Bump(key, None, stays_unknown)
        else:
            held = self._versioned.get(key)
            if held is None or held.version <= version:  # type: ignore[operator]
                self._versioned[key] = Bump(key, version, stays_unknown)
        if self._unknown and not stays_unknown:
            self._unknown.pop(key, None)

    def add_malformed(self, event: Malformed) -> None:
        """Nobody may trust what is cached of its entity, if the event told one."""
        if event.entity is not None and event.id is not None:
            key = record_name(event.entity, event.id)
            self._unknown[key] = Bump(key, None, True)

    def bumps(self) -> list[Bump]:
        """In an order in which they may be applied: what marks an entity as unknown comes last."""
        bumps = list(self._versioned.values())
        if self._unversioned:
            bumps.extend(self._unversioned.values())
        if self._unknown:
            bumps.extend(self._unknown.values())
        return bumps


def unknown(changes: Iterable[tuple[str, str]]) -> list[Bump]:
    """Marks these entities as unknown."""
    return [Bump(record_name(entity, id_), None, True) for entity, id_ in changes]
