"""What was published and could not be settled, and how long to wait before it is published again.

Settling may fail for as long as nobody mends its cause: a right was revoked, a trigger refuses the deletion, a
statement takes longer than its time-out. The rows stay in the outbox, and every further try publishes them once more.
So the pause between two tries grows, from five seconds to a minute, until a unit is settled whole.

Three kinds of failure:

    the connection is lost     reconnect, and go on at once; the second loss in a row waits
    the whole unit is refused  wait, then try again with care
    some rows are refused      with care, the others are settled; the topics of these rows wait
"""

from __future__ import annotations

import random
import threading
from collections.abc import Collection

import psycopg

from relay.core.backoff import backoff_seconds

FIRST_SECONDS = 10.0
CAP_SECONDS = 60.0
"""backoff_seconds draws between half of a pause and the whole: the first one lasts five seconds at least."""

CONNECTION_CLASSES = ("08", "57P")
CONNECTION_STATES = {"25006", "25P03", "25P04", "57P05"}


def is_connection_lost(error: psycopg.Error) -> bool:
    """Whether an error ends the connection. Any other one is the answer of a server that refuses a statement."""
    state = error.sqlstate
    return state is None or state.startswith(CONNECTION_CLASSES) or state in CONNECTION_STATES


class Unsettled:
    """The failures of one process since a unit was last settled whole. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refusals = 0
        self._losses = 0
        self._topics: dict[str, int] = {}
        self._until = 0.0

    @property
    def is_careful(self) -> bool:
        """Whether the next unit is settled row by row where need be."""
        return bool(self._refusals or self._topics)

    def seconds_left(self, now: float) -> float:
        """How long nothing may be published yet."""
        return max(0.0, self._until - now)

    def refused(self, now: float) -> float:
        """Notes that a published unit was refused as a whole; returns the pause in seconds."""
        with self._lock:
            self._refusals += 1
            return self._wait(self._refusals, now)

    def lost(self, now: float) -> float:
        """Notes that the connection was lost between publishing and the commit; returns the pause in seconds."""
        with self._lock:
            self._losses += 1
            return self._wait(self._losses - 1, now) if self._losses > 1 else 0.0

    def stuck(self, topics: Collection[str]) -> float:
        """Notes that rows of these topics could not be removed; returns how long the topics wait, in seconds."""
        with self._lock:
            for topic in topics:
                self._topics[topic] = self._topics.get(topic, 0) + 1
            return _pause(max(self._topics[topic] for topic in topics))

    def settled(self, topics: Collection[str]) -> bool:
        """Notes that a unit was settled, whole or but for its stuck rows. Returns whether that ends a trouble."""
        if not (self._refusals or self._losses or self._topics):
            return False
        with self._lock:
            was_careful = self.is_careful
            self._refusals = self._losses = 0
            for topic in topics:
                self._topics.pop(topic, None)
            return was_careful and not self.is_careful

    def _wait(self, attempt: int, now: float) -> float:
        seconds = _pause(attempt)
        self._until = max(self._until, now + seconds)
        return seconds


def _pause(attempt: int) -> float:
    return backoff_seconds(attempt, random.random(), first=FIRST_SECONDS, cap=CAP_SECONDS)  # noqa: S311
