"""Senders that a worker has stopped waiting for while records of theirs may still be on the wire.

A record on the wire may be appended at any time. Sent again by another producer, it would be in the log twice, and the
first copy might come last: behind newer records of its key. So the process keeps such a sender until it knows every
outcome, and meanwhile no worker of this process sends anything to the topics in question.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from relay.daemon.brokers import Brokers, Inquiry
from relay.daemon.floors import Floors
from relay.daemon.sender import Pending, Sender

INQUIRE_SECONDS = 1.0
SPARE_MAX = 4


@dataclass(slots=True)
class Kept:
    """One kept sender, with the topics that are held for it."""

    pending: Pending
    topics: set[str]
    inquiry: Inquiry | None = None
    inquire_at: float = 0.0

    def is_needed(self, now: float) -> bool:
        """Whether a record, or a late copy of one, may still be appended."""
        return bool(self.pending.sender.pending) or now < self.pending.sender.late_until

    def narrow(self, brokers: Brokers, now: float) -> None:
        """Lets go of topics whose records all have an outcome, as far as the sender tells."""
        if (left := self.pending.left()) is not None:
            self.topics &= left
            return
        if self.inquiry is None and now >= self.inquire_at:
            self.inquiry = brokers.inquire(self.topics)
        if self.inquiry is None or (sick := self.inquiry.answer()) is None:
            return
        if self.pending.only(sick):
            self.topics &= sick.keys()
        self.inquiry, self.inquire_at = None, now + INQUIRE_SECONDS


class Unanswered:
    """The kept senders of one process. Every method may be called from any thread."""

    def __init__(self, floors: Floors, brokers: Brokers, clock: Callable[[], float] = time.monotonic) -> None:
        self._floors = floors
        self._brokers = brokers
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: list[Kept] = []
        self._spare: list[Sender] = []

    def keep(self, pending: Pending, topics: Collection[str]) -> None:
        """Takes a sender over. From here on the topics are held, so call this before their lanes are free."""
        with self._lock:
            self._kept.append(Kept(pending, set(topics)))
            self._floors.hold(self._held())

    def serve(self) -> set[str]:
        """Serves what is kept; returns the topics that are free again."""
        with self._lock:
            if not self._kept:
                return set()
            before, now = self._held(), self._clock()
            for kept in self._kept:
                # What a broker let go of goes back into the queue. Sent now it might land behind another relay's.
                kept.pending.sender.purge_unsent()
                # After a late copy became possible, outcomes no longer say that nothing can come.
                if not kept.pending.sender.late_until:
                    kept.narrow(self._brokers, now)
            done = [kept.pending.sender for kept in self._kept if not kept.is_needed(now)]
            self._spare = [sender for sender in (*self._spare, *done) if sender.may_go_on][-SPARE_MAX:]
            self._kept = [kept for kept in self._kept if kept.is_needed(now)]
            after = self._held()
            if after != before:
                self._floors.hold(after)
            return before - after

    def take_spare(self, batch_bytes: int, *, is_exact: bool) -> Sender | None:
        """Returns a sender that was kept and may go on, or None: a new one needs connections and a producer id."""
        with self._lock:
            for sender in self._spare:
                if sender.is_exact == is_exact and sender.batch_bytes == batch_bytes:
                    self._spare.remove(sender)
                    return sender
            return None

    def __len__(self) -> int:
        return len(self._kept)

    def _held(self) -> set[str]:
        return set().union(*(kept.topics for kept in self._kept))
