"""What each operation of the shared tier sends, and how it reads the reply: shared by both faces, and free of I/O."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from struct import Struct, pack
from typing import Any, Final

from relay.cache.limits import TierLimits
from relay.cache.redis.scripts import APPLY, LEASE, OPEN, PROGRESS, PUT, RELEASE, Call, Word, call
from relay.cache.tiers import Applied, Bump, Grant, Lease, Page, Position, Progress, Put, Reject, TierError
from relay.core.record import FORMAT, NO_LEASE
from relay.errors import CacheError

KEYS_MAX: Final = 512
"""Keys in one command: a longer one would keep the server from everybody else."""
TOKEN_BYTES: Final = 8
NAMESPACE: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")
SET_BY_PUT: Final = 2 | 8 | 16
"""NEGATIVE, DERIVED and KEEP are said by whoever puts; HAS_VALUE is what a put means."""

_VERSIONED, _UNVERSIONED, _UNKNOWN = range(3)
_BUMP = Struct(">BQ")
_PREFIX = Struct(">cBBBI")


class Commands:
    """The operations of one namespace.

    Args:
        namespace: letters, digits, dot, dash and underscore; the hash tag of every key, so that all lie in one slot.
        clock: milliseconds to be used in place of the server's: for simulations only, where all processes share it.
        token: eight random bytes, never zeros.

    Raises:
        CacheError: RLY-903.
    """

    def __init__(
        self,
        namespace: str,
        limits: TierLimits,
        clock: Callable[[], int] | None = None,
        token: Callable[[], bytes] | None = None,
    ) -> None:
        if not NAMESPACE.fullmatch(namespace):
            raise CacheError(
                "RLY-903",
                f"the namespace {namespace[:100]!r} is not made of letters, digits, dot, dash and underscore",
                "choose one of 1 to 100 of these",
            )
        self.limits = limits
        self.prefix = f"relay:{{{namespace}}}:"
        self.epoch_key = self.prefix + "epoch"
        self.progress_key = self.prefix + "progress"
        self.clock = clock
        self._token = token or (lambda: os.urandom(TOKEN_BYTES))

    def look(self, keys: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The commands, at least one. The epoch is read last in each: the last of them is younger than every record."""
        prefix = self.prefix
        if len(keys) <= KEYS_MAX:
            yield ("MGET", *[prefix + key for key in keys], self.epoch_key)
            return
        for start in range(0, len(keys), KEYS_MAX):
            yield ("MGET", *[prefix + key for key in keys[start : start + KEYS_MAX]], self.epoch_key)

    def lease(self, key: str, want: int, stamps: Sequence[str], *, refresh: bool) -> Call[Lease]:
        """Asks for a lease under a fresh token."""
        token = self._token()
        limits = self.limits

        def parse(reply: Any) -> Lease:
            grant, floor, epoch, record, now, *held = reply
            answer = Grant(grant.decode())
            return Lease(answer, token if answer is Grant.GRANTED else NO_LEASE, floor, epoch, record, now, held)

        arguments: list[Word] = [self._clock(), token, want, int(refresh)]
        arguments += [limits.lease_ms, limits.grace_ms, limits.stamp_ms]
        return call(LEASE, self._keys(self.epoch_key, [key, *stamps]), arguments, parse)

    def put(self, put: Put) -> Call[Reject | None]:
        """Puts a value of an allowed size."""
        first = _PREFIX.pack(b"R", FORMAT, put.flags & SET_BY_PUT | 1, put.codec, put.schema)
        version, last = pack(">Q", put.version), pack(">II", put.soft_ms, put.load_ms)
        arguments: list[Word] = [self._clock(), put.lease, first, version, last, put.hard_ms, put.payload]
        arguments.append(self.limits.lease_ms)
        return call(
            PUT, self._keys(self.epoch_key, [put.key, *put.stamps]), [*arguments, *put.stamps.values()], _rejected
        )

    def release(self, key: str, lease: bytes) -> Call[None]:
        """Gives a lease back."""
        return call(RELEASE, self._keys(self.epoch_key, [key]), [lease], lambda _: None)

    def apply(
        self, bumps: Sequence[Bump], stamps: Sequence[str], positions: Sequence[Position]
    ) -> Iterator[Call[Applied]]:
        """The calls, at least one. All claim the progress, only the last one notes it: to be given up at the first that
        is refused."""
        chunks = [bumps[start : start + KEYS_MAX] for start in range(0, len(bumps), KEYS_MAX)] or [bumps]
        claims = [Position(at.topic, at.partition, at.expected, 0) for at in positions]
        for chunk in chunks[:-1]:
            yield self._apply(chunk, (), claims)
        yield self._apply(chunks[-1], stamps, positions)

    def _apply(self, bumps: Sequence[Bump], stamps: Sequence[str], positions: Sequence[Position]) -> Call[Applied]:
        prefix, limits = self.prefix, self.limits
        keys = [self.epoch_key, self.progress_key]
        keys += [prefix + bump.key for bump in bumps]
        keys += [prefix + stamp for stamp in stamps]
        packed = b"".join([_BUMP.pack(_kind(bump), bump.version or 0) for bump in bumps])
        arguments: list[Word] = [self._token(), limits.tombstone_ms, limits.unknown_ms, len(bumps), packed]
        for at in positions:
            arguments += [f"{at.topic}/{at.partition}", at.expected, at.offset]
        return call(APPLY, keys, arguments, _applied)

    def open(self, cause: str, positions: Sequence[Position]) -> Call[bytes]:
        """Begins an epoch under a fresh token."""
        arguments: list[Word] = [self._token(), cause]
        for at in positions:
            arguments += [f"{at.topic}/{at.partition}", at.offset]
        return call(OPEN, [self.epoch_key, self.progress_key], arguments, _opened)

    def progress(self) -> Call[Progress]:
        """Reads epoch and offsets from one moment."""
        return call(PROGRESS, [self.epoch_key, self.progress_key], [], _progress)

    def _keys(self, first: str, names: Sequence[str]) -> list[str]:
        return [first, *[self.prefix + name for name in names]]

    def _clock(self) -> Word:
        return "" if self.clock is None else self.clock()


def pool_of(client: Any) -> Any:
    """The connection pool of a client of redis-py.

    Raises:
        CacheError: RLY-903, if it has none, or can make no connection with what it was given.
    """
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        raise CacheError(
            "RLY-903",
            f"a client of type {type(client).__qualname__} has no connections to one server",
            "give the client of the node, or of the sentinels, that holds the namespace",
        )
    try:
        # Made and thrown away: it connects to nobody, and the pool does not count it.
        pool.connection_class(**pool.connection_kwargs)
    except Exception as error:
        # Which options there are depends on the kind of connection, and none is looked at before.
        raise CacheError(
            "RLY-903", f"the client of Redis can make no connection: {error}", "correct its options, or its URL"
        ) from None
    return pool


def read_page(replies: Sequence[Any], count: int) -> Page:
    """What a look for this many keys found. The last epoch judges all records: older ones are of another epoch."""
    records: list[bytes | None] = replies[0][:-1]
    for reply in replies[1:]:
        records += reply[:-1]
    epoch = replies[-1][-1]
    if type(records) is not list or len(records) != count:
        raise ValueError("another shape")
    return Page(epoch if epoch is not None and len(epoch) == TOKEN_BYTES else None, records)


def read_time(reply: Any) -> int:
    """Milliseconds from the reply to TIME."""
    seconds, microseconds = _listed(reply)
    return int(seconds) * 1000 + int(microseconds) // 1000


def parsed(parse: Callable[..., Any], *reply: Any) -> Any:
    """The meaning of a reply.

    Raises:
        TierError: it has none, because something that is not our server answered.
    """
    try:
        return parse(*reply)
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise TierError("reply") from error


def _kind(bump: Bump) -> int:
    if bump.unknown:
        return _UNKNOWN
    return _UNVERSIONED if bump.version is None else _VERSIONED


def _rejected(reply: bytes) -> Reject | None:
    return None if reply == b"ok" else Reject(reply.decode())


def _applied(reply: Any) -> Applied:
    epoch, lost = _listed(reply)
    return Applied(None if epoch is None else _opened(epoch), bool(lost))


def _opened(reply: Any) -> bytes:
    if type(reply) is not bytes or len(reply) != TOKEN_BYTES:
        raise ValueError("no epoch")
    return reply


def _progress(reply: Any) -> Progress:
    epoch, flat = _listed(reply)
    offsets = {}
    for field, value in list(pairwise(flat))[::2]:
        topic, slash, partition = field.decode().rpartition("/")
        if slash:
            offsets[topic, int(partition)] = int(value)
    return Progress(epoch, offsets)


def _listed(reply: Any) -> list[Any]:
    """Text can be taken apart as well, into numbers."""
    if type(reply) is not list:
        raise ValueError("no list")
    return reply
