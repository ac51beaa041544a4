"""The shared tier on Redis or Valkey, for threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError
from redis.retry import Retry

from relay.cache.limits import TierLimits
from relay.cache.redis.commands import Commands, parsed, pool_of, read_page, read_time
from relay.cache.redis.connections import Connections
from relay.cache.redis.failures import FOREIGN, Breaker, tier_error
from relay.cache.redis.scripts import Call
from relay.cache.tiers import Applied, Bump, Lease, Page, Position, Progress, Put, Reject

T = TypeVar("T")


class RedisShared:
    """A `SharedTier` on one Redis. Safe for threads and forks; raises `TierError` and nothing else.

    Args:
        client: how to connect; its time-outs hold, and its retries should be none.
        namespace: of all keys.
        background: how those connect who can wait: consumers and feeds. By default as the readers do.
        breaker: when readers stop asking.
        commands: for simulations, which bring a clock and tokens of their own.

    Raises:
        CacheError: RLY-903, if the namespace or the client will not do.
    """

    def __init__(
        self,
        client: Redis,
        namespace: str,
        *,
        background: Redis | None = None,
        limits: TierLimits | None = None,
        breaker: Breaker | None = None,
        commands: Commands | None = None,
    ) -> None:
        self.commands = commands or Commands(namespace, limits or TierLimits())
        self.breaker = breaker or Breaker()
        self._readers = Connections(pool_of(client))
        self._background = Connections(pool_of(background or client))

    @classmethod
    def from_url(
        cls,
        url: str,
        namespace: str,
        *,
        timeout_seconds: float = 0.05,
        connect_timeout_seconds: float = 0.25,
        background_timeout_seconds: float = 2.0,
        limits: TierLimits | None = None,
        breaker: Breaker | None = None,
        **options: Any,
    ) -> Self:
        """Connects when it is first used.

        Args:
            url: redis://, rediss:// or unix://, with the options of redis-py.
            timeout_seconds: how long a reader waits for a reply.
            connect_timeout_seconds: how long a reader waits for a connection.
            background_timeout_seconds: how long a consumer or a feed waits for a reply.
            options: further arguments of `redis.Redis.from_url`.
        """
        clients = [
            Redis.from_url(
                url,
                **{
                    "socket_timeout": seconds,
                    "socket_connect_timeout": max(connect_timeout_seconds, seconds),
                    "socket_keepalive": True,
                    "retry": Retry(NoBackoff(), 0),
                    # The older protocol has all that is needed, and one round trip less when connecting.
                    "protocol": 2,
                    **options,
                },
            )
            for seconds in (timeout_seconds, background_timeout_seconds)
        ]
        return cls(clients[0], namespace, background=clients[1], limits=limits, breaker=breaker)

    def look(self, keys: Sequence[str]) -> Page:
        """As `SharedTier.look`."""
        commands = list(self.commands.look(keys))
        page: Page = self._guarded(lambda: parsed(read_page, self._readers.ask_all(commands), len(keys)))
        return page

    def lease(self, key: str, want: int, stamps: Sequence[str], *, refresh: bool) -> Lease:
        """As `SharedTier.lease`."""
        call = self.commands.lease(key, want, stamps, refresh=refresh)
        return self._guarded(lambda: _run(self._readers, call))

    def put(self, put: Put) -> Reject | None:
        """As `SharedTier.put`."""
        if len(put.payload) > self.commands.limits.value_bytes_max:
            self.release(put.key, put.lease)
            return Reject.TOO_LARGE
        return self._guarded(lambda: _run(self._readers, self.commands.put(put)))

    def release(self, key: str, lease: bytes) -> None:
        """As `SharedTier.release`."""
        self._guarded(lambda: _run(self._readers, self.commands.release(key, lease)))

    def apply(self, bumps: Sequence[Bump], stamps: Sequence[str], positions: Sequence[Position]) -> Applied:
        """As `SharedTier.apply`."""
        applied = Applied(None, lost=False)
        for call in self.commands.apply(bumps, stamps, positions):
            applied = self._patient(call)
            if applied.epoch is None or applied.lost:
                break
        return applied

    def open(self, cause: str, positions: Sequence[Position]) -> bytes:
        """As `SharedTier.open`."""
        return self._patient(self.commands.open(cause, positions))

    def progress(self) -> Progress:
        """As `SharedTier.progress`."""
        return self._patient(self.commands.progress())

    def time(self) -> int:
        """As `SharedTier.time`."""
        if self.commands.clock is not None:
            return self.commands.clock()
        return self._guarded(lambda: int(parsed(read_time, self._readers.ask(("TIME",)))))

    def close(self) -> None:
        """Closes the connections. Using the tier again opens new ones."""
        self._readers.close()
        self._background.close()

    def _guarded(self, ask: Callable[[], T]) -> T:
        """For readers: what is sick is not waited for."""
        breaker = self.breaker
        breaker.admit()
        try:
            answer = ask()
        except FOREIGN as error:
            failure = tier_error(error)
            breaker.failed(failure.reason)
            raise failure from error
        breaker.succeeded()
        return answer

    def _patient(self, call: Call[T]) -> T:
        """For consumers and feeds: they try again by themselves, and nobody waits for them."""
        try:
            return _run(self._background, call)
        except FOREIGN as error:
            raise tier_error(error) from error


def _run(connections: Connections, call: Call[T]) -> T:
    try:
        reply = connections.ask(call.by_digest())
    except NoScriptError:
        reply = connections.ask(call.by_text())
    meaning: T = parsed(call.parse, reply)
    return meaning
