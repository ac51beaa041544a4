"""The feed of a process tier over a log that is a list: what it decides is the code's, only Kafka is not there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Final

from relay.cache.local import Local
from relay.cache.tiers import SharedTier
from relay.consumer.topology import Described, Shape
from relay.core.change import LIMITS
from tests.support.consumers import headers_of

TOPIC: Final = "changes"
PARTITION: Final = 0


class Logged:
    """An event as the Kafka client hands it out."""

    def __init__(self, entity: str, id_: str, version: int | None, offset: int) -> None:
        self._key = f"{entity}:{id_}".encode()
        self._headers = headers_of(entity, id_, version)
        self._offset = offset

    def error(self) -> None:
        """There is none."""

    def topic(self) -> str:
        """Its topic."""
        return TOPIC

    def partition(self) -> int:
        """Its partition."""
        return PARTITION

    def offset(self) -> int:
        """Its offset."""
        return self._offset

    def key(self) -> bytes:
        """Its key."""
        return self._key

    def value(self) -> bytes:
        """Something: the headers say it all."""
        return b"{}"

    def headers(self) -> Sequence[tuple[str, bytes]]:
        """Its headers."""
        return self._headers


class Broken:
    """What the client hands out in place of events that it could not read."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def code(self) -> int:
        """Of the error."""
        return 1

    def offset(self) -> int:
        """Where it goes on."""
        return self._offset

    def error(self) -> Broken:
        """The error is this very thing."""
        return self

    def name(self) -> str:
        """Of the error."""
        return "OFFSET_OUT_OF_RANGE"

    def str(self) -> str:
        """Of the error."""
        return "Broker: Offset out of range"

    def topic(self) -> str:
        """Where."""
        return TOPIC

    def partition(self) -> int:
        """Where."""
        return PARTITION


class _Client:
    def assign(self, _partitions: Any) -> None:
        """Nothing is fetched here: events are brought."""


class PlayedFeed:
    """Does what `relay.consumer.feed` does around a follower: when it gives up, the tier closes and another one joins.

    Args:
        module: `relay.consumer.follower`, or an edited copy of it. Its questions to the brokers are answered here.
        end: where the log ends.
    """

    def __init__(self, module: ModuleType, local: Local, shared: SharedTier | None, end: Callable[[], int]) -> None:
        self._module = module
        self._local = local
        self._shared = shared
        self._end = end
        self.position = 0
        """All events below have been read."""
        self._join()

    @property
    def epoch(self) -> bytes | None:
        """The epoch under which it opened the tier; None if it has not."""
        epoch: bytes | None = self._follower._epoch
        return epoch

    def apply(self, entity: str, id_: str, version: int | None) -> None:
        """The next event arrives."""
        event = Logged(entity, id_, version, self.position)
        self.position += 1
        self._try(lambda: self._follower._apply([event]))

    def miss(self) -> None:
        """Events are gone before they could be read."""
        self.position = self._end()
        self._try(lambda: self._follower._apply([Broken(self.position)]))

    def consult(self) -> None:
        """Asks the shared tier how far it is, as once a second."""
        self._try(lambda: self._follower._consult(self._ticket, time.monotonic()))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except self._module._GapError as gap:
            self._local.close(str(gap))
            self._join()

    def _join(self) -> None:
        module = self._module
        module.describe = lambda *_: Described({TOPIC: Shape("id", 1)}, [], {})  # type: ignore[attr-defined]
        module.offsets = lambda *_: {(TOPIC, PARTITION): self._end()}  # type: ignore[attr-defined]
        self._follower = module.Follower(
            {}, [TOPIC], self._local, self._shared, limits=LIMITS, on_proof=lambda _seconds: None, name="played"
        )
        self._ticket = self._follower._join(_Client(), None)
        self.position = self._end()
