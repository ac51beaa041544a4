"""Sessions: whoever wrote reads what was written, and nobody sees a value grow older.

    with cache.session(token) as session:
        version = touch(database, "user", 42)
        database.commit()
        session.wrote("user", 42, version)     # after the commit: a version that was rolled back must not be waited for
        user.read(42, policy=Session())        # at this version or above, on every tier
        token = session.token()                # for the next request, in a cookie or header

The session of a thread or task is a context variable: tasks and `asyncio.to_thread` inherit it. A thread that you start
yourself enters it with `with session:`, at the same time as others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Final, Self, TypeVar
from uuid import UUID

from relay.cache.numbers import SESSION_TOKENS, Metric, Recorder
from relay.core.record import VERSION_MAX
from relay.core.token import (
    KEY_BYTES_MIN,
    NOTHING,
    Floor,
    Floors,
    Refusal,
    Ticket,
    fingerprint,
    higher,
    merged,
    signed,
    signed_ticket,
    trimmed,
    verified,
    verified_ticket,
)
from relay.errors import CacheError

PRIMARY: Final = -1
"""What `least` says of an entity for which no copy will do: read the primary, then `observe`."""
FLOORS_IN_MEMORY_MAX: Final = 4096
"""A session that has seen more entities forgets the oldest, and sends them to the primary."""

Id = str | int | UUID
T = TypeVar("T")

CURRENT: ContextVar[OpenSession | None] = ContextVar("relay_session", default=None)
"""The session of this thread or task. The read path asks it for `least` and tells it what it gave, with `observe`."""
_OUTER: ContextVar[tuple[OpenSession | None, ...]] = ContextVar("relay_outer_sessions", default=())


def current_session() -> OpenSession | None:
    """The session that this thread or task is in: for code that writes and did not open it."""
    return CURRENT.get()


class OpenSession:
    """The floors of one session. Safe to be used by many threads and tasks at once.

    Versions are monotonic per session, from `wrote` and from what its reads with the policy `Session` have seen.
    """

    def __init__(self, sessions: Sessions, floors: Floors = NOTHING, refusal: Refusal | None = None) -> None:
        self._sessions = sessions
        self._floors = dict(floors.by_entity)
        self._forgotten_until = floors.forgotten_until
        self._lock = threading.Lock()
        self.refusal = refusal
        """Why the token that was given counts for nothing; None if there was none, or it was good."""
        self.is_changed = False
        """Whether the token that was given no longer says everything."""

    def least(self, entity: str, id: Id) -> int:  # noqa: A002
        """The least version that this session may be given: 0 if any will do, `PRIMARY` if only the primary will."""
        if not self._floors and not self._forgotten_until:
            return 0
        floor = self._floors.get(fingerprint(entity, str(id)))
        now = self._sessions.now()
        if floor is not None and floor.until > now:
            return floor.version
        return PRIMARY if self._forgotten_until > now else 0

    def observe(self, entity: str, id: Id, version: int) -> None:  # noqa: A002
        """A read of this session was given this version: it is not given an older one from now on."""
        self._raise(entity, id, version, is_write=False)

    def wrote(self, entity: str, id: Id, version: int) -> None:  # noqa: A002
        """This session has committed this version, as `touch` returned it. The process tier hears of it as well.

        Not before the commit: a version that is rolled back never comes, and its entity would be read from the primary
        until the floor ends.
        """
        self._raise(entity, id, version, is_write=True)
        self._sessions.told(entity, str(id), version)

    def _raise(self, entity: str, id: Id, version: int, *, is_write: bool) -> None:  # noqa: A002
        if not 0 < version <= VERSION_MAX:
            return  # Version 0 is that of an entity that nobody has ever touched: nothing is below it.
        name = fingerprint(entity, str(id))
        now = self._sessions.now()
        floor = Floor(version, now + self._sessions.lifetime_seconds, is_write)
        with self._lock:
            known = self._floors.get(name)
            # Not made longer: whoever saw this version first saw it after its commit, and the lag counts from there.
            if known is not None and known.version >= version and known.until > now:
                return
            self._floors[name] = floor if known is None else higher(known, floor)
            self.is_changed = True
            if len(self._floors) > FLOORS_IN_MEMORY_MAX:
                self._take(trimmed(self._snapshot(), now, FLOORS_IN_MEMORY_MAX // 2))

    def floors(self) -> Floors:
        """What it knows at this moment."""
        with self._lock:
            return self._snapshot()

    def merge(self, floors: Floors) -> None:
        """Adds what another request of the same session knows."""
        with self._lock:
            self._take(merged(self._snapshot(), floors))

    def _snapshot(self) -> Floors:
        return Floors(dict(self._floors), self._forgotten_until)

    def _take(self, floors: Floors) -> None:
        self._floors = dict(floors.by_entity)
        self._forgotten_until = floors.forgotten_until

    def token(self) -> str:
        """The session for the next request: signed, at most 1,000 characters, of those that a cookie may have.

        It carries the 32 newest floors, writes before reads. When there were more, the next request reads entities that
        are not among them from the primary, until they would have ended: slower, and never older than was promised.

        Raises:
            CacheError: RLY-951: there is no key to sign with.
        """
        return self._sessions.sign(self.floors())

    def __enter__(self) -> Self:
        _OUTER.set((*_OUTER.get(), CURRENT.get()))
        CURRENT.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # No reset(token): those are good in the context that made them only, and this session may be in several.
        *outer, previous = _OUTER.get()
        _OUTER.set(tuple(outer))
        CURRENT.set(previous)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, value, trace)


class Sessions:
    """Opens sessions from tokens and signs their tokens.

    Args:
        keys: at least 16 random bytes each, the same in all processes. The first signs; the others are accepted: put a
            new key last everywhere, then first everywhere, then remove the old one after `lifetime_seconds`.
        namespace: tokens of another namespace are refused, also when the keys are the same.
        lag_seconds: the worst lag from a commit until the caches know of it. When it is longer, the promise ends: a
            read after that may be given a copy from before the own write.
        margin_seconds: how much longer floors hold, for clocks that differ and work in flight.
        must_be_good: raise RLY-952 for a token that is refused, instead of beginning an empty session.
    """

    def __init__(
        self,
        keys: Sequence[bytes] = (),
        *,
        namespace: str = "",
        lag_seconds: int = 60,
        margin_seconds: int = 60,
        must_be_good: bool = False,
        recorder: Recorder | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if any(len(key) < KEY_BYTES_MIN for key in keys):
            raise CacheError(
                "RLY-951",
                f"a key for session tokens has fewer than {KEY_BYTES_MIN} bytes",
                "use secrets.token_bytes(32)",
            )
        self._keys = tuple(keys)
        self._namespace = namespace
        self._must_be_good = must_be_good
        self._recorder = recorder
        self._clock = clock
        self.lifetime_seconds = lag_seconds + margin_seconds
        self._listeners: list[Callable[[str, str, int], None]] = []

    def now(self) -> int:
        """Seconds of Unix time: the one clock that two processes share, and therefore the margin."""
        return int(self._clock())

    def tell(self, listener: Callable[[str, str, int], None]) -> None:
        """Calls `listener` with each entity, id and version that a session of this process has written.

        A process tier follows like this: without it, whoever else reads here would be given the value of before until
        the event comes, by the very process that has changed it.
        """
        self._listeners.append(listener)

    def told(self, entity: str, id: str, version: int) -> None:  # noqa: A002
        """Tells the listeners of a write."""
        if 0 < version <= VERSION_MAX:
            for listener in self._listeners:
                listener(entity, id, version)

    def open(self, token: str | None = None) -> OpenSession:
        """The session of a token, or a new one. A token that is no good is a new session, and counted.

        Raises:
            CacheError: RLY-952 for a token that is refused, if `must_be_good`.
        """
        found = self._refused_or(verified(token, self._keys, self._namespace, self.now())) if token else NOTHING
        return OpenSession(self, refusal=found) if isinstance(found, Refusal) else OpenSession(self, found)

    def verify_ticket(self, text: str | None) -> Ticket | Refusal | None:
        """The ticket of a stored session; None if there is none.

        Raises:
            CacheError: as `open`.
        """
        return self._refused_or(verified_ticket(text, self._keys, self._namespace, self.now())) if text else None

    def _refused_or(self, found: T | Refusal) -> T | Refusal:
        self.count(SESSION_TOKENS, found.value if isinstance(found, Refusal) else "taken")
        if isinstance(found, Refusal) and self._must_be_good:
            raise CacheError("RLY-952", f"the session token is {found.value}", "begin a new session without a token")
        return found

    def token(self, session: OpenSession) -> str:
        """As `session.token()`: what a middleware asks, of this class and of stored sessions alike."""
        return session.token()

    def sign(self, floors: Floors) -> str:
        """The token of these floors.

        Raises:
            CacheError: RLY-951: there is no key to sign with.
        """
        return signed(floors, self._key(), self._namespace, self.now())

    def sign_ticket(self, ticket: Ticket) -> str:
        """The text of a ticket.

        Raises:
            CacheError: RLY-951: there is no key to sign with.
        """
        return signed_ticket(ticket, self._key(), self._namespace)

    def _key(self) -> bytes:
        if not self._keys:
            raise CacheError("RLY-951", "there is no key to sign session tokens with", "pass keys to Sessions")
        return self._keys[0]

    def count(self, metric: Metric, *labels: str) -> None:
        """Tells the recorder, if there is one."""
        if self._recorder is not None:
            self._recorder.count(metric, *labels)
