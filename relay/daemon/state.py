"""What the parts of one relay process know of each other: is it stopping, is Kafka there, is there work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from relay.errors import RelayError


@dataclass(slots=True)
class State:
    """Shared by all threads of a relay; each field has one writer, or is an event."""

    clock: Callable[[], float] = time.monotonic
    stop: threading.Event = field(default_factory=threading.Event)
    work: threading.Event = field(default_factory=threading.Event)
    """Rung when there may be work: by a notification, by a worker that found some, and to stop."""
    asleep: threading.Event = field(default_factory=threading.Event)
    """Set while writers are asked to notify; only then may a worker wait for long."""
    kafka_up: bool = False
    """Whether units may be published. False until Kafka was asked."""
    kafka_lost_at: float = 0.0
    database_up: bool = True
    schema_ok: bool = True
    """Whether this relay sees all lanes and rows."""
    started: bool = False
    heartbeat: float = 0.0
    last_work: float = 0.0
    published: int = 0
    failure: RelayError | None = None
    """What `relay run` ends with, if it cannot do what was asked."""
    problems: dict[str, str] = field(default_factory=dict)
    """Code to text: what keeps this relay from working, for /readyz."""

    def beat(self) -> None:
        """Says that the loop turns."""
        self.heartbeat = self.clock()

    def ring(self) -> None:
        """Wakes whoever waits for work."""
        self.work.set()

    def found_work(self) -> None:
        """Notes that there was something to do, so that nobody falls asleep over it."""
        self.last_work = self.clock()

    def idle_for(self) -> float:
        """Seconds since there was something to do."""
        return self.clock() - self.last_work
