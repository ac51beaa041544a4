"""What the parts stand on: a database with versions, a log of events, a shared tier and its consumers, and one clock.

The consumers are the code's, with a list in place of Kafka. What goes on between the parts is decided by whoever uses
this: a replay, or chance.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

from relay.cache.effects import Lead, Spawn, Steps
from relay.cache.sessions import OpenSession, Sessions
from relay.cache.tiers import Bump
from relay.cache.values import Need, Versioned
from relay.core.names import record_name
from tests.simulation.backends import Backend
from tests.simulation.feeds import PARTITION, TOPIC
from tests.simulation.mutants import Parts
from tests.simulation.stepper import Perform, Stepper

ENTITY = "thing"
BEGINNING = 1_000_000.0
TICK_SECONDS = 0.01
"""A commit takes that long, so that it is after what was before it on every clock."""
ROUNDING_SECONDS = 0.003
"""Ages are made of several numbers of whole milliseconds."""


class Event(NamedTuple):
    """As the log has it."""

    id: str
    version: int
    says_version: bool = True


class SourceDownError(Exception):
    """What a loader raises while the database is away."""


class World:
    """Everything that the processes share.

    Args:
        parts: the code under test, perhaps with a guard taken out.
        is_async: whether loaders are coroutine functions.
    """

    def __init__(self, parts: Parts, *, is_async: bool = False) -> None:
        self.parts = parts
        self.backend: Backend | None = None
        self.perform: Perform = _not_yet
        self.rows: defaultdict[str, int] = defaultdict(int)
        self.replica: defaultdict[str, int] = defaultdict(int)
        self.commits: list[tuple[float, str, int]] = []
        self.source = "primary"
        """Where loaders read: primary; replica, if they may; stubborn: the replica whatever they are told; down."""
        self.log: list[Event] = []
        self.outbox: list[Event] = []
        self.seconds = BEGINNING
        self.loader: Any = self._load_in_loop if is_async else self._load
        self.background: list[Stepper] = []
        self.sessions = Sessions(clock=self.clock, lag_seconds=10**9)
        self.seen: defaultdict[tuple[OpenSession, str], int] = defaultdict(int)
        """What each session was given, whatever it has made of that."""
        self._tokens = 0

    def clock(self) -> float:
        """Seconds, of every clock in this world."""
        return self.seconds

    def clock_ms(self) -> int:
        """The same in milliseconds, for the shared tier."""
        return int(self.seconds * 1000)

    def fresh_token(self) -> bytes:
        """Never the same again."""
        self._tokens += 1
        return self._tokens.to_bytes(8, "big")

    def commit(self, id_: str, *, publishes: bool, says_version: bool = True) -> int:
        """A transaction writes the row. Its event is in the log, or still in the outbox."""
        self.seconds += TICK_SECONDS
        self.rows[id_] += 1
        self.commits.append((self.seconds, id_, self.rows[id_]))
        (self.log if publishes else self.outbox).append(Event(id_, self.rows[id_], says_version))
        return self.rows[id_]

    def version_at(self, id_: str, moment: float) -> int:
        """The version that the row had then."""
        return max((version for when, of, version in self.commits if of == id_ and when <= moment), default=0)

    def promised(self, session: OpenSession | None, id_: str) -> int:
        """What a session may not be given less than: what it wrote, and what it has seen."""
        return 0 if session is None else max(session.least(ENTITY, id_), self.seen[session, id_])

    def spawn(self, spawn: Spawn) -> bool:
        """Refreshing in the background: one more thing that goes on by steps."""
        self.background.append(Stepper(_led(spawn), self.perform, self.spawn))
        return True

    def _load(self, id_: str, need: Need) -> Versioned[str]:
        if self.source == "down":
            raise SourceDownError
        if self.source == "stubborn" or (self.source == "replica" and not need.primary):
            version = self.replica[id_]
            return Versioned(text_of(id_, version), version, cacheable=False)
        return Versioned(text_of(id_, self.rows[id_]), self.rows[id_])

    async def _load_in_loop(self, id_: str, need: Need) -> Versioned[str]:
        return self._load(id_, need)


class Consumer:
    """A consumer of the shared tier: what it decides is the code's."""

    def __init__(self, world: World, offset: int, *, is_first: bool) -> None:
        assert world.backend is not None
        self._world = world
        self.causes: list[str] = []
        """Of the epochs that it began."""
        self.applier = world.parts.applier(world.backend.tier, self.causes.append)
        self.lane = world.parts.lane(TOPIC, PARTITION, offset, offset, committed=-1 if is_first else offset)

    def apply(self, events_max: int) -> None:
        """The next events in one batch; without any, as an idle consumer does to find out what became of the tier."""
        events = self._world.log[self.lane.applied : self.lane.applied + events_max]
        self.lane.read = self.lane.applied + len(events)
        self.applier.apply([bump(event) for event in events], [self.lane], [self.lane])

    @property
    def is_behind(self) -> bool:
        """Whether there are events that it has not applied."""
        return bool(self.lane.applied < len(self._world.log))


def bump(event: Event) -> Bump:
    """What an event does to its record."""
    return Bump(record_name(ENTITY, event.id), event.version if event.says_version else None, False)


def text_of(id_: str, version: int) -> str:
    """The value that a row has at this version."""
    return f"{id_}@{version}"


def _led(spawn: Spawn) -> Steps[None]:
    yield Lead(*spawn)


def _not_yet(_effect: object) -> Any:
    raise AssertionError("set World.perform first")
