"""How stale the reads of the demo's services were: the journal tells when each version was committed."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from relay.demo.ledger import quantile

SETTLE_SECONDS: Final = 1.0
"""The journal's lines come on another way than the reads: a read is judged when what it could have seen is known."""
KEPT_MAX: Final = 200_000


@dataclass(frozen=True, slots=True)
class ReadFigures:
    """Since the start. `fresh` is the share of reads that got the newest committed version; stale times in seconds."""

    reads: int = 0
    failed: int = 0
    older: int = 0
    hit_rate: float = 0.0
    loads: int = 0
    saved: int = 0
    fresh: float = 1.0
    p99: float | None = None
    worst: float = 0.0


class Staleness:
    """Commits on one side, reads on the other. A read is stale since the next version was committed, if it was before
    the read began. Used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._commits: dict[tuple[int, int], float] = {}
        self._waiting: deque[tuple[int, int, float]] = deque()
        self._stale: list[float] = []
        self._judged = self._reads = self._failed = self._older = 0
        self._worst = 0.0
        self._counters: dict[str, dict[str, float]] = {}

    def wrote(self, line: dict[str, Any]) -> None:
        """One transaction of the application's journal. A commit of unknown outcome proves nothing."""
        if line["outcome"] != "committed":
            return
        with self._lock:
            for _, key, version, _ in line["events"]:
                self._commits[int(key.rpartition(":")[2]), version] = line["at"]

    def read(self, service: str, line: dict[str, Any]) -> None:
        """What a service says."""
        with self._lock:
            self._waiting.extend(tuple(each) for each in line["reads"])
            self._reads += len(line["reads"])
            self._older += line["older"]
            self._failed += line["failed"]
            self._counters[service] = {name: line[name] for name in ("hits", "all", "loads", "saved")}

    @property
    def services(self) -> set[str]:
        """Which services have said anything."""
        with self._lock:
            return set(self._counters)

    def figures(self, now: float) -> ReadFigures:
        """The state of now, in wall-clock seconds."""
        with self._lock:
            self._judge(now - SETTLE_SECONDS)
            totals = {
                name: sum(each[name] for each in self._counters.values()) for name in ("hits", "all", "loads", "saved")
            }
            stale = len(self._stale)
            # Only the stale ones are kept; the fresh ones come first in the order, with nothing.
            rank = int(self._judged * 0.99) - (self._judged - stale)
            ordered = sorted(self._stale)
            p99 = None if not self._judged else 0.0 if rank < 0 else quantile(ordered, rank / max(1, stale))
            return ReadFigures(
                self._reads,
                self._failed,
                self._older,
                totals["hits"] / totals["all"] if totals["all"] else 0.0,
                int(totals["loads"]),
                int(totals["saved"]),
                1 - stale / self._judged if self._judged else 1.0,
                p99,
                self._worst,
            )

    def _judge(self, until: float) -> None:
        while self._waiting and (self._waiting[0][2] < until):
            id_, version, began = self._waiting.popleft()
            self._judged += 1
            next_at = self._commits.get((id_, version + 1))
            if next_at is not None and next_at < began:
                self._worst = max(self._worst, began - next_at)
                if len(self._stale) < KEPT_MAX:
                    self._stale.append(began - next_at)
