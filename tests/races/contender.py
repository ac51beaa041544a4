"""What a cache has to offer to take part in a race: a few steps, each of which has ended when it returns."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from tests.races.source import WAIT_SECONDS, Source


class Contender(Protocol):
    """One cache of one row, in two processes that share what is shared."""

    def read(self, process: int = 0) -> str | None:
        """Reads through the cache: a copy, or else the source."""
        ...

    def invalidate(self, version: int) -> None:
        """The row has changed to this version: what this cache's documentation says to do then."""
        ...

    def write_through(self, value: str, version: int) -> None:
        """The same by somebody who has the new value at hand."""
        ...

    def announce(self, version: int) -> None:
        """As `invalidate`, from inside of a transaction that will make this version."""
        ...

    def deliver(self) -> None:
        """What was written down in the transaction of a commit arrives, of those who have an outbox."""
        ...

    def evict(self) -> None:
        """Memory is short: what the race is about is thrown out, all of it or what hurts most."""
        ...

    def flush(self) -> None:
        """Everything shared is emptied, and whatever watches has seen it."""
        ...

    def close(self) -> None:
        """Ends everything."""
        ...


class Reading:
    """A read under way in a thread, held in its load."""

    def __init__(self, contender: Contender, source: Source) -> None:
        source.hold()
        self._source = source
        self._pool = ThreadPoolExecutor(1)
        self._future: Future[str | None] = self._pool.submit(contender.read)
        source.wait_read()

    def end(self) -> None:
        """Lets the load return, and waits for the read. If it raised, the source notes it."""
        self._source.release()
        if self._future.exception(WAIT_SECONDS) is not None:
            self._source.has_raised = True
        self._pool.shutdown()
