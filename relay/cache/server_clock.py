"""What the shared tier's clock shows, as far as this process knows: the ages of its records are measured with that."""

from __future__ import annotations

from typing import Final

RELEARN_SECONDS: Final = 60.0
"""After so long an estimate is made anew: clocks drift, and a server's may be set."""


class ServerClock:
    """An upper bound of the server's time, from the latest answer that carried it.

    The answer was written after the question was sent, so the time since the sending is added to it: ages come out too
    great by at most one round trip, and never too small.
    """

    def __init__(self) -> None:
        self._offset_ms: float | None = None
        self._learnt = float("-inf")

    def learn(self, server_ms: int, sent: float) -> None:
        """An answer said this time; its question was sent at this moment of the process' clock."""
        self._offset_ms = server_ms - sent * 1000
        self._learnt = sent

    def is_known(self, now: float) -> bool:
        """Whether there is an estimate that is not too old."""
        return self._offset_ms is not None and now - self._learnt < RELEARN_SECONDS

    def now_ms(self, now: float) -> float | None:
        """What the server's clock shows, or a little more; None if nothing was heard of it yet."""
        return None if self._offset_ms is None else self._offset_ms + now * 1000

    def age(self, at_ms: int, now: float) -> float | None:
        """Seconds since that time of the server, at most; None if nothing was heard of it yet."""
        if self._offset_ms is None:
            return None
        return max(0.0, (self._offset_ms - at_ms) / 1000 + now)
