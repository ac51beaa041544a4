"""Processes that read through the tiers, their feeds, and reads under way."""

from __future__ import annotations

from relay.cache.numbers import Numbers
from relay.cache.plan import Plan
from relay.cache.reader import Found, Reader, Target
from relay.cache.sessions import CURRENT, OpenSession
from relay.core.names import record_name
from relay.core.policy import Bounded, Policy, Strong
from tests.simulation.feeds import PlayedFeed
from tests.simulation.stepper import Stepper
from tests.simulation.world import ENTITY, ROUNDING_SECONDS, World, text_of

LONG = 3600.0


class Versions:
    """A codec of texts."""

    id = 9

    def encode(self, value: str) -> bytes:
        """As `Codec.encode`."""
        return value.encode()

    def decode(self, data: bytes) -> str:
        """As `Codec.decode`."""
        return data.decode()


class Process:
    """A process that reads.

    Args:
        soft_ttl: seconds after which values are loaded anew in the background.
    """

    def __init__(
        self,
        world: World,
        *,
        has_local: bool,
        has_shared: bool = True,
        soft_ttl: float | None = None,
        entries_max: int = 10_000,
    ) -> None:
        self._world = world
        self.local = world.parts.local(ttl=LONG, clock=world.clock, entries_max=entries_max) if has_local else None
        self.reader: Reader = world.parts.reader(
            Plan(ENTITY, codec=Versions(), hard_ttl=LONG, soft_ttl=soft_ttl, jitter=0.0, early=0.0, wait_seconds=0.0),
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
            shared = None if world.backend is None or not has_shared else world.backend.tier
            self.feed = PlayedFeed(world.parts.follower, self.local, shared, lambda: len(world.log))
            self.feed.consult()

    def apply(self) -> bool:
        """Its feed reads the next event, if there is one."""
        if self.feed is None or self.feed.position >= len(self._world.log):
            return False
        event = self._world.log[self.feed.position]
        self.feed.apply(ENTITY, event.id, event.version if event.says_version else None)
        return True

    def floor(self, id_: str) -> int:
        """Below which it promises to serve nothing."""
        return self.reader.space.floor(id_)


class Reading:
    """A read under way, and what it was promised when it began."""

    def __init__(
        self, world: World, process: Process, id_: str, session: OpenSession | None = None, policy: Policy | None = None
    ) -> None:
        self._world = world
        self.id = id_
        self.process = process
        self.session = session
        self.policy = policy
        self.began = world.seconds
        # A strong reader asks nobody but the loader, which has to keep its word.
        floor = 0 if isinstance(policy, Strong) else process.floor(id_)
        self.promised = max(world.promised(session, id_), floor)
        self.steps = Stepper(
            world.parts.read(process.reader, id_, policy), world.perform, world.spawn, lambda: _enter(session)
        )

    @property
    def found(self) -> Found | None:
        """What it gave; None if it is under way, or raised."""
        result: Found | None = self.steps.result
        return result

    def judge(self) -> str | None:
        """What is wrong with what it gave. Its session has seen it now."""
        found = self.found
        if found is None:
            return None
        if self.session is not None:
            place = self.session, self.id
            self._world.seen[place] = max(self._world.seen[place], found.version)
        if found.value != text_of(self.id, found.version):
            return f"{found.value} as version {found.version}"
        if found.version < self.promised:
            return f"promised version {self.promised}, got {found}"
        if found.as_of is not None and found.version < self._world.version_at(self.id, found.as_of - ROUNDING_SECONDS):
            return f"said to be the newest {self._world.seconds - found.as_of} s ago, and was not: {found}"
        # A loader that shows a replica although it is asked for the primary breaks its word, and every bound.
        if isinstance(self.policy, Bounded) and found.as_of is not None:
            least = self._world.version_at(self.id, self.began - self.policy.seconds - ROUNDING_SECONDS)
            if found.version < least:
                return f"older than the bound: {found}, {least} was there"
        return None


def _enter(session: OpenSession | None) -> None:
    CURRENT.set(session)
