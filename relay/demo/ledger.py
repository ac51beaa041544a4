"""What was written and what was read, side by side: the figures of the view, and the material of the verdict."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from relay.demo.history import Record, Written

WINDOW_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts since the start; rate and latencies of the last ten seconds, latencies in seconds."""

    written: int
    published: int
    repeated: int
    rate: float
    p50: float | None
    p99: float | None


class Ledger:
    """Both sides, kept in memory: the demo ends before that matters. Used from several threads."""

    def __init__(self, topic: str) -> None:
        self.written: list[Written] = []
        self.records: list[Record] = []
        self._topic = topic
        self._lock = threading.Lock()
        self._committed = 0
        self._committed_at: dict[str, float] = {}
        self._read_at: dict[str, float] = {}
        self._seen: set[str] = set()
        self._delays: deque[tuple[float, float]] = deque()

    def wrote(self, line: dict[str, Any]) -> None:
        """Takes one transaction of the application's journal."""
        with self._lock:
            for event_id, key, sequence, found in line["events"]:
                event = Written(event_id, self._topic, key.encode(), sequence, found, line["outcome"])
                self.written.append(event)
                if event.outcome == "committed":
                    self._committed += 1
                    self._meet(self._committed_at, self._read_at, event_id, line["at"])

    def read(self, record: Record, at: float) -> None:
        """Takes one record of the topic."""
        with self._lock:
            self.records.append(record)
            event_id = record.event_id
            if event_id is not None and event_id not in self._seen:
                self._seen.add(event_id)
                self._meet(self._read_at, self._committed_at, event_id, at)

    def figures(self) -> Figures:
        """The state of now."""
        with self._lock:
            since = time.time() - WINDOW_SECONDS
            while self._delays and self._delays[0][0] < since:
                self._delays.popleft()
            delays = sorted(delay for _, delay in self._delays)
            recent = sum(1 for at, _ in self._delays if at > since + WINDOW_SECONDS - 1)
            return Figures(
                written=self._committed,
                published=len(self._seen),
                repeated=len(self.records) - len(self._seen),
                rate=float(recent),
                p50=quantile(delays, 0.5),
                p99=quantile(delays, 0.99),
            )

    def _meet(self, mine: dict[str, float], other: dict[str, float], event_id: str, at: float) -> None:
        """The journal and the topic arrive on different ways: whichever comes second completes the pair."""
        there = other.pop(event_id, None)
        if there is None:
            mine[event_id] = at
        else:
            self._delays.append((time.time(), abs(at - there)))


def quantile(ordered: list[float], share: float) -> float | None:
    """The value below which this share lies; None if there is nothing."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


def in_words(seconds: float) -> str:
    """A delay as one reads it."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
