"""How stale the reads of the demo's services were: the journal tells when each version was committed."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

SETTLE_SECONDS: Final = 1.0
"""The journal's lines come on another way than the reads: a read is judged when what it could have seen is known."""
COUNTERS: Final = ("hits", "all", "loads", "saved")


@dataclass(frozen=True, slots=True)
class Stale:
    """How stale some reads were: 0 for those that got the newest committed version. Times in seconds, to the ms."""

    reads: int = 0
    fresh: float = 1.0
    """The share of reads that got the newest committed version."""
    p50: float | None = None
    p99: float | None = None
    worst: float = 0.0


@dataclass(frozen=True, slots=True)
class ReadFigures:
    """Since the start."""

    reads: int = 0
    failed: int = 0
    """Got neither a copy nor a row."""
    marked: int = 0
    """Got an old copy because the source failed, and were told so."""
    older: int = 0
    """Got less than what had been applied, and were not told so: must be 0."""
    hit_rate: float = 0.0
    loads: int = 0
    saved: int = 0
    calm: Stale = Stale()
    """While nothing was broken."""
    overall: Stale = Stale()


class Histogram:
    """Stale times by the millisecond: what a few minutes of reads take is small, and quantiles stay exact."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._reads = 0

    def add(self, seconds: float) -> None:
        """One read; 0 for a fresh one. The shortest time is a millisecond: a stale read stays one."""
        self._reads += 1
        self._counts[0 if seconds <= 0 else max(1, round(seconds * 1000))] += 1

    def figures(self) -> Stale:
        """As of now."""
        if not self._reads:
            return Stale()
        wanted = [(name, int(self._reads * share)) for name, share in (("p50", 0.5), ("p99", 0.99))]
        found: dict[str, float] = {}
        passed = 0
        for ms, count in sorted(self._counts.items()):
            passed += count
            while wanted and passed > wanted[0][1]:
                found[wanted.pop(0)[0]] = ms / 1000
        fresh = self._counts[0] / self._reads
        return Stale(self._reads, fresh, found["p50"], found["p99"], max(self._counts) / 1000)


class Staleness:
    """Commits on one side, reads on the other. A read is stale since the next version was committed, if it was before
    the read began. Used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._commits: dict[tuple[int, int], float] = {}
        self._waiting: deque[tuple[int, int, float]] = deque()
        self._newest: dict[str, dict[int, int]] = {}
        self._turns: list[tuple[float, bool]] = []
        self._ended_at = float("inf")
        self._calm, self._overall = Histogram(), Histogram()
        self._reads = self._failed = self._marked = self._older = 0
        self._counters: dict[str, Mapping[str, float]] = {}

    def wrote(self, line: Mapping[str, Any]) -> None:
        """One transaction of the application's journal. A commit of unknown outcome proves nothing."""
        if line["outcome"] != "committed":
            return
        with self._lock:
            for _, key, version, _ in line["events"]:
                self._commits[int(key.rpartition(":")[2]), version] = line["at"]

    def read(self, service: str, line: Mapping[str, Any]) -> None:
        """What a service says."""
        with self._lock:
            self._waiting.extend(tuple(each) for each in line["reads"])
            self._newest.setdefault(service, {}).update((id_, version) for id_, version, _ in line["reads"])
            self._reads += len(line["reads"])
            self._older += line["older"]
            self._marked += line["marked"]
            self._failed += line["failed"]
            self._counters[service] = {name: line[name] for name in COUNTERS}

    def turn(self, at: float, *, is_calm: bool) -> None:
        """From now on something is broken, or nothing is."""
        with self._lock:
            if not self._turns or self._turns[-1][1] != is_calm:
                self._turns.append((at, is_calm))

    def end(self, at: float) -> None:
        """Nobody writes any more: what is read from now on is fresh without any merit, and not judged."""
        with self._lock:
            self._ended_at = at

    def behind(self, newest: Mapping[int, int]) -> int:
        """How many accounts were older, in the last read of some service, than these versions."""
        with self._lock:
            return sum(seen.get(id_, 0) < version for seen in self._newest.values() for id_, version in newest.items())

    @property
    def services(self) -> set[str]:
        """Which services have said anything."""
        with self._lock:
            return set(self._counters)

    def figures(self, now: float) -> ReadFigures:
        """The state of now, in wall-clock seconds."""
        with self._lock:
            self._judge(now - SETTLE_SECONDS)
            counters = self._counters.values()
            hits, reads, loads, saved = (sum(each[name] for each in counters) for name in COUNTERS)
            return ReadFigures(
                reads=self._reads,
                failed=self._failed,
                marked=self._marked,
                older=self._older,
                hit_rate=hits / reads if reads else 0.0,
                loads=int(loads),
                saved=int(saved),
                calm=self._calm.figures(),
                overall=self._overall.figures(),
            )

    def _judge(self, until: float) -> None:
        while self._waiting and self._waiting[0][2] < until:
            id_, version, began = self._waiting.popleft()
            if began > self._ended_at:
                continue
            seconds = max(0.0, began - self._replaced_at(id_, version))
            self._overall.add(seconds)
            if self._was_calm(began):
                self._calm.add(seconds)

    def _replaced_at(self, id_: int, version: int) -> float:
        """When the next version was committed, as far as the journal tells: unknown outcomes are passed over."""
        for later in (version + 1, version + 2):
            if (id_, later) in self._commits:
                return self._commits[id_, later]
        return float("inf")

    def _was_calm(self, at: float) -> bool:
        before = bisect_right(self._turns, at, key=lambda turn: turn[0])
        return before > 0 and self._turns[before - 1][1]
