"""What can go wrong between a process and its Redis, told in few words; and when to stop asking for a while."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import Final

from redis import exceptions

from relay.cache.tiers import TierError

FOREIGN: Final = (exceptions.RedisError, OSError, UnicodeError)
"""What redis-py raises when the server or the way to it is to blame. `asyncio.TimeoutError` is an OSError, and a host
that cannot be one is a UnicodeError."""

_CODES: Final = {
    "OOM": "memory",
    "READONLY": "readonly",
    "LOADING": "loading",
    "CLUSTERDOWN": "cluster",
    "MOVED": "cluster",
    "ASK": "cluster",
    "CROSSSLOT": "cluster",
    "TRYAGAIN": "cluster",
    "MASTERDOWN": "readonly",
    "NOREPLICAS": "readonly",
    "MISCONF": "readonly",
    "NOAUTH": "auth",
    "WRONGPASS": "auth",
    "NOPERM": "auth",
    "WRONGTYPE": "wrongtype",
    "BUSY": "busy",
    "NOSCRIPT": "script",
}
_CODE = re.compile(r"\b(" + "|".join(_CODES) + r")\b")
_CLASSES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (exceptions.TimeoutError, "timeout"),
    (TimeoutError, "timeout"),
    (exceptions.AuthenticationError, "auth"),
    (exceptions.NoPermissionError, "auth"),
    (exceptions.MasterDownError, "readonly"),
    (exceptions.ClusterError, "cluster"),
    (exceptions.AskError, "cluster"),
    (exceptions.TryAgainError, "cluster"),
    (exceptions.ClusterCrossSlotError, "cluster"),
    (exceptions.OutOfMemoryError, "memory"),
    (exceptions.ReadOnlyError, "readonly"),
    (exceptions.BusyLoadingError, "loading"),
    (exceptions.MaxConnectionsError, "connections"),
    (exceptions.InvalidResponse, "reply"),
)
UNANSWERED: Final = frozenset({"timeout", "connection", "connections", "loading", "reply"})
"""Nobody gets an answer. The other reasons concern some operations: a server without memory is still read."""


def tier_error(error: Exception) -> TierError:
    """Never the server's words: it repeats arguments in them."""
    for kind, reason in _CLASSES:
        if isinstance(error, kind):
            return TierError(reason)
    if isinstance(error, exceptions.ResponseError):
        code = _CODE.search(str(error))
        return TierError(_CODES[code[0]] if code else "refused")
    if isinstance(error, (exceptions.ConnectionError, OSError, UnicodeError)):
        code = _CODE.search(str(error))
        return TierError(_CODES[code[0]] if code else "connection")
    return TierError("client")


class Breaker:
    """Keeps readers from waiting for a server that does not answer.

    After `failures_max` failures in a row nobody asks for a while; then one caller does, and the others go on without.
    The while doubles with each failure, from the first of the two bounds to the second. It is drawn between half of
    that and one and a half, so that processes do not come back together. Safe for threads: at worst two of them probe.
    """

    def __init__(
        self,
        failures_max: int = 1,
        bypass_seconds: tuple[float, float] = (0.1, 5.0),
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._failures_max = failures_max
        self._shortest, self._longest = bypass_seconds
        self._clock = clock
        self._draw = draw
        self._failures = 0
        self._until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the server is being bypassed."""
        return self._failures >= self._failures_max

    def admit(self) -> None:
        """Lets a caller pass who is to find out whether the server answers again.

        Raises:
            TierError: bypassed.
        """
        if not self.is_open:
            return
        now = self._clock()
        if now < self._until:
            raise TierError("bypassed")
        # If the prober is never heard of again, the next one goes after as long again.
        self._until = now + self._while()

    def succeeded(self) -> None:
        """The server answered."""
        self._failures = 0

    def failed(self, reason: str) -> None:
        """The server did not answer, or refused."""
        if reason in UNANSWERED:
            self._failures += 1
            if self.is_open:
                self._until = self._clock() + self._while()

    def _while(self) -> float:
        times = min(self._failures - self._failures_max, 16)
        return min(self._longest, self._shortest * 2.0**times) * (0.5 + self._draw())
