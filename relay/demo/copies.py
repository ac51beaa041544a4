"""The side of the demo that reads: a consumer that keeps the copies in Redis right, and two services that read them.

Kafka ──▶ consumer ──▶ Redis ◀── service 1, service 2 ──▶ Postgres, for what is not there
  └─────────────── feed ────────▶ service 1
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from relay.demo.children import Child, clean_environ
from relay.demo.redis_servers import RedisServer
from relay.demo.staleness import ReadFigures, Staleness
from relay.errors import OperatorError

SERVICES: Final = {"service 1": "both", "service 2": "shared"}
"""With the tiers that each has: only the first one has a copy in its own process, and a feed that keeps it right."""
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
LAG_MAX: Final = 80
"""Events behind which the consumer is still thought to keep up."""


class Copies:
    """All of it, started together. `tick` is called a few times a second.

    Args:
        kafka: librdkafka's properties for clients.
        database: a URL for SQLAlchemy.
    """

    def __init__(
        self, kafka: Mapping[str, Any], topic: str, database: str, redis: RedisServer, say: Callable[[str], None]
    ) -> None:
        self.redis = redis
        self.say = say
        self.staleness = Staleness()
        self.is_frozen = False
        self.applied = self.epochs = self.lag = 0
        self.problems: list[str] = []
        self._is_open: dict[str, bool] = {}
        self._environ = clean_environ() | {
            "DEMO_KAFKA": json.dumps(dict(kafka)),
            "DEMO_TOPIC": topic,
            "DEMO_DATABASE": database,
            "DEMO_REDIS": redis.url,
            "DEMO_NAMESPACE": redis.namespace,
        }
        self.consumer: Child | None = None
        self.services: dict[str, Child] = {}

    @property
    def is_open(self) -> bool:
        """Whether the process tiers may be served from."""
        return all(self._is_open.values())

    @property
    def is_well(self) -> bool:
        """Whether all of it works and is up to date."""
        return self.is_open and not self.is_frozen and not self.problems and self.lag < LAG_MAX

    def start(self) -> None:
        """Starts the processes, and returns when they have read and applied something.

        Raises:
            OperatorError: one of them did not start; carries what it said.
        """
        self.consumer = Child(["relay.demo.consumer"], self._environ, self._on_consumer)
        for name, tiers in SERVICES.items():
            environ = self._environ | {"DEMO_TIERS": tiers}
            self.services[name] = Child(["relay.demo.service"], environ, self._on_service(name))
        until = time.monotonic() + START_SECONDS
        while not self.applied or len(self.staleness.services) < len(SERVICES):
            for name, child in {"the consumer": self.consumer, **self.services}.items():
                if child.exit_code is not None or time.monotonic() > until:
                    raise OperatorError("RLY-604", f"{name} did not start: {child.last_words}")
            time.sleep(0.02)

    def figures(self) -> ReadFigures:
        """Of the reads so far."""
        return self.staleness.figures(time.time())

    def tick(self) -> None:
        """Notices a process that ended by itself.

        Raises:
            OperatorError: one did.
        """
        for name, child in {"the consumer": self.consumer, **self.services}.items():
            if child is not None and child.exit_code is not None:
                raise OperatorError("RLY-604", f"{name} ended by itself: {child.last_words}")

    def flush(self) -> None:
        """Empties Redis, as an operator does by mistake."""
        self.redis.flush()
        self.say("FLUSHALL: Redis is closed until the consumer begins a new epoch")

    def toggle_consumer(self) -> None:
        """Freezes the consumer, or lets it go on."""
        self.is_frozen = not self.is_frozen
        if self.consumer is not None:
            self.consumer.send(signal.SIGSTOP if self.is_frozen else signal.SIGCONT)
        if self.is_frozen:
            self.say("the consumer is frozen: service 2 reads what grows old in Redis")
        else:
            self.say("the consumer thaws")

    def repair(self) -> None:
        """Lets a frozen consumer go on."""
        if self.is_frozen:
            self.toggle_consumer()

    def await_newest(self, newest: Mapping[int, int], seconds: float) -> int:
        """The accounts of which some service still reads another version than the newest, after this time at most."""
        until = time.monotonic() + seconds
        while (behind := self.staleness.behind(newest)) and time.monotonic() < until:
            time.sleep(0.05)
        return behind

    def finish(self) -> None:
        """Stops the processes as a deploy would."""
        children = [*self.services.values(), *([self.consumer] if self.consumer else [])]
        for child in children:
            child.tell("stop")
        for child in children:
            child.wait(STOP_SECONDS)

    def close(self) -> None:
        """Ends the processes without ceremony. May be called twice."""
        for child in [*self.services.values(), *([self.consumer] if self.consumer else [])]:
            child.close()

    def _on_consumer(self, line: str) -> bool:
        if not line.startswith("{"):
            return False
        told = json.loads(line)
        if told["epochs"] > self.epochs and self.epochs:
            self.say("the consumer began a new epoch: whatever Redis held before is void")
        self.applied, self.epochs, self.lag = int(told["applied"]), int(told["epochs"]), int(told["lag"])
        self.problems = told["problems"]
        return True

    def _on_service(self, name: str) -> Callable[[str], bool]:
        def on_line(line: str) -> bool:
            if not line.startswith("{"):
                return False
            told = json.loads(line)
            self._is_open[name] = told["is_open"]
            self.staleness.read(name, told)
            return True

        return on_line
