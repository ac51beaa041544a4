"""A random walk over the code: everything that can befall readers, consumers, feeds and Redis, one step at a time.

After every step what is in the tiers is held against the database and against what is still on its way; every read is
held against what it was promised. At the end of a walk everything is delivered, and nothing old may be left.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay.cache.effects import Effect, Load
from relay.cache.tiers import TierError
from relay.core.names import record_name
from relay.core.policy import Bounded, Eventual, Policy, Session, Strong
from relay.core.record import decode_record
from relay.errors import CacheError
from tests.simulation.backends import Reference
from tests.simulation.feeds import PARTITION, TOPIC
from tests.simulation.mutants import Parts, parts
from tests.simulation.processes import Process, Reading
from tests.simulation.stepper import Stepper, in_thread
from tests.simulation.world import ENTITY, Consumer, Event, SourceDownError, World, text_of

IDS = ("1", "2")
READS_MAX = 5
CONSUMERS_MAX = 3

ids = st.sampled_from([*IDS[:1] * 4, *IDS[1:]])
picks = st.integers(0, READS_MAX - 1)
policies: st.SearchStrategy[Policy | None] = st.sampled_from(
    [None, None, Eventual(), Session(), Bounded(1.0), Bounded(60.0), Strong()]
)


class CacheMachine(RuleBasedStateMachine):
    """The walk. `parts` is the code that is walked over."""

    parts: Parts = parts()

    def __init__(self) -> None:
        super().__init__()
        self.world = world = World(self.parts)
        self.backend = world.backend = Reference(world.clock_ms, world.fresh_token, self.parts.reference)
        self.tier = self.backend.tier
        self._perform = in_thread(self.tier)
        world.perform = self._through_faults
        self.trouble = ""
        self.lag = 0.0
        self.readings: list[Reading] = []
        self.consumers = [Consumer(world, 0, is_first=True)]
        self.committed = 0
        self.sources = {"primary"}

    @initialize()
    def begin(self) -> None:
        """Three processes: one with room for a single entry, one that refreshes in the background, one without tier."""
        self.consumers[0].apply(0)
        self.standby = self.backend.snapshot()
        self.processes = [
            Process(self.world, has_local=True, entries_max=1),
            Process(self.world, has_local=True, soft_ttl=20.0),
            Process(self.world, has_local=False, soft_ttl=20.0),
        ]
        self.sessions = [self.world.sessions.open() for _ in range(2)]

    def _through_faults(self, effect: Effect) -> Any:
        self.world.seconds += self.lag
        try:
            if isinstance(effect, Load) or not self.trouble:
                return self._perform(effect)
            if self.trouble == "no answer":
                self._perform(effect)
            raise TierError(self.trouble)
        finally:
            self.world.seconds += self.lag

    # -- writers and time

    @rule(id_=ids, publishes=st.booleans(), says_version=st.sampled_from([True, True, True, False]))
    def commit(self, id_: str, publishes: bool, says_version: bool) -> None:
        """A transaction."""
        self.world.commit(id_, publishes=publishes, says_version=says_version)

    @rule(id_=ids, who=st.integers(0, 1))
    def commit_in_session(self, id_: str, who: int) -> None:
        """A transaction of a session."""
        self.sessions[who].wrote(ENTITY, id_, self.world.commit(id_, publishes=True))

    @rule(id_=ids, says_version=st.sampled_from([True, True, False]))
    def commit_and_apply(self, id_: str, says_version: bool) -> None:
        """A transaction whose event is applied everywhere before anything else happens: the usual case."""
        self.world.commit(id_, publishes=True, says_version=says_version)
        while self.consumers[-1].is_behind:
            self.consumers[-1].apply(10)
        for process in self.processes:
            while process.apply():
                pass

    @precondition(lambda self: self.world.outbox)
    @rule(pick=picks)
    def publish(self, pick: int) -> None:
        """An event reaches the log, before or after others."""
        self.world.log.append(self.world.outbox.pop(pick % len(self.world.outbox)))

    @rule(id_=ids)
    def replicate(self, id_: str) -> None:
        """The replica catches up by one version."""
        self.world.replica[id_] = min(self.world.replica[id_] + 1, self.world.rows[id_])

    @rule(seconds=st.sampled_from([0.5, 7.0, 31.0, 700.0]))
    def pass_time(self, seconds: float) -> None:
        """Nothing happens."""
        self.world.seconds += seconds

    @rule(
        lag=st.sampled_from([0.0, 0.0, 0.1, 8.0]),
        source=st.sampled_from(["primary", "primary", "replica", "stubborn", "down"]),
        trouble=st.sampled_from(["", "", "", "refused", "no answer"]),
    )
    def change_conditions(self, lag: float, source: str, trouble: str) -> None:
        """From now on everything takes that long, there and back; loaders read elsewhere; and readers cannot reach
        Redis, or Redis does what they ask and they do not hear of it."""
        self.lag, self.world.source, self.trouble = lag, source, trouble
        self.sources.add(source)

    # -- consumers

    @rule(who=picks, events=st.integers(0, 3))
    def consume(self, who: int, events: int) -> None:
        """One of the consumers applies a batch: the owner of the partition, or one that was."""
        self.consumers[who % len(self.consumers)].apply(events)

    @rule(what=st.sampled_from(["commits its offset", "dies", "loses its partition"]))
    def upset_consumer(self, what: str) -> None:
        """What befalls the owner of the partition. Having lost it, it may apply what it has read all the same."""
        if what == "commits its offset":
            self.committed = self.consumers[-1].lane.done
            return
        if what == "dies":
            self.consumers.pop()
        self.consumers = [*self.consumers[-CONSUMERS_MAX + 1 :], Consumer(self.world, self.committed, is_first=False)]

    # -- Redis

    @rule(id_=ids)
    def evict(self, id_: str) -> None:
        """Redis is short of memory."""
        self.backend.evict(record_name(ENTITY, id_))

    @rule(what=st.sampled_from(["is flushed", "replicates", "replicates", "fails over"]))
    def upset_redis(self, what: str) -> None:
        """Somebody types FLUSHALL; the standby has everything; the standby takes over, without what came since."""
        if what == "is flushed":
            self.backend.flush()
        elif what == "replicates":
            self.standby = self.backend.snapshot()
        else:
            self.backend.restore(self.standby)

    # -- feeds

    @rule(who=st.integers(0, 1), events=st.integers(1, 3))
    def feed(self, who: int, events: int) -> None:
        """A process reads events."""
        for _ in range(events):
            self.processes[who].apply()

    @rule(who=st.integers(0, 1))
    def miss(self, who: int) -> None:
        """A process misses events."""
        self.processes[who].feed.miss()

    @rule(who=st.integers(0, 1))
    def consult(self, who: int) -> None:
        """A process asks the shared tier how far it is."""
        self.processes[who].feed.consult()

    # -- readers

    @precondition(lambda self: len(self.readings) < READS_MAX)
    @rule(id_=ids, who=st.integers(0, 2), session=st.sampled_from([None, None, 0, 1]), policy=policies)
    def read(self, id_: str, who: int, session: int | None, policy: Policy | None) -> None:
        """A read begins."""
        of = None if session is None else self.sessions[session]
        self.readings.append(Reading(self.world, self.processes[who], id_, of, policy))

    @precondition(lambda self: self.readings)
    @rule(pick=picks, steps=st.integers(1, 4), gives_up=st.booleans())
    def step(self, pick: int, steps: int, gives_up: bool) -> None:
        """A read goes on."""
        reading = self.readings[pick % len(self.readings)]
        for _ in range(steps):
            reading.steps.step(gives_up=gives_up)
        self._judge()

    @precondition(lambda self: self.readings)
    @rule(pick=picks)
    def step_once(self, pick: int) -> None:
        """Most of what happens is that reads go on."""
        self.step(pick, 1, gives_up=False)

    @precondition(lambda self: self.readings)
    @rule()
    def finish(self) -> None:
        """The oldest read goes on to its end."""
        self.readings[0].steps.finish()
        self._judge()

    @precondition(lambda self: self.world.background)
    @rule(pick=picks)
    def step_in_background(self, pick: int) -> None:
        """Refreshing goes on."""
        background = self.world.background
        steps = background[pick % len(background)]
        steps.step(gives_up=True)
        if steps.is_done:
            background.remove(steps)

    def _judge(self) -> None:
        for reading in [reading for reading in self.readings if reading.steps.is_done]:
            self.readings.remove(reading)
            wrong = reading.judge()
            assert wrong is None, wrong
            self._may_fail(reading.steps)

    def _may_fail(self, steps: Stepper) -> None:
        failure = steps.failure
        is_down = isinstance(failure, SourceDownError) and "down" in self.sources
        is_old = isinstance(failure, CacheError) and failure.code == "RLY-913" and "stubborn" in self.sources
        assert failure is None or is_down or is_old, failure

    # -- what must hold

    @invariant()
    def what_is_old_will_go(self) -> None:
        """WITNESS: whatever is older than the database has something on its way that takes it away."""
        if not hasattr(self, "processes"):
            return
        owner = self.consumers[-1].lane.applied
        stored = self.tier.offsets.get((TOPIC, PARTITION), 0)
        forgot = self.tier.epoch is None or stored < owner
        for id_ in IDS:
            held = self.tier.held.get(record_name(ENTITY, id_))
            record = decode_record(held.data) if held and held.until_ms > self.world.clock_ms() else None
            if record is not None and record.epoch == self.tier.epoch and record.has_value:
                assert record.payload.decode() == text_of(id_, record.version)
                assert forgot or self._is_right(id_, record.version, owner), f"Redis holds {record}"
            assert record is None or record.floor <= self.world.rows[id_], "a floor of the future"
        for process in self.processes[:2]:
            for entry in process.reader.space.entries.values():
                assert entry.value == text_of(entry.key, entry.version)
                assert entry.version >= process.floor(entry.key), "an entry below its floor"
                follows = process.feed.epoch == self.tier.epoch and not forgot
                is_right = self._is_right(entry.key, entry.version, process.feed.position)
                assert is_right or not follows, f"a process holds version {entry.version}"

    def _is_right(self, id_: str, version: int, applied: int) -> bool:
        if version >= self.world.rows[id_]:
            return True
        coming: list[Event] = [*self.world.outbox, *self.world.log[applied:]]
        return any(event.id == id_ and event.version > version for event in coming)

    def teardown(self) -> None:
        """Everything comes to its end, and then everybody reads what the database has."""
        if not hasattr(self, "processes"):
            return
        self.world.source, self.trouble, self.lag = "primary", "", 0.0
        for steps in [*[reading.steps for reading in self.readings], *self.world.background]:
            steps.finish()
        self._judge()
        self.world.log += self.world.outbox
        self.world.outbox.clear()
        while self.consumers[-1].is_behind:
            self.consumers[-1].apply(10)
        self.consumers[-1].apply(0)
        for process in self.processes:
            while process.apply():
                pass
            for _ in range(3 if process.feed is not None else 0):
                process.feed.consult()
        for process in [*self.processes, Process(self.world, has_local=False)]:
            for id_ in IDS:
                last = Reading(self.world, process, id_)
                last.steps.finish()
                assert last.found is not None
                assert last.found.version == self.world.rows[id_], f"{last.found}, not {self.world.rows[id_]}"
