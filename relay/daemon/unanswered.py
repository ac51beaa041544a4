"""Senders that a worker has stopped waiting for while records of theirs may still be on the wire.

A record on the wire may be appended at any time. Sent again by another producer, it would be in the log twice, and the
first copy might come last: behind newer records of its key. So the process keeps such a sender until it knows every
outcome, and meanwhile no worker of this process sends anything to the topics in question.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection

from relay.daemon.floors import Floors
from relay.daemon.sender import Sender


class Unanswered:
    """The kept senders of one process. Every method may be called from any thread."""

    def __init__(self, floors: Floors, clock: Callable[[], float] = time.monotonic) -> None:
        self._floors = floors
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: list[tuple[Sender, set[str]]] = []

    def keep(self, sender: Sender, topics: Collection[str]) -> None:
        """Takes a sender over. From here on its topics are held, so call this before their lanes are free."""
        sender.forget_statistics()
        with self._lock:
            self._kept.append((sender, set(topics)))
            self._hold()

    def serve(self) -> set[str]:
        """Serves what is kept; returns the topics that are free again."""
        with self._lock:
            before = self._held()
            for sender, topics in self._kept:
                _serve(sender, topics)
            now = self._clock()
            self._kept = [(sender, topics) for sender, topics in self._kept if _is_needed(sender, now)]
            if before - self._held():
                self._hold()
            return before - self._held()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def topics(self) -> set[str]:
        """The topics that are held."""
        with self._lock:
            return self._held()

    def _held(self) -> set[str]:
        return set().union(*(topics for _, topics in self._kept))

    def _hold(self) -> None:
        self._floors.hold(self._held())


def _serve(sender: Sender, topics: set[str]) -> None:
    """Lets go of the topics that have no pending record any more, by the sender's own statistics."""
    sender.serve()
    if sender.late_until:
        # Its outcomes no longer say that no other copy can come.
        return
    if (pending := sender.pending_topics()) is not None:
        topics &= pending
        sender.forget_statistics()


def _is_needed(sender: Sender, now: float) -> bool:
    return bool(sender.pending) or now < sender.late_until
