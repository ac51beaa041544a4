"""Plays a trace of the model on the real code, move by move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relay.cache.effects import Load, Look, PutValue, TakeLease
from relay.cache.tiers import Position
from tests.simulation.explorer import Move
from tests.simulation.feeds import PARTITION, TOPIC, PlayedFeed
from tests.simulation.protocol import Case
from tests.simulation.world import ENTITY, ID, NAME, Process, Reading, World


class Replay:
    """A world in which the moves of a case can be played.

    A move that the code, with its guards in, has no place for does nothing: a put of what has been refused before, say.
    """

    def __init__(self, world: World, case: Case) -> None:
        self._world = world
        self._case = case
        self._readings: dict[int, Reading] = {}
        self._session = world.sessions.open() if case.has_session else None
        self._consumers = [self._consumer(0)]
        self._committed = 0
        self._standby: Any = None
        if world.backend is not None:
            self._run_applier(0, publishes=False)
            self._standby = world.backend.snapshot()
        # Without process tiers no two readers share a process: in one they would share a flight.
        count = case.processes if case.has_local else case.readers
        self._processes = [Process(world, has_local=case.has_local, has_shared=case.has_shared) for _ in range(count)]
        self._moves: dict[str, Callable[[Move], None]] = {
            "the writer commits": lambda _: self._commits(),
            "the relay publishes": lambda move: self._publishes(move),
            "the replica reaches": lambda move: setattr(world, "replica", move.version),
            "consumer applies": lambda move: self._run_applier(move.who or 0, publishes=True),
            "consumer writes the progress of": lambda move: self._writes_progress(move.who or 0),
            # It begins a new epoch in the same breath.
            "consumer finds its progress lost": lambda move: None,
            "consumer finds the tier closed": lambda move: None,
            "consumer opens an epoch": lambda move: self._run_applier(move.who or 0, publishes=False),
            "consumer commits its offset": lambda _: self._commits_offset(),
            "consumer begins again at its offset": lambda _: self._begins_again(),
            "consumer takes over": lambda _: self._consumers.append(self._consumer(self._committed)),
            "Redis evicts the record": lambda _: self._evicts(),
            "Redis is flushed": lambda _: world.backend.flush(),
            "the standby catches up": lambda _: self._catches_up(),
            "Redis fails over to its standby": lambda _: world.backend.restore(self._standby),
            "process applies": lambda move: self._feed(move.who or 0),
            "process misses events": lambda move: self._feed_of(move).miss(),
            "process opens": lambda move: self._feed_of(move).consult(),
            "process notices the epoch": lambda move: self._feed_of(move).consult(),
            "process sweeps its floor": lambda move: self._sweeps(move.who or 0),
            "reader hits process tier": lambda move: self._begin(move).steps.until(Look),
            "reader hits shared tier": lambda move: self._begin(move).steps.until(Look),
            "reader bypasses the shared tier": lambda move: self._begin(move).steps.until(Look),
            "reader leases": lambda move: self._begin(move).steps.until(TakeLease),
            "reader finds the lease taken": lambda move: self._begin(move).steps.until(TakeLease),
            "reader loads from primary": lambda move: self._loads(move, from_replica=False),
            "reader loads from replica": lambda move: self._loads(move, from_replica=True),
            "reader puts in shared tier": lambda move: self._readings[move.who or 0].steps.until(PutValue),
            "reader puts in process tier": self._ends,
            "reader returns": self._ends,
        }

    def play(self, move: Move) -> None:
        """One move."""
        self._moves[move.deed](move)
        for reading in self._readings.values():
            if reading.steps.is_done:
                self._world.judge(reading)

    def settle(self) -> None:
        """Lets everything come to its end: reads, events and the epochs that consumers owe."""
        for reading in self._readings.values():
            reading.steps.finish()
            self._world.judge(reading)
        for version in list(self._world.outbox):
            self._publishes(Move("", None, version))
        owner = len(self._consumers) - 1
        if self._world.backend is not None:
            while self._consumers[owner][1].read < len(self._world.log):
                self._run_applier(owner, publishes=True)
            self._run_applier(owner, publishes=False)
        for who, process in enumerate(self._processes):
            while process.feed is not None and process.feed.position < len(self._world.log):
                self._feed(who)
            for _ in range(3 if process.feed is not None else 0):
                process.feed.consult()

    def stale(self) -> list[str]:
        """Reads that do not give what the database has, in each process and in one that has just started."""
        fresh = Process(self._world, has_local=False, has_shared=self._case.has_shared)
        wrong = []
        for name, process in [("a new process", fresh), *enumerate(self._processes)]:
            reading = Reading(self._world, process, None)
            reading.steps.finish()
            found = self._world.judge(reading)
            if found is None or found.version != self._world.db:
                wrong.append(f"{name} reads {found}, the database has v{self._world.db}")
        return wrong + self._world.wrong

    # -- writers and consumers

    def _commits(self) -> None:
        version = self._world.commit(publishes=not self._case.reorders)
        if self._session is not None and self._case.session_writes:
            self._session.wrote(ENTITY, ID, version)
            self._world.token = version

    def _publishes(self, move: Move) -> None:
        assert move.version is not None
        self._world.outbox.remove(move.version)
        self._world.log.append(move.version)

    def _consumer(self, offset: int) -> Any:
        world = self._world
        lane = world.parts.lane(TOPIC, PARTITION, offset, offset, committed=offset if self._started else -1)
        applier = None if world.backend is None else world.parts.applier(world.backend.tier, lambda cause: None)
        return applier, lane

    @property
    def _started(self) -> bool:
        return hasattr(self, "_consumers")

    def _run_applier(self, who: int, *, publishes: bool) -> None:
        """A batch of one event, or an empty one, by which an idle consumer finds out what has become of the tier."""
        applier, lane = self._consumers[who]
        bumps = []
        if publishes and lane.applied < len(self._world.log):
            bumps = [self._world.bump(self._world.log[lane.applied])]
            lane.read = lane.applied + 1
        applier.apply(bumps, [lane], [lane])

    def _writes_progress(self, who: int) -> None:
        # Only with its guard out is this a move of its own: see `test_replay.py`.
        if not self._case.guards.progress_with_records:
            lane = self._consumers[who][1]
            position = Position(TOPIC, PARTITION, lane.applied, lane.applied + 1)
            self._world.backend.tier.apply((), (), [position])

    def _commits_offset(self) -> None:
        self._committed = self._consumers[-1][1].done

    def _begins_again(self) -> None:
        self._consumers[-1] = self._consumer(self._committed)

    # -- Redis

    def _evicts(self) -> None:
        self._world.backend.evict(NAME, spares_lease=not self._case.guards.lease_lies_in_record)

    def _catches_up(self) -> None:
        self._standby = self._world.backend.snapshot()

    # -- feeds

    def _feed_of(self, move: Move) -> PlayedFeed:
        feed = self._processes[move.who or 0].feed
        assert feed is not None
        return feed

    def _feed(self, who: int) -> None:
        feed = self._processes[who].feed
        assert feed is not None
        version = self._world.log[feed.position]
        feed.apply(ENTITY, ID, None if version in self._world.unversioned else version)

    def _sweeps(self, who: int) -> None:
        process = self._processes[who]
        assert process.feed is not None
        assert process.local is not None
        process.feed.consult()
        if not any(reading.process is process and not reading.steps.is_done for reading in self._readings.values()):
            # Nothing is under way: so long may it have been, and longer.
            self._world.seconds += process.local.fill_seconds + 1
        process.feed.consult()

    # -- readers

    def _begin(self, move: Move) -> Reading:
        who = move.who or 0
        process = self._processes[who % len(self._processes) if move.where is None else move.where]
        session = self._session if who == 0 else None
        reading = self._readings[who] = Reading(self._world, process, session)
        return reading

    def _loads(self, move: Move, *, from_replica: bool) -> None:
        self._world.reads_replica = from_replica
        self._readings[move.who or 0].steps.until(Load)
        self._world.reads_replica = False

    def _ends(self, move: Move) -> None:
        self._readings[move.who or 0].steps.finish()
