"""Every clock of this machine: a process that stood still may see it on one of them and not on another."""

from __future__ import annotations

import time


def clocks() -> tuple[float, ...]:
    """Returns readings of all clocks of this machine. One may stand still while another one goes on."""
    boot = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else 0.0
    return time.monotonic(), boot, time.time()


def elapsed(since: tuple[float, ...], now: tuple[float, ...]) -> float:
    """Returns the seconds in between by the clock that shows most."""
    return max(late - early for early, late in zip(since, now, strict=True))
