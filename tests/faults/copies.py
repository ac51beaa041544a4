"""The parts of the read side as the chaos run has them, and what is done to them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psycopg
import redis as client

from relay.cache import RedisShared
from relay.cache.tiers import TierError
from relay.daemon.verification.knowledge import Name
from relay.daemon.verification.sources import Primary, Tail, Walk
from relay.demo.children import Child
from relay.demo.postgres import EmbeddedPostgres
from relay.demo.redis import EmbeddedRedis
from tests.support import nemesis
from tests.support.consumer_process import ConsumerProcess
from tests.support.consumers import fresh_group
from tests.support.kafka import KafkaCluster
from tests.support.mending import Mending
from tests.support.relay_process import Fleet, eventually

NAMESPACE = "chaos"
FACES = (
    {"face": "sync", "with_feed": True},
    {"face": "async", "with_feed": True},
    {"face": "sync", "with_feed": False},
)
PATIENCE = {"session.timeout.ms": 3000}
"""On a busy machine members would be thrown out all the time; frozen ones still are."""
PER_SECOND = 100
"""Reads of each reader, of which every twentieth is of fifty items."""


class Readers:
    """Two consumers of one group, and three services that read, each in a process of its own."""

    def __init__(self, redis: EmbeddedRedis, bootstrap: str, topic: str, dsn: str, count: int, traces: Path) -> None:  # noqa: PLR0917
        self.namespace = NAMESPACE
        self.counts: Counter[str] = Counter()
        self.broken: list[dict[str, Any]] = []
        self.probes: dict[float, list[int]] = {1.0: [0, 0], 10.0: [0, 0], 60.0: [0, 0]}
        self._redis, self._bootstrap, self._topic, self._traces = redis, bootstrap, topic, traces
        self._told = {"database": dsn, "bootstrap": bootstrap, "topic": topic, "redis": redis.url,
                      "namespace": NAMESPACE, "count": count, "per_second": PER_SECOND}  # fmt: skip
        group = fresh_group()
        self.consumers = [
            ConsumerProcess(
                bootstrap=bootstrap, topic=topic, group=group, redis=redis.url, namespace=NAMESPACE, properties=PATIENCE
            )
            for _ in range(2)
        ]
        self.services: list[Child] = []
        self._said: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        for consumer in self.consumers:
            consumer.start()
        self.services = [self._service(index) for index in range(len(FACES))]
        eventually(self._all_read, 60, "every reader to read something")
        return self

    def __exit__(self, *_: object) -> None:
        for service in self.services:
            service.close()
        for consumer in self.consumers:
            consumer.__exit__(None, None, None)

    def kill_service(self, index: int) -> None:
        """kill -9."""
        self.services[index].close()

    def start_service(self, index: int) -> None:
        """A new process in its place."""
        self.services[index] = self._service(index)

    def lag(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Partitions whose events the shared tier has not all applied: how far it is, and where they end."""
        tail = Tail({"bootstrap.servers": self._bootstrap}, self._topic)
        try:
            offsets = RedisShared.from_url(self._redis.url, NAMESPACE, timeout_seconds=5).progress().offsets
        except TierError:
            offsets = {}
        finally:
            tail.close()
        return {place: (offsets.get(place, 0), end) for place, end in tail.ends.items() if offsets.get(place, 0) < end}

    def wait_applied(self, seconds: float) -> None:
        """Returns when the shared tier has everything; if it does not get there, says what every consumer does."""
        try:
            eventually(lambda: not self.lag(), seconds, "the consumers to have applied everything")
        except TimeoutError:
            print("behind:", self.lag(), "statuses:", [consumer.status for consumer in self.consumers], flush=True)
            for consumer in self.consumers:
                if consumer.status is None:
                    consumer.send(signal.SIGABRT)
            raise

    def note(self, name: Name, found: dict[str, Any], trace: list[dict[str, Any]]) -> None:
        """A violation goes to a file, with its trace."""
        with self._lock, self._traces.open("a") as out:
            print(json.dumps({"name": [*name], **found, "trace": trace}), file=out)

    def tell_once_more(self) -> None:
        """Sums up what all of them have said, of all of their lives."""
        time.sleep(1.5)
        with self._lock:
            for said in self._said:
                self.counts.update(said.get("counts", {}))
                self.broken += said.get("broken", [])
                for total, (samples, violations) in zip(self.probes.values(), said.get("probes", ()), strict=False):
                    total[0] += samples
                    total[1] += violations

    def _all_read(self) -> bool:
        dead = [service.last_words for service in self.services if service.exit_code is not None]
        assert not dead, dead
        return sum(said.get("counts", {}).get("reads", 0) > 0 for said in self._said) >= len(FACES)

    def _service(self, index: int) -> Child:
        said: dict[str, Any] = {}
        self._said.append(said)

        def on_line(line: str) -> bool:
            if not line.startswith("{"):
                return False
            with contextlib.suppress(ValueError):  # the last line of one that was killed
                message = json.loads(line)
                if "violation" in message:
                    self.note(Name(*message.pop("violation")), {"reader": index, **message}, message.pop("trace"))
                else:
                    said.update(message)
            return True

        environ = os.environ | {"READER": json.dumps(self._told | FACES[index])}
        return Child(["tests.support.item_reader"], environ, on_line)


class Patient:
    """The primary, for a checker that outlives its restarts: a suspect may not be dropped because nobody could say."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.Connection[Any] | None = None

    def versions(self, names: list[Name]) -> list[int]:
        """Waits until the database answers."""
        deadline = time.monotonic() + 60
        while True:
            try:
                if self._connection is None:
                    self._connection = psycopg.connect(self._dsn, autocommit=True, connect_timeout=5)
                return Primary(self._connection).versions(names)
            except psycopg.OperationalError:
                self._connection = None
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    @staticmethod
    def of(walk: Walk) -> Callable[[], list[Name]]:
        """A walk through a Redis that may be away."""

        def names() -> list[Name]:
            try:
                return walk.names()
            except (client.RedisError, OSError) as error:
                raise TierError("scan") from error

        return names


@dataclass(kw_only=True)
class Copies(Mending):
    """What is hurt, and how."""

    draw: random.Random
    postgres: EmbeddedPostgres
    kafka: KafkaCluster
    redis: EmbeddedRedis
    fleet: Fleet
    readers: Readers
    failure: BaseException | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Mends everything and breaks nothing more."""
        self._stopping.set()

    def break_everything(self) -> None:
        """One fault after another, several at a time, until it is stopped."""
        faults, weights = list(FAULTS), list(FAULTS.values())
        try:
            while not self._stopping.is_set():
                self.draw.choices(faults, weights)[0](self)
                pause = time.monotonic() + self.draw.expovariate(0.5)
                while time.monotonic() < pause and not self._stopping.wait(0.05):
                    self.mend()
            self.mend(all_of_it=True)
        except BaseException as error:
            self.failure = error

    def kill_relay(self) -> None:
        """The keeper starts it again."""
        relay = self.draw.choice(self.fleet.relays)
        if relay.is_running and self.is_free(f"relay {relay.number}"):
            relay.kill9()
            self.counts["relays killed"] += 1

    def freeze_relay(self) -> None:
        relay = self.draw.choice(self.fleet.relays)
        if relay.is_running and self.is_free(f"relay {relay.number}") and relay.events("relay.started"):
            relay.pause()
            self.counts["relays frozen"] += 1
            seconds = self.draw.choice([1.0, 5.0, 13.0])
            self.later(seconds, f"relay {relay.number}", lambda: relay.resume() if relay.is_running else None)

    def kill_consumer(self) -> None:
        index = self.draw.randrange(2)
        if self.is_free(f"consumer {index}"):
            self.readers.consumers[index].kill()
            self.counts["consumers killed"] += 1
            self.later(self.draw.random() * 6, f"consumer {index}", self.readers.consumers[index].start)

    def freeze_consumer(self) -> None:
        """For longer than its session, or for less: a zombie applies what it had fetched when it wakes."""
        index = self.draw.randrange(2)
        consumer = self.readers.consumers[index]
        if self.is_free(f"consumer {index}"):
            consumer.send(signal.SIGSTOP)
            self.counts["consumers frozen"] += 1
            seconds = self.draw.choice([0.5, 3.0, 8.0, 14.0])
            self.later(seconds, f"consumer {index}", lambda: consumer.send(signal.SIGCONT))

    def deploy_consumer(self) -> None:
        """Stopped cleanly and started again: the group rebalances twice.

        Only while Kafka and Redis are there: until it has ended nothing else is mended, and it ends with a commit."""
        index = self.draw.randrange(2)
        if self.is_free(f"consumer {index}", "kafka", "redis"):
            self.readers.consumers[index].stop()
            self.counts["consumers deployed"] += 1
            self.later(self.draw.random() * 2, f"consumer {index}", self.readers.consumers[index].start)

    def flush_redis(self) -> None:
        if self.is_free("redis"):
            self.redis.flush()
            self.counts["flushes"] += 1

    def kill_redis(self) -> None:
        """It keeps nothing on disk."""
        if self.is_free("redis"):
            self.redis.kill()
            self.counts["redis killed"] += 1
            self.later(self.draw.random() * 4, "redis", self.redis.start)

    def freeze_redis(self) -> None:
        """What was sent meanwhile is done when it wakes: puts of readers that gave up long ago."""
        if self.is_free("redis"):
            self.redis.pause()
            self.counts["redis frozen"] += 1
            self.later(self.draw.choice([0.2, 1.0, 4.0]), "redis", self.redis.resume)

    def evict(self) -> None:
        """Redis runs out of memory for a while and throws out anything: records, leases, progress, the epoch."""
        if self.is_free("redis"):
            for setting in ("maxmemory-policy allkeys-random", "maxmemory 1600kb"):
                assert self.redis.say(f"CONFIG SET {setting}") == "+OK"
            self.counts["evictions"] += 1
            self.later(self.draw.random() * 4, "redis", lambda: self.redis.say("CONFIG SET maxmemory 0"))

    def freeze_kafka(self) -> None:
        if self.is_free("kafka"):
            self.kafka.pause(0)
            self.counts["brokers frozen"] += 1
            self.later(self.draw.choice([0.3, 2.0, 6.0]), "kafka", lambda: self.kafka.resume(0))

    def kill_kafka(self) -> None:
        if self.is_free("kafka"):
            self.kafka.kill(0)
            self.counts["brokers killed"] += 1
            self.later(self.draw.random() * 4, "kafka", self.kafka.up)

    def restart_postgres(self) -> None:
        how: nemesis.Stop = self.draw.choice(["fast", "immediate", "crash"])
        nemesis.stop_postgres(self.postgres, how)
        self.counts["databases restarted"] += 1

    def kill_reader(self) -> None:
        index = self.draw.randrange(len(FACES))
        if self.is_free(f"reader {index}"):
            self.readers.kill_service(index)
            self.counts["readers killed"] += 1
            self.later(self.draw.random() * 3, f"reader {index}", lambda: self.readers.start_service(index))

    def freeze_reader(self) -> None:
        """In the midst of a load, perhaps, under a lease that others take over."""
        index = self.draw.randrange(len(FACES))
        if self.is_free(f"reader {index}"):
            self.readers.services[index].send(signal.SIGSTOP)
            self.counts["readers frozen"] += 1
            seconds = self.draw.choice([0.3, 2.0, 9.0])
            self.later(seconds, f"reader {index}", lambda: self.readers.services[index].send(signal.SIGCONT))


FAULTS: dict[Callable[[Copies], None], float] = {
    Copies.kill_relay: 3,
    Copies.freeze_relay: 3,
    Copies.kill_consumer: 5,
    Copies.freeze_consumer: 5,
    Copies.deploy_consumer: 3,
    Copies.flush_redis: 4,
    Copies.kill_redis: 3,
    Copies.freeze_redis: 5,
    Copies.evict: 4,
    Copies.freeze_kafka: 3,
    Copies.kill_kafka: 1,
    Copies.restart_postgres: 2,
    Copies.kill_reader: 3,
    Copies.freeze_reader: 5,
}
"""How often each is drawn."""
