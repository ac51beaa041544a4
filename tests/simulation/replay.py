"""Plays a trace of the model on the real code, move by move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from relay.cache.effects import Load, Look, PutValue, TakeLease
from relay.cache.tiers import Position
from relay.core.names import record_name
from tests.simulation.explorer import Move
from tests.simulation.feeds import PARTITION, TOPIC, PlayedFeed
from tests.simulation.processes import Process, Reading
from tests.simulation.protocol import Case
from tests.simulation.world import ENTITY, Consumer, World

ID: Final = "1"


class Replay:
    """A world in which the moves of a case can be played.

    A move that the code, with its guards in, has no place for does nothing: a put of what has been refused before, say.
    """

    def __init__(self, world: World, case: Case) -> None:
        assert world.backend is not None
        self._world = world
        self._backend = world.backend
        self._case = case
        self._readings: dict[int, Reading] = {}
        self._wrong: list[str] = []
        self._session = world.sessions.open() if case.has_session else None
        self._consumers = [Consumer(world, 0, is_first=True)]
        self._committed = 0
        self._consumers[0].apply(0)
        self._standby = self._backend.snapshot()
        # Without process tiers no two readers share a process: in one they would share a flight.
        count = case.processes if case.has_local else case.readers
        self._processes = [Process(world, has_local=case.has_local) for _ in range(count)]
        self._moves: dict[str, Callable[[int, Move], Any]] = {
            "the writer commits": lambda _, __: self._commits(),
            "the replica reaches": lambda _, move: world.replica.update({ID: move.version or 0}),
            "consumer applies": lambda who, _: self._consumers[who].apply(1),
            "consumer writes the progress of": lambda who, _: self._writes_progress(who),
            # It begins a new epoch in the same breath.
            "consumer finds its progress lost": lambda _, __: None,
            "consumer finds the tier closed": lambda _, __: None,
            "consumer opens an epoch": lambda who, _: self._consumers[who].apply(0),
            "consumer commits its offset": lambda who, _: self._commits_offset(who),
            "consumer begins again at its offset": lambda _, __: self._begins_again(),
            "consumer takes over": lambda _, __: self._consumers.append(self._consumer()),
            "Redis evicts the record": lambda _, __: self._evicts(),
            "Redis is flushed": lambda _, __: self._backend.flush(),
            "the standby catches up": lambda _, __: self._catches_up(),
            "Redis fails over to its standby": lambda _, __: self._backend.restore(self._standby),
            "process applies": lambda who, _: self._processes[who].apply(),
            "process misses events": lambda who, _: self._feed(who).miss(),
            "process opens": lambda who, _: self._feed(who).consult(),
            "process notices the epoch": lambda who, _: self._feed(who).consult(),
            "process sweeps its floor": lambda who, _: self._sweeps(who),
            "reader hits process tier": lambda _, move: self._begin(move, Look),
            "reader hits shared tier": lambda _, move: self._begin(move, Look),
            "reader bypasses the shared tier": lambda _, move: self._begin(move, Look),
            "reader leases": lambda _, move: self._begin(move, TakeLease),
            "reader finds the lease taken": lambda _, move: self._begin(move, TakeLease),
            "reader loads from primary": lambda who, _: self._loads(who, "primary"),
            "reader loads from replica": lambda who, _: self._loads(who, "replica"),
            "reader puts in shared tier": lambda who, _: self._readings[who].steps.until(PutValue),
            "reader puts in process tier": lambda who, _: self._readings[who].steps.finish(),
            "reader returns": lambda who, _: self._readings[who].steps.finish(),
        }

    def play(self, move: Move) -> None:
        """One move."""
        self._moves[move.deed](move.who or 0, move)

    def settle(self) -> None:
        """Lets everything come to its end: reads, events, and the epochs that consumers owe."""
        for reading in list(self._readings.values()):
            self._end(reading)
        owner = self._consumers[-1]
        while owner.is_behind:
            owner.apply(1)
        owner.apply(0)
        for process in self._processes:
            while process.apply():
                pass
            for _ in range(3 if process.feed is not None else 0):
                process.feed.consult()

    def stale(self) -> list[str]:
        """Reads that were not given what they were promised; and reads that do not give what the database has, of each
        process and of one that has just started, though everything has come to its end."""
        fresh = Process(self._world, has_local=False)
        for name, process in [("a new process", fresh), *enumerate(self._processes)]:
            reading = Reading(self._world, process, ID)
            found = self._end(reading)
            if found is None or found.version != self._world.rows[ID]:
                self._wrong.append(f"{name} reads {found}, the database has {self._world.rows[ID]}")
        return self._wrong

    def _end(self, reading: Reading) -> Any:
        reading.steps.finish()
        wrong = reading.judge()
        if wrong is not None:
            self._wrong.append(wrong)
        return reading.found

    def _commits(self) -> None:
        version = self._world.rows[ID] + 1
        self._world.commit(ID, publishes=True, says_version=version not in self._case.unversioned)
        if self._session is not None and self._case.session_writes:
            self._session.wrote(ENTITY, ID, version)

    # -- consumers and Redis

    def _consumer(self) -> Consumer:
        return Consumer(self._world, self._committed, is_first=False)

    def _writes_progress(self, who: int) -> None:
        # A move of its own only with its guard out, which is done here: the code has one call for both.
        if not self._case.guards.progress_with_records:
            applied = self._consumers[who].lane.applied
            self._backend.tier.apply((), (), [Position(TOPIC, PARTITION, applied, applied + 1)])

    def _commits_offset(self, who: int) -> None:
        self._committed = self._consumers[who].lane.done

    def _begins_again(self) -> None:
        self._consumers[-1] = self._consumer()

    def _evicts(self) -> None:
        self._backend.evict(record_name(ENTITY, ID), spares_lease=not self._case.guards.lease_lies_in_record)

    def _catches_up(self) -> None:
        self._standby = self._backend.snapshot()

    # -- processes

    def _feed(self, who: int) -> PlayedFeed:
        feed = self._processes[who].feed
        assert feed is not None
        return feed

    def _sweeps(self, who: int) -> None:
        process = self._processes[who]
        assert process.local is not None
        self._feed(who).consult()
        if not any(reading.process is process and not reading.steps.is_done for reading in self._readings.values()):
            # Nothing is under way: so long may it have been, and longer.
            self._world.seconds += process.local.fill_seconds + 1
        self._feed(who).consult()

    # -- readers

    def _begin(self, move: Move, stop: type) -> None:
        who = move.who or 0
        if who in self._readings:
            self._end(self._readings[who])
        process = self._processes[who % len(self._processes) if move.where is None else move.where]
        reading = Reading(self._world, process, ID, self._session if who == 0 else None)
        self._readings[who] = reading
        reading.steps.until(stop)

    def _loads(self, who: int, source: str) -> None:
        self._world.source = source
        self._readings[who].steps.until(Load)
        self._world.source = "primary"
