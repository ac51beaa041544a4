"""How long a worker may believe that the lanes of its unit are its own.

The database takes the lanes of a relay that stands still for longer than the takeover time. A process cannot see that
it stood still: after a pause of the whole machine even its monotonic clock may go on as if nothing had happened. So a
worker asks the database right before it sends, and again after every gap that any of its clocks shows. While it waits
for Kafka it watches the session, because a session that the database has ended has freed the lanes already.
"""

from __future__ import annotations

import time

import psycopg

from relay.daemon.store import Store

GAP_SECONDS = 0.5
"""A step between two sends is a few microseconds: more than this and the lanes have to be confirmed."""


def clocks() -> tuple[float, ...]:
    """Returns readings of all clocks of this machine. One may stand still while another one goes on."""
    boot = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else 0.0
    return time.monotonic(), boot, time.time()


def elapsed(since: tuple[float, ...], now: tuple[float, ...]) -> float:
    """Returns the seconds in between by the clock that shows most."""
    return max(late - early for early, late in zip(since, now, strict=True))


class Tenure:
    """The hold of one unit on its lanes, from the claim to the commit."""

    def __init__(self, store: Store, claimed: tuple[float, ...], seconds: float) -> None:
        self._store = store
        self._claimed = claimed
        self._seconds = seconds
        self._confirmed = claimed
        self.timestamp_ms = 0
        """The database's time when it was last asked: the records' time. A wrong clock of this host does not count."""
        self.is_lost = False
        """Whether the session has ended: its lanes are free, and perhaps somebody else's."""

    def confirm(self) -> None:
        """Asks the database. Raises psycopg.Error if the session, and with it every lane, is lost."""
        before = clocks()
        self.timestamp_ms = self._store.confirm()
        self._confirmed = before

    def holds(self) -> bool:
        """Whether more may be sent. Asks the database if a clock shows that this process may have stood still."""
        if self.is_over or self.is_lost:
            return False
        if elapsed(self._confirmed, clocks()) > GAP_SECONDS:
            try:
                self.confirm()
            except psycopg.Error:
                # The next statement of the unit says why.
                self.is_lost = True
        return not self.is_lost

    @property
    def is_over(self) -> bool:
        """Whether so much time has passed since the claim that the lanes may belong to another relay."""
        return elapsed(self._claimed, clocks()) > self._seconds

    def is_alive(self) -> bool:
        """Looks at the session without a round trip; False once it has ended. Stays False."""
        self.is_lost = self.is_lost or not self._store.is_alive()
        return not self.is_lost
