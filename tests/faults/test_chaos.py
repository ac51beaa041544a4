"""Ten minutes in which everything that may break does so at random, several things at a time, and then the judge.

CHAOS_SECONDS sets the length, SEED the draws. Three limits are there to keep the run within what is promised: a broker
stands still either for less than the publish time-out or for so long that the cluster has replaced it, the publish
time-out is above the three seconds that this takes, and no other relay can take the lanes of one whose records are on
their way to a broker that stands still. What a relay has given up and a leader appends later all the same is "Not
guaranteed" in docs/GUARANTEES.md.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest

from relay.demo.postgres import EmbeddedPostgres
from tests.support import nemesis, scenario
from tests.support.kafka import KafkaCluster, fresh_topic
from tests.support.mending import Mending
from tests.support.postgres import fresh_database, private_server
from tests.support.proxy import TcpProxy
from tests.support.relay_process import RelayProcess
from tests.support.workload import Held

pytestmark = pytest.mark.faults

RELAYS = 3
PUBLISH_SECONDS = 4.0
TAKEOVER_SECONDS = 8.0
#: Longer waits than in single tests: three brokers, a database and three relays start again and again on two cores.
SETTINGS = {
    "RELAY_DAEMON__ROWS_MAX": "20",
    "RELAY_DAEMON__PUBLISH_TIMEOUT_SECONDS": f"{PUBLISH_SECONDS}",
    "RELAY_DAEMON__TAKEOVER_SECONDS": f"{TAKEOVER_SECONDS}",
    "RELAY_DATABASE__DEADLINE_SECONDS": "5",
    "RELAY_DATABASE__CONNECT_TIMEOUT_SECONDS": "2",
}


def chaos_seconds() -> float:
    """How long it goes on."""
    return float(os.environ.get("CHAOS_SECONDS", "") or 600)


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    with private_server(18) as server:
        yield server


@pytest.fixture
def own_kafka() -> Iterator[KafkaCluster]:
    with KafkaCluster(3) as cluster:
        yield cluster


@dataclass(kw_only=True)
class Chaos(Mending):
    """The parts that are hurt, and how."""

    run: scenario.Run
    postgres: EmbeddedPostgres
    dsn: str
    proxy: TcpProxy
    kafka: KafkaCluster

    def count(self, name: str, units: int = 0) -> None:
        """Notes a fault and how many units it may have cost."""
        self.counts[name] += 1
        self.run.losses += units

    @property
    def may_hand_over(self) -> bool:
        """Whether lanes may change hands: not while a broker stands still and will go on with what it was sent."""
        return self.is_free("stutter")

    def relay(self) -> RelayProcess | None:
        """One that is at work and not frozen."""
        able = [
            relay
            for relay in self.run.fleet.relays
            if relay.is_running and self.is_free(f"relay {relay.number}") and relay.events("relay.started")
        ]
        return self.run.draw.choice(able) if able else None

    # The faults, each with its name as it is counted.

    def kill(self) -> None:
        if self.may_hand_over and (relay := self.relay()):
            relay.kill9()
            self.count("kills")

    def stop(self) -> None:
        """Asks one to stop, as a deploy does; the keeper starts it again."""
        if relay := self.relay():
            relay.term()
            self.count("stops", nemesis.UNITS)

    def freeze(self) -> None:
        """For longer than the takeover time, or for less."""
        if relay := self.relay():
            relay.pause()
            self.count("freezes", nemesis.UNITS)
            seconds = self.run.draw.choice([1.0, TAKEOVER_SECONDS * 0.8, TAKEOVER_SECONDS + 2, TAKEOVER_SECONDS * 2])
            self.later(seconds, f"relay {relay.number}", lambda: relay.resume() if relay.is_running else None)

    def restart_postgres(self) -> None:
        if not self.may_hand_over or not self.is_free("network"):
            return
        how: nemesis.Stop = self.run.draw.choice(["fast", "immediate", "crash"])
        nemesis.count_stop(self.run, how)
        nemesis.stop_postgres(self.postgres, how)
        self.count("restarts")

    def cut(self) -> None:
        """Resets every connection of relays to the database."""
        if not self.may_hand_over:
            return
        self.proxy.cut()
        self.count("cuts", RELAYS * nemesis.UNITS)

    def cut_commit(self) -> None:
        self.proxy.cut_after(b"COMMIT\0", forward=self.run.draw.random() < 0.5)
        self.count("commits cut", 1)

    def silence(self) -> None:
        """The network between relays and the database swallows everything."""
        if not self.may_hand_over or not self.is_free("network"):
            return
        self.proxy.freeze(self.run.draw.choice(["up", "down", "both"]))
        self.count("silences", RELAYS * nemesis.UNITS)
        self.later(self.run.draw.choice([2.0, 7.0, 12.0]), "network", self.proxy.thaw)

    def stutter(self) -> None:
        """A broker stands still for less than anybody's patience."""
        if not self.is_free("kafka"):
            return
        index = self.run.draw.randrange(3)
        self.kafka.pause(index)
        self.count("stutters", RELAYS * nemesis.UNITS)
        seconds = self.run.draw.random()
        self.later(seconds, "kafka", lambda: self.kafka.resume(index))
        self.later(seconds, "stutter", lambda: None)

    def end_sessions(self) -> None:
        """The database ends a relay's sessions while all brokers stand still. The other relays do so as well, so that
        the lanes stay in its process, and wake up when the brokers have taken what it had sent."""
        relays = list(self.run.fleet.relays)
        broken = ["network", "kafka", "stutter", *[f"relay {relay.number}" for relay in relays]]
        if not self.is_free(*broken) or not all(relay.is_running and relay.events("relay.started") for relay in relays):
            return
        self.run.draw.shuffle(relays)
        victim, *others = relays
        seconds = 2 + self.run.draw.random() * 2
        for relay in others:
            relay.pause()
        for index in range(3):
            self.kafka.pause(index)
        self.outage("sessions ended in a stall", seconds)
        before = self.run.draw.random() * seconds / 2
        self.run.fleet.wait_seconds(before)
        nemesis.end_sessions(self.dsn, victim)
        self.run.fleet.wait_seconds(seconds - before)
        for index in range(3):
            self.kafka.resume(index)
        self.run.fleet.wait_seconds(1)
        for relay in others:
            relay.resume()

    def freeze_broker(self) -> None:
        """A broker stands still until the others have replaced it."""
        if not self.is_free("kafka"):
            return
        index = self.run.draw.randrange(3)
        self.kafka.pause(index)
        self.outage("brokers frozen", 15)

        def resume() -> None:
            self.kafka.resume(index)
            self.kafka.up()

        self.later(15, "kafka", resume)

    def kill_broker(self) -> None:
        if not self.is_free("kafka"):
            return
        self.kafka.kill(self.run.draw.randrange(3))
        seconds = 4 + self.run.draw.random() * 8
        self.outage("brokers killed", seconds)
        self.later(seconds, "kafka", self.kafka.up)

    def kill_all_brokers(self) -> None:
        if not self.is_free("kafka"):
            return
        self.kafka.down()
        seconds = 2 + self.run.draw.random() * 15
        self.outage("outages", seconds)
        self.later(seconds, "kafka", self.kafka.up)

    def outage(self, name: str, seconds: float) -> None:
        """While partitions have no leader, each worker gives up one unit after another; brokers take ten seconds to
        come back to all of them."""
        self.count(name, RELAYS * nemesis.UNITS * (1 + int((seconds + 10) / PUBLISH_SECONDS)))

    def hold(self) -> None:
        """A long writer, on keys of its own."""
        number = self.counts["long writers"]
        keys = [f"{kind}:{1000 + 10 * number + n}" for n in range(3) for kind in "tar"]
        try:
            held: Held = self.run.writers.hold(keys)
        except psycopg.OperationalError:
            return
        self.count("long writers")
        end = held.commit if self.run.draw.random() < 0.8 else held.rollback
        self.later(1 + self.run.draw.random() * 20, f"writer {number}", end)


FAULTS: dict[Callable[[Chaos], None], float] = {
    Chaos.kill: 10,
    Chaos.stop: 3,
    Chaos.freeze: 6,
    Chaos.restart_postgres: 3,
    Chaos.cut: 2,
    Chaos.cut_commit: 6,
    Chaos.silence: 2,
    Chaos.stutter: 4,
    Chaos.end_sessions: 5,
    Chaos.freeze_broker: 2,
    Chaos.kill_broker: 3,
    Chaos.kill_all_brokers: 1,
    Chaos.hold: 4,
}
"""How often each is drawn."""


def test_ten_minutes_of_chaos_keep_the_promise(own_postgres, own_kafka):
    """Whatever breaks, and however much at a time, nothing is lost, reordered or repeated beyond what was in flight."""
    topics = [fresh_topic(own_kafka), fresh_topic(own_kafka)]
    dsn = fresh_database(own_postgres)
    counts: Counter[str] = Counter()
    runs: list[scenario.Run] = []

    def break_everything(run: scenario.Run) -> None:
        runs.append(run)
        chaos = Chaos(run=run, postgres=own_postgres, dsn=dsn, proxy=proxy, kafka=own_kafka, counts=counts)
        faults, weights = list(FAULTS), list(FAULTS.values())
        until = time.monotonic() + run.seconds
        try:
            while time.monotonic() < until:
                run.draw.choices(faults, weights)[0](chaos)
                pause = time.monotonic() + run.draw.expovariate(0.7)
                while time.monotonic() < pause:
                    chaos.mend()
                    run.fleet.wait_seconds(0.05)
        finally:
            chaos.mend(all_of_it=True)
            proxy.heal()

    with TcpProxy(own_postgres.port) as proxy:
        started = time.monotonic()
        verdict = scenario.run(
            nemesis.through(proxy, dsn),
            own_kafka.bootstrap,
            topics,
            relays=RELAYS,
            nemesis=break_everything,
            seconds=chaos_seconds(),
            settings=SETTINGS,
            writer_dsn=dsn,
            drain_seconds=90,
        )
    faults = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    print(f"chaos: {time.monotonic() - started:.0f} s, {verdict.events} events, {faults}")
    allowed = (runs[0].fleet.kills * nemesis.UNITS + runs[0].losses) * int(SETTINGS["RELAY_DAEMON__ROWS_MAX"])
    print(f"chaos: {verdict.repeated} repeats of {allowed} allowed, the longest step back {verdict.longest_step_back}")
