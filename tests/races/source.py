"""The database of a race: one row, a replica that may lag, and loads that can be held between reading and returning."""

from __future__ import annotations

import threading
from dataclasses import dataclass

WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Row:
    """What a load returns. The value None says that there is no such row; versions outlive it."""

    value: str | None
    version: int


class Source:
    """One row that all steps of a race are about."""

    def __init__(self) -> None:
        self.primary = Row("A", 1)
        self.replica: Row | None = None
        """What reads get while it is set, unless they insist on the primary."""
        self.has_raised = False
        """A reader was given an exception, though the row could be read."""
        self._held = threading.Event()
        self._has_read = threading.Event()
        self._let_go = threading.Event()

    def commit(self, value: str | None, *, seen_by_replica: bool = True) -> int:
        """Writes the row; its version."""
        before = self.primary
        self.primary = Row(value, before.version + 1)
        if not seen_by_replica:
            self.replica = before
        return self.primary.version

    def catch_up(self) -> None:
        """The replica has everything again."""
        self.replica = None

    def hold(self) -> None:
        """The next load waits, after it has read, until `release`."""
        self._has_read.clear()
        self._let_go.clear()
        self._held.set()

    def wait_read(self) -> None:
        """Returns when the held load has read."""
        assert self._has_read.wait(WAIT_SECONDS), "nobody loads"

    def release(self) -> None:
        """Lets the held load return."""
        self._let_go.set()

    def load(self, *, primary: bool = False) -> Row:
        """What a loader does. Blocks while it is held."""
        row = self.primary if primary or self.replica is None else self.replica
        if self._held.is_set():
            self._held.clear()
            self._has_read.set()
            assert self._let_go.wait(WAIT_SECONDS), "nobody lets it go"
        return row
