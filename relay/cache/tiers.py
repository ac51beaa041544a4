"""What the read path asks of the shared tier, and what it answers: values, so that any driver may carry them.

The operations are atomic. `relay.cache.reference` says in Python what each of them does; the Lua of `relay.cache.redis`
is compared with it, operation by operation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol


class Page(NamedTuple):
    """What one look into the shared tier returned, from one moment."""

    epoch: bytes | None
    """None: the tier is closed, and nothing in it may be served."""
    records: Sequence[bytes | None]
    """In the order of the keys that were asked for; stamps are returned as they are."""


class Grant(Enum):
    """How a lease was answered."""

    GRANTED = "granted"
    """Load, and put what you loaded under the lease."""
    BUSY = "busy"
    """Somebody else loads. Wait a little, look again, or load without putting."""
    USABLE = "usable"
    """There is a value by now: `record` holds it."""
    CLOSED = "closed"
    """No epoch: load from the primary, and put nothing."""
    UNKNOWN = "unknown"
    """An event of this entity could not be applied: load from the primary, and put nothing."""


class Lease(NamedTuple):
    """The answer to a lease. `floor` is what a loaded value has to reach to be put."""

    grant: Grant
    lease: bytes
    floor: int
    epoch: bytes | None
    record: bytes | None
    """The whole record as it is now, or None if there is none: it may hold an old value for those who accept one."""
    now_ms: int
    """The server's clock."""
    stamps: Sequence[bytes] = ()
    """What the stamps hold now, in the order in which they were named: granted together with the lease, so before the
    load. Empty if the tier is closed."""


class Put(NamedTuple):
    """A value to be put. `version` is the digest of `stamps` for derived records."""

    key: str
    lease: bytes
    version: int
    flags: int
    codec: int
    schema: int
    payload: bytes
    soft_ms: int
    hard_ms: int
    load_ms: int
    stamps: Mapping[str, bytes]
    """Stamp keys with what they held before the load; empty for entities."""


class Reject(Enum):
    """Why a value was not put. The caller of the read has it all the same."""

    CLOSED = "closed"
    EPOCH = "epoch"
    LEASE = "lease"
    FLOOR = "floor"
    STAMPS = "stamps"
    UNKNOWN = "unknown"
    TOO_LARGE = "too_large"


class Bump(NamedTuple):
    """An event to be applied to one record.

    A deletion is an event like any other: the next read loads the absence under a lease. Written by the event it would
    stay for ever where the record had been evicted, the entity made anew, and the event came twice.
    """

    key: str
    version: int | None
    """None: a foreign event without a version. The value goes, and whoever is loading may not put."""
    unknown: bool
    """Mark the record as unknown instead: its event could not be applied."""


class Applied(NamedTuple):
    """The answer to applying events. They were applied if `epoch` is there and nothing is `lost`."""

    epoch: bytes | None
    """The epoch of the tier; None: it is closed."""
    lost: bool
    """The tier has less than what it had acknowledged: it lost writes. Open a new epoch."""


class Progress(NamedTuple):
    """How far each partition has been applied in this epoch; empty and None while the tier is closed."""

    epoch: bytes | None
    offsets: Mapping[tuple[str, int], int]


class Position(NamedTuple):
    """How far a partition has been applied: all events below `offset`.

    `expected` is the offset at which the batch begins, also in the first one after an assignment: if the tier has less
    (nothing counts as 0), it lost writes, whoever made them. The tier keeps the greatest offset, so a consumer that
    lost its partition does no harm.
    """

    topic: str
    partition: int
    expected: int
    offset: int


class SharedTier(Protocol):
    """The synchronous face. The asynchronous one has the same methods, awaitable.

    Every method may raise `TierError`, and nothing else: the caller goes on without the tier.
    """

    def look(self, keys: Sequence[str]) -> Page:
        """Records and stamps of these keys and the epoch, in one round trip."""
        ...

    def lease(self, key: str, want: int, stamps: Sequence[str], *, refresh: bool) -> Lease:
        """Asks to be the one who loads. Missing stamps are made.

        `want` is the least version that would do; for derived records the digest that would do, 0 if a stamp was
        missing. `refresh` asks for a lease although there is a value.
        """
        ...

    def put(self, put: Put) -> Reject | None:
        """Puts a loaded value, if its lease still holds and nothing newer was applied."""
        ...

    def release(self, key: str, lease: bytes) -> None:
        """Gives a lease back after a load that failed."""
        ...

    def apply(self, bumps: Sequence[Bump], stamps: Sequence[str], positions: Sequence[Position]) -> Applied:
        """Applies events and notes the progress, together. Does nothing if the tier is closed or has lost progress."""
        ...

    def open(self, cause: str, positions: Sequence[Position]) -> bytes:
        """Begins a new epoch: every record written before is void. Returns its id.

        The offsets of these positions replace what the tier has of their partitions. It keeps those of others if it was
        open: every claim is true of an epoch without records, and several consumers do not void each other's for ever.
        """
        ...

    def progress(self) -> Progress:
        """The epoch, and the offset up to which each partition has been applied in it."""
        ...

    def time(self) -> int:
        """The server's clock in milliseconds, for those who have not heard of it by a lease."""
        ...


class TierError(Exception):
    """The shared tier did not answer, or not as it should. `reason` is one of few words, for metrics."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason
