"""How long to wait before the next try: exponential, capped, with full jitter."""

from __future__ import annotations


def backoff_seconds(attempt: int, draw: float, *, first: float = 0.1, cap: float = 5.0) -> float:
    """The pause before try number `attempt` (1, 2, ...). `draw` is uniform in [0, 1)."""
    ceiling = min(cap, first * 2.0 ** min(attempt - 1, 30))
    return ceiling * (0.5 + draw / 2)
