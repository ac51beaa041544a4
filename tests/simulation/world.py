"""The real parts put together around a database of one row, with a clock that moves only when it is told to.

Real are the protocol of reading, the process tiers, the shared tier, what consumers and feeds decide, and sessions. The
log is a list, and whatever goes on between the parts is decided by whoever uses this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relay.cache.driving import AsyncSharedTier
from relay.cache.effects import Lead, Spawn
from relay.cache.numbers import Numbers
from relay.cache.plan import Plan
from relay.cache.reader import Found, Reader, Target
from relay.cache.sessions import CURRENT, OpenSession, Sessions
from relay.cache.tiers import Bump
from relay.cache.values import Need, Versioned
from relay.core.names import record_name
from tests.simulation.backends import Backend
from tests.simulation.feeds import PlayedFeed
from tests.simulation.mutants import Parts
from tests.simulation.stepper import Perform, Stepper

ENTITY, ID = "thing", "1"
NAME = record_name(ENTITY, ID)
LONG = 3600.0


class Versions:
    """A codec of values that say their version."""

    id = 9

    def encode(self, value: str) -> bytes:
        """As `Codec.encode`."""
        return value.encode()

    def decode(self, data: bytes) -> str:
        """As `Codec.decode`."""
        return data.decode()


class Process:
    """A process that reads: its process tier, if there is one, and its reader."""

    def __init__(self, world: World, *, has_local: bool, has_shared: bool) -> None:
        self.local = world.parts.local(ttl=LONG, clock=world.clock) if has_local else None
        self.reader: Reader = world.parts.reader(
            Plan(ENTITY, codec=Versions(), hard_ttl=LONG, jitter=0.0, early=0.0, wait_seconds=0.0),
            lambda id_: Target(id_, record_name(ENTITY, id_), (id_,)),
            world.loader,
            recorder=Numbers(),
            local=self.local,
            has_shared=has_shared,
            clock=world.clock,
            draw=lambda: 0.5,
        )
        self.feed: PlayedFeed | None = None
        if self.local is not None:
            shared = None if world.backend is None else world.backend.tier
            self.feed = PlayedFeed(world.parts.follower, self.local, shared, lambda: len(world.log))
            self.feed.consult()

    @property
    def floor(self) -> int:
        """Below which this process promises to serve nothing."""
        return self.reader.space.floor(ID)


class Reading:
    """A read under way, and what it was promised when it began."""

    def __init__(self, world: World, process: Process, session: OpenSession | None) -> None:
        seen = 0 if session is None else world.token
        self.promised = max(seen, process.floor)
        self.session = session
        self.process = process
        self.steps = Stepper(
            world.parts.read(process.reader, ID), world.perform, world.spawn, lambda: _set_session(session)
        )
        self.is_judged = False


def _set_session(session: OpenSession | None) -> None:
    CURRENT.set(session)


class World:
    """Everything that takes part.

    Args:
        parts: the code under test, perhaps with a guard taken out.
        backend: the shared tier.
        perform: performs effects on the faces of the shared tier: see `stepper`.
        is_async: whether loaders are coroutine functions.
    """

    def __init__(
        self,
        parts: Parts,
        backend: Backend | None,
        *,
        unversioned: frozenset[int] = frozenset(),
        is_async: bool = False,
        now: Callable[[], float] | None = None,
    ) -> None:
        self.parts = parts
        self.backend = backend
        self.unversioned = unversioned
        self.perform: Perform = _not_yet
        self.db = 0
        self.replica = 0
        self.reads_replica = False
        self.log: list[int] = []
        self.outbox: list[int] = []
        self.seconds = 1_000_000.0
        self.tokens = 0
        self.token = 0
        """The newest version that the session wrote or saw."""
        self.loader: Any = self._load_in_loop if is_async else self._load
        self.wrong: list[str] = []
        self.background: list[Stepper] = []
        self.sessions = Sessions(clock=lambda: self.seconds)

    def clock(self) -> float:
        """Seconds, of every clock in this world."""
        return self.seconds

    def clock_ms(self) -> int:
        """The same in milliseconds, for the shared tier."""
        return int(self.seconds * 1000)

    def fresh_token(self) -> bytes:
        """Never the same again."""
        self.tokens += 1
        return self.tokens.to_bytes(8, "big")

    def _load(self, id_: str, need: Need) -> Versioned[str]:
        # A replica that is behind is what the cache has to notice: the loader asks it whenever it may.
        if self.reads_replica and not need.primary:
            return Versioned(f"v{self.replica}", self.replica, cacheable=False)
        return Versioned(f"v{self.db}", self.db)

    async def _load_in_loop(self, id_: str, need: Need) -> Versioned[str]:
        return self._load(id_, need)

    def spawn(self, spawn: Spawn) -> bool:
        """Refreshing in the background: one more thing that goes on by steps."""
        self.background.append(Stepper(_led(spawn), self.perform, self.spawn))
        return True

    def bump(self, version: int) -> Bump:
        """What the event of this version does to its record."""
        return Bump(NAME, None if version in self.unversioned else version, False)

    def commit(self, *, publishes: bool = True) -> int:
        """A transaction writes the row."""
        self.db += 1
        (self.log if publishes else self.outbox).append(self.db)
        return self.db

    def judge(self, reading: Reading) -> Found | None:
        """Notes what is wrong with a read that has ended. Returns what it found, or None if it raised."""
        found: Found | None = reading.steps.result
        if reading.is_judged or found is None:
            return found
        reading.is_judged = True
        if found.version < reading.promised:
            self.wrong.append(f"promised v{reading.promised}, got v{found.version}")
        if found.value != f"v{found.version}":
            self.wrong.append(f"{found.value} as version {found.version}")
        if reading.session is not None:
            self.token = max(self.token, found.version)
        return found


def _led(spawn: Spawn) -> Any:
    yield Lead(*spawn)


def _not_yet(_effect: object) -> Any:
    raise AssertionError("set World.perform first")


AsyncTier = AsyncSharedTier
