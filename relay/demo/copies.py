"""The side of the demo that reads: Redis, the consumer that keeps the copies in it right, and two services that read them.

Kafka ──▶ consumer ──▶ Redis ◀── service 1, service 2 ──▶ Postgres, for what is not there
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from relay.demo.children import Child, clean_environ
from relay.demo.redis import EmbeddedRedis
from relay.demo.staleness import ReadFigures, Staleness
from relay.errors import OperatorError

SERVICES: Final = ("service 1", "service 2")
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0


class Copies:
    """All of it, started together. `tick` is called a few times a second.

    Args:
        kafka: librdkafka's properties for clients.
        database: a URL for SQLAlchemy.
        redis_url: a Redis that is not ours; empty for one of our own.
        namespace_url: where the children find it.
    """

    def __init__(
        self, kafka: Mapping[str, Any], topic: str, database: str, say: Callable[[str], None], redis_url: str
    ) -> None:
        self.say = say
        self.staleness = Staleness()
        self.is_frozen = False
        self.applied = self.epochs = 0
        self.problems: list[str] = []
        self.server = None if redis_url else EmbeddedRedis()
        if self.server is not None:
            self.server.start()
        self.label = "Redis" + (" (given)" if redis_url else "")
        self._environ = clean_environ() | {
            "DEMO_KAFKA": json.dumps(dict(kafka)),
            "DEMO_TOPIC": topic,
            "DEMO_DATABASE": database,
            "DEMO_REDIS": redis_url if self.server is None else self.server.url,
        }
        self.consumer: Child | None = None
        self.services: dict[str, Child] = {}

    @property
    def can_flush(self) -> bool:
        """Whether the server is ours to hurt."""
        return self.server is not None

    @property
    def is_well(self) -> bool:
        """Whether the consumer works and knows of no problem."""
        return not self.is_frozen and not self.problems

    def start(self) -> None:
        """Starts the processes, and returns when they have read and applied something.

        Raises:
            OperatorError: one of them did not start; carries what it said.
        """
        self.consumer = Child(["relay.demo.consumer"], self._environ, self._on_consumer)
        for name in SERVICES:
            self.services[name] = Child(["relay.demo.service"], self._environ, self._on_service(name))
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
        if self.server is not None:
            self.server.flush()
            self.say("FLUSHALL: Redis is empty; what it says of versions is closed until the consumer has seen it")

    def toggle_consumer(self) -> None:
        """Freezes the consumer, or lets it go on."""
        assert self.consumer is not None
        self.is_frozen = not self.is_frozen
        self.consumer.send(signal.SIGSTOP if self.is_frozen else signal.SIGCONT)
        self.say("the consumer is frozen: copies grow old" if self.is_frozen else "the consumer thaws and catches up")

    def finish(self) -> None:
        """Stops the processes as a deploy would."""
        if self.is_frozen:
            self.toggle_consumer()
        children = [*self.services.values(), *([self.consumer] if self.consumer else [])]
        for child in children:
            child.tell("stop")
        for child in children:
            child.wait(STOP_SECONDS)

    def close(self) -> None:
        """Ends everything without ceremony. May be called twice."""
        for child in [*self.services.values(), *([self.consumer] if self.consumer else [])]:
            child.close()
        if self.server is not None:
            self.server.close()

    def _on_consumer(self, line: str) -> bool:
        if not line.startswith("{"):
            return False
        told = json.loads(line)
        if told["epochs"] > self.epochs and self.epochs:
            self.say("the consumer began a new epoch: whatever Redis held before is void")
        self.applied, self.epochs, self.problems = int(told["applied"]), int(told["epochs"]), told["problems"]
        return True

    def _on_service(self, name: str) -> Callable[[str], bool]:
        def on_line(line: str) -> bool:
            if not line.startswith("{"):
                return False
            self.staleness.read(name, json.loads(line))
            return True

        return on_line
