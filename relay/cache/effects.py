"""What the protocol of a read asks its driver to do: nothing else touches the world, and nothing else waits.

The driver performs an effect and sends the answer into the generator, or throws what went wrong: `TierError` from a
tier, whatever a loader raises from `Load`. The protocol: `relay.cache.reading`. Drivers: `relay.cache.driving`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

from relay.cache.flights import Flight
from relay.cache.signal import Signal
from relay.cache.tiers import Bump, Put

T = TypeVar("T")


class Look(NamedTuple):
    """One look into the shared tier. Answer: `Page`."""

    names: Sequence[str]


class TakeLease(NamedTuple):
    """Asks to be the one who loads. Answer: `Lease`."""

    name: str
    want: int
    stamps: Sequence[str]
    refresh: bool


class PutValue(NamedTuple):
    """Puts what was loaded. Answer: `Reject` or None."""

    put: Put


class Release(NamedTuple):
    """Gives back a lease. Answer: None."""

    name: str
    lease: bytes


class Apply(NamedTuple):
    """Drops records and renews stamps. Answer: `Applied`."""

    bumps: Sequence[Bump]
    stamps: Sequence[str]


class AskTime(NamedTuple):
    """What the clock of the shared tier shows. Answer: milliseconds."""


class Load(NamedTuple):
    """Calls a loader, which may be a coroutine function, inside of `flights`. Answer: what it returns."""

    loader: Callable[..., Any]
    arguments: tuple[Any, ...]
    flights: tuple[Flight[Any], ...]


class Wait(NamedTuple):
    """Waits until the signal fires, or for so many seconds. Answer: whether it fired."""

    signal: Signal
    seconds: float


class Pause(NamedTuple):
    """Waits for so many seconds. Answer: None."""

    seconds: float


class Lead(NamedTuple):
    """Runs the load of flights, at once and in such a way that the caller's cancellation does not end it.

    Answer: None, when the flights have ended: results and exceptions are in the flights, none comes from here. The
    driver has them left (`Flights.leave`) also if the steps never began.
    """

    flights: tuple[Flight[Any], ...]
    steps: Generator[Any, Any, None]


class Spawn(NamedTuple):
    """Runs the load of flights in the background, with nothing of the caller's context. Answer: whether it will."""

    flights: tuple[Flight[Any], ...]
    steps: Generator[Any, Any, None]


class Together(NamedTuple):
    """Runs several steps, next to one another where that is possible. Answer: the list of what they returned, when all
    have ended; the exception of the first one that raised one."""

    steps: Sequence[Generator[Any, Any, Any]]


Effect = Look | TakeLease | PutValue | Release | Apply | AskTime | Load | Wait | Pause | Lead | Spawn | Together
Steps = Generator[Effect, Any, T]
"""A part of the protocol that returns T."""
