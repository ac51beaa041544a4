"""What a consumer says of itself, at any time and from any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from relay.errors import CODES


class Problem(NamedTuple):
    """Something that keeps a consumer from its work, until it is solved."""

    code: str
    meaning: str
    detail: str
    since_seconds: float


@dataclass(frozen=True, slots=True)
class Health:
    """The state of a consumer or feed."""

    is_running: bool
    lag: Mapping[tuple[str, int], int | None]
    """For each partition that it owns: events that are not applied yet; None until the broker has told."""
    progress_age_seconds: float | None
    """How long ago everything that was fetched had been applied and acknowledged. None: never yet."""
    problems: tuple[Problem, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether it runs and knows of nothing that keeps it from its work."""
        return self.is_running and not self.problems


class Troubles:
    """The problems of now, each under the name of what has it. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, tuple[str, str, float]] = {}

    def begin(self, name: str, code: str, detail: str) -> bool:
        """Whether it is new."""
        with self._lock:
            is_new = name not in self._held
            since = time.monotonic() if is_new else self._held[name][2]
            self._held[name] = (code, detail, since)
            return is_new

    def end(self, name: str) -> float | None:
        """For how many seconds it was there; None if it was not."""
        if name not in self._held:
            return None
        with self._lock:
            held = self._held.pop(name, None)
        return None if held is None else time.monotonic() - held[2]

    def now(self) -> tuple[Problem, ...]:
        """All of them, the oldest first."""
        with self._lock:
            held = sorted(self._held.values(), key=lambda trouble: trouble[2])
        now = time.monotonic()
        return tuple(Problem(code, CODES[code], detail, now - since) for code, detail, since in held)
