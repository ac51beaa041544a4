"""Whether Kafka is there, for all threads of a relay: nobody believes it before the brokers have answered.

Units say so by themselves: what cannot be published means that Kafka is lost. A relay that starts or has nothing to do
has to ask, since a wrong address, a wrong password or a lost cluster is to be seen before the first event waits for it.
"""

from __future__ import annotations

import threading

from relay.daemon.brokers import Brokers
from relay.daemon.state import State
from relay.logs import Logger
from relay.metrics import Metrics

ASK_SECONDS = 3.0
"""How long there must have been nothing to do before the brokers are asked, and the pause after each answer. With two
questions that nobody answers a loss is seen within ten seconds."""


class Presence:
    """What is known of Kafka. Safe from any thread."""

    def __init__(self, brokers: Brokers, state: State, metrics: Metrics, log: Logger) -> None:
        self._brokers = brokers
        self._state = state
        self._metrics = metrics
        self._log = log
        self._lock = threading.Lock()
        self._is_lost = False

    def run(self) -> None:
        """Asks now and then while nothing is published, until the relay stops. Workers ask while Kafka is away."""
        while not self._state.stop.wait(ASK_SECONDS):
            if self._state.kafka_up and self._state.idle_for() >= ASK_SECONDS and self._brokers.ask() is not None:
                # One question may have met a broker that is being restarted.
                self.answers()

    def answers(self) -> bool:
        """Asks, and notes that Kafka is lost if it does not answer."""
        cause = self._brokers.ask()
        if cause is not None:
            self.lost(cause)
        return cause is None

    def lost(self, cause: str) -> None:
        """Notes that Kafka is not available, with its own words if there are any; the first one is logged."""
        with self._lock:
            is_new, self._is_lost = not self._is_lost, True
            self._state.kafka_up = False
            self._state.problems["kafka"] = "RLY-701: Kafka is not available" + (f": {cause}" if cause else "")
        if is_new:
            self._state.kafka_lost_at = self._state.clock()
            self._metrics.kafka_losses.inc()
            hint = "events wait in the outbox; nothing is lost or parked"
            self._log.error("kafka.lost", code="RLY-701", reason=cause, hint=hint)

    def back(self) -> None:
        """Notes that Kafka may be used."""
        with self._lock:
            was_lost, self._is_lost = self._is_lost, False
            self._state.kafka_up = True
            self._state.problems.pop("kafka", None)
        if was_lost:
            self._log.info("kafka.back", away_s=round(self._state.clock() - self._state.kafka_lost_at, 1))

    @property
    def is_up(self) -> bool | None:
        """Whether Kafka is there; None until it was asked."""
        return True if self._state.kafka_up else False if self._is_lost else None

    @property
    def lost_for(self) -> float:
        """Seconds for which Kafka has not been available, 0 if it is."""
        return self._state.clock() - self._state.kafka_lost_at if self._is_lost else 0.0
