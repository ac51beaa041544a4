"""Single-flight: of all who miss a key in this process one loads, and the others take what it loaded.

A flight always ends: it lands with a result, fails with the loader's exception, or is left behind by a leader that died
or was cancelled, and whoever waits looks again. Nobody waits for a flight that waits for him: a loader that reads
through the cache waits as part of its own flight, so waiting makes edges between flights, and the one who would close a
circle does not wait. Loops and threads of one process share one graph, across all caches.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from contextvars import ContextVar
from typing import Any, Final, Generic, TypeVar

from relay.cache.signal import Signal

R = TypeVar("R")


class Flight(Generic[R]):
    """A load of one key under way. Not in the table of `Flights` if nobody may join it."""

    __slots__ = ("ended", "error", "has_begun", "key", "landed", "table", "waits_for")

    def __init__(self, table: Flights[R], key: Hashable) -> None:
        self.table = table
        self.key = key
        self.has_begun = True
        """False while it waits for a thread: nobody waits for that, whoever needs the value takes over."""
        self.ended = Signal()
        self.landed: R | None = None
        self.error: Exception | None = None
        self.waits_for: list[Flight[Any]] = []

    def result(self, *, leads: bool) -> R | None:
        """What it landed with; None if it has not, or was left behind. Raises what it failed with."""
        if self.error is not None:
            raise self.error if leads else copy_of(self.error)
        return self.landed


CHAIN: Final[ContextVar[tuple[Flight[Any], ...]]] = ContextVar("relay_loads", default=())
"""The loads inside of which this thread or task runs, the innermost last."""

_graph = threading.Lock()
"""Over all edges of all flights. Taken only by loaders that read through a cache."""


class Flights(Generic[R]):
    """The flights of one cache."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[Hashable, Flight[R]] = {}

    def enter(self, key: Hashable) -> tuple[Flight[R], bool]:
        """The flight of this key, and whether the caller leads it: then it has to end it with `leave`."""
        with self._lock:
            present = self._flights.get(key)
            if present is not None and present.has_begun:
                return present, False
            flight = self._flights[key] = Flight(self, key)
        if present is not None:
            present.ended.fire()
        return flight, True

    @property
    def count(self) -> int:
        """How many are under way."""
        return len(self._flights)

    def try_lead(self, key: Hashable, *, has_begun: bool = True) -> Flight[R] | None:
        """A flight to lead, or None if there is one.

        Args:
            has_begun: False for one that begins later. Its leader says so in the flight, unless it has ended by then.
        """
        with self._lock:
            if key in self._flights:
                return None
            flight = self._flights[key] = Flight(self, key)
            flight.has_begun = has_begun
            return flight

    def leave(self, flight: Flight[R]) -> None:
        """Ends a flight: those who wait look at what it has become."""
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
        flight.ended.fire()

    def is_inside(self, key: Hashable) -> bool:
        """Whether the caller runs inside of a load of this very key: waiting for it would be for ever."""
        chain = CHAIN.get()
        return bool(chain) and any(
            flight.key == key and flight.table is self and not flight.ended.has_fired for flight in chain
        )

    def forget_all(self) -> None:
        """For a forked child: the threads that lead these flights are not in this process."""
        self._lock = threading.Lock()
        self._flights = {}


def begin_wait(flight: Flight[Any]) -> bool:
    """Notes that the innermost load of the caller waits for this flight. False, if the flight waits for it: do not."""
    chain = CHAIN.get()
    if not chain:
        return True
    with _graph:
        if _reaches(flight, set(chain)):
            return False
        chain[-1].waits_for.append(flight)
        return True


def end_wait(flight: Flight[Any]) -> None:
    """Takes back what `begin_wait` noted, in the same thread or task."""
    chain = CHAIN.get()
    if chain:
        with _graph:
            chain[-1].waits_for.remove(flight)


def _reaches(flight: Flight[Any], targets: set[Flight[Any]]) -> bool:
    open_ends, seen = [flight], set[Flight[Any]]()
    while open_ends:
        at = open_ends.pop()
        if at in targets:
            return True
        if at not in seen:
            seen.add(at)
            open_ends.extend(at.waits_for)
    return False


def copy_of(error: Exception) -> Exception:
    """The leader's exception for another thread: raising one object in several would mix their tracebacks.

    Made without `__init__`, whose arguments nobody knows, unless it is that of a built-in exception. What does not come
    out the same is returned itself.
    """
    kind = type(error)
    try:
        twin = kind(*error.args) if kind.__module__ == "builtins" else kind.__new__(kind, *error.args)
        twin.args = error.args
        twin.__dict__.update(error.__dict__)
        is_same = str(twin) == str(error)
    except Exception:
        return error
    if not is_same:
        return error
    twin.__cause__ = error
    return twin
