"""How long a worker may believe that the lanes of its unit are its own.

The database takes the lanes of a relay that stands still for longer than the takeover time. A process cannot see that
it stood still: after a pause of the whole machine even its monotonic clock may go on as if nothing had happened. So a
worker asks the database right before it sends, unless the answer with the rows has only just come, and again after
every gap that any of its clocks shows. It also watches the session, before it sends and while it waits for Kafka,
because a session that the database has ended has freed the lanes already.
"""

from __future__ import annotations

import psycopg

from relay.daemon.clocks import clocks, elapsed
from relay.daemon.store import Store, Unit

FRESH_SECONDS = 0.05
"""So old may an answer of the database be that needs no other one before the first record."""

GAP_SECONDS = 0.5
"""A step between two sends is a few microseconds: more than this and the lanes have to be confirmed."""


class Tenure:
    """The hold of one unit on its lanes, from the claim to the commit."""

    def __init__(self, store: Store, unit: Unit, claimed: tuple[float, ...], seconds: float) -> None:
        self._store = store
        self._claimed = claimed
        self._seconds = seconds
        self._confirmed = unit.asked
        self.timestamp_ms = unit.now_ms
        """The database's time when it was last asked: the records' time. A wrong clock of this host does not count."""
        self.is_lost = False
        """Whether the session has ended: its lanes are free, and perhaps somebody else's."""

    def confirm(self) -> None:
        """Asks the database, unless it has just answered. Raises psycopg.Error if the session, and with it every lane,
        is lost."""
        if elapsed(self._confirmed, clocks()) < FRESH_SECONDS and self._store.is_alive():
            return
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
