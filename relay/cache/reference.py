"""What each operation of the shared tier does, in plain Python: the specification, and a tier for tests.

The Lua of `relay.cache.redis` is compared with this, operation by operation and byte by byte. Everything is held in one
dictionary, as Redis would hold it. Clock and tokens come in, so that the same calls leave the same bytes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from relay.cache.limits import TierLimits
from relay.cache.tiers import Applied, Bump, Grant, Lease, Page, Position, Progress, Put, Reject
from relay.core.record import (
    DERIVED,
    HAS_VALUE,
    KEEP,
    NEGATIVE,
    NO_LEASE,
    UNKNOWN,
    Record,
    decode_record,
    encode_record,
)

TOKEN_BYTES: Final = 8


@dataclass(slots=True)
class Held:
    """Bytes, and when they expire."""

    data: bytes
    until_ms: int


EMPTY: Final = Record(0, 0, 0, b"", 0, 0, NO_LEASE, 0, 0, 0, 0, b"")


class ReferenceTier:
    """A shared tier in the memory of this process. Safe for threads: every operation is atomic.

    Args:
        clock: milliseconds.
        token: eight random bytes, never zeros.
    """

    def __init__(
        self,
        *,
        limits: TierLimits | None = None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        token: Callable[[], bytes] = lambda: os.urandom(TOKEN_BYTES),
    ) -> None:
        self.limits = limits or TierLimits()
        self.held: dict[str, Held] = {}
        self.epoch: bytes | None = None
        self.offsets: dict[tuple[str, int], int] = {}
        self._clock = clock
        self._token = token
        self._lock = threading.Lock()

    def look(self, keys: Sequence[str]) -> Page:
        """As `SharedTier.look`."""
        with self._lock:
            now = self._clock()
            return Page(self.epoch, [self._get(key, now) for key in keys])

    def lease(self, key: str, want: int, stamps: Sequence[str], *, refresh: bool) -> Lease:
        """As `SharedTier.lease`."""
        token = self._token()
        with self._lock:
            now = self._clock()
            if self.epoch is None:
                return Lease(Grant.CLOSED, NO_LEASE, 0, None, None, now, [])
            held = [self._stamp(stamp, token, now) for stamp in stamps]
            record = self._record(key, now)
            grant = self._grant(record, want, refresh, token, now)
            if grant is Grant.GRANTED:
                leased = (record or EMPTY)._replace(
                    epoch=self.epoch, lease=token, lease_until_ms=now + self.limits.lease_ms
                )
                # The end of a value is a promise, and is not moved by those who want to load another one.
                shortest = 0 if leased.has_value else self.limits.lease_ms + self.limits.grace_ms
                self._set(key, leased, max(self._left(key, now) if record else 0, shortest), now)
            return Lease(
                grant,
                token if grant is Grant.GRANTED else NO_LEASE,
                record.floor if record else 0,
                self.epoch,
                encode_record(record) if record else None,
                now,
                held,
            )

    def put(self, put: Put) -> Reject | None:  # noqa: PLR0911 - one line for each reason
        """As `SharedTier.put`."""
        if len(put.payload) > self.limits.value_bytes_max:
            self.release(put.key, put.lease)
            return Reject.TOO_LARGE
        with self._lock:
            now = self._clock()
            if self.epoch is None:
                return Reject.CLOSED
            found = decode_record(self._get(put.key, now))
            if found is not None and found.epoch != self.epoch:
                return Reject.EPOCH
            if found is not None and found.flags & UNKNOWN:
                return Reject.UNKNOWN
            if found is None or put.lease == NO_LEASE or found.lease != put.lease:
                return Reject.LEASE
            if put.flags & DERIVED:
                if any(self._get(stamp, now) != then for stamp, then in put.stamps.items()):
                    return Reject.STAMPS
            elif put.version < max(found.floor, found.version if found.has_value else 0):
                return Reject.FLOOR
            value = Record(
                put.flags & (NEGATIVE | DERIVED | KEEP) | HAS_VALUE,
                put.codec,
                put.schema,
                self.epoch,
                found.floor,
                put.version,
                NO_LEASE,
                0,
                now,
                put.soft_ms,
                # The age of a value counts from its load, and the way of the put is part of it: nothing was loaded
                # before the lease.
                min(max(put.load_ms, now - (found.lease_until_ms - self.limits.lease_ms)), 2**32 - 1),
                put.payload,
            )
            self._set(put.key, value, put.hard_ms, now)
            return None

    def release(self, key: str, lease: bytes) -> None:
        """As `SharedTier.release`."""
        with self._lock:
            now = self._clock()
            record = self._record(key, now)
            if record is not None and record.lease == lease != NO_LEASE:
                freed = record._replace(lease=NO_LEASE, lease_until_ms=0)
                self._set(key, freed, self._left(key, now) if _says_anything(freed) else 0, now)

    def apply(self, bumps: Sequence[Bump], stamps: Sequence[str], positions: Sequence[Position]) -> Applied:
        """As `SharedTier.apply`."""
        token = self._token()
        with self._lock:
            now = self._clock()
            if self.epoch is None:
                return Applied(None, lost=False)
            if any(self.offsets.get((at.topic, at.partition), 0) < at.expected for at in positions):
                return Applied(self.epoch, lost=True)
            for bump in bumps:
                self._bump(bump, now)
            for stamp in stamps:
                # A stamp that is missing makes every record that depends on it a miss already.
                if self._get(stamp, now) is not None:
                    self.held[stamp].data = token
            for at in positions:
                place = at.topic, at.partition
                self.offsets[place] = max(self.offsets.get(place, 0), at.offset)
            return Applied(self.epoch, lost=False)

    def open(self, cause: str, positions: Sequence[Position]) -> bytes:
        """As `SharedTier.open`."""
        with self._lock:
            if self.epoch is None:
                self.offsets.clear()
            self.epoch = self._token()
            self.offsets |= {(at.topic, at.partition): at.offset for at in positions}
            return self.epoch

    def progress(self) -> Progress:
        """As `SharedTier.progress`."""
        with self._lock:
            return Progress(self.epoch, dict(self.offsets) if self.epoch else {})

    def time(self) -> int:
        """As `SharedTier.time`."""
        return self._clock()

    def flush(self) -> None:
        """Forgets everything, as FLUSHALL does."""
        with self._lock:
            self.held.clear()
            self.offsets.clear()
            self.epoch = None

    def evict(self, key: str) -> None:
        """Forgets one record or stamp, as a server that is short of memory does."""
        with self._lock:
            self.held.pop(key, None)

    def _grant(self, record: Record | None, want: int, refresh: bool, token: bytes, now: int) -> Grant:
        if record is None:
            return Grant.GRANTED
        if record.flags & UNKNOWN:
            return Grant.UNKNOWN
        if not refresh and _is_usable(record, want):
            return Grant.USABLE
        # A lease may be asked for again, under its own token, if its first answer was lost.
        if record.lease not in (NO_LEASE, token) and record.lease_until_ms > now:
            return Grant.BUSY
        return Grant.GRANTED

    def _bump(self, bump: Bump, now: int) -> None:
        epoch = self.epoch or b""
        before = self._record(bump.key, now) or EMPTY._replace(epoch=epoch)
        after = _bumped(before, bump)
        if after == before:
            return
        if after.has_value:
            lifetime = self._left(bump.key, now)  # the end of a value is a promise, whatever is learnt about it
        elif after.flags & UNKNOWN:
            lifetime = self.limits.unknown_ms
        else:
            lifetime = self.limits.tombstone_ms if _says_anything(after) else 0
        self._set(bump.key, after, lifetime, now)

    def _record(self, key: str, now: int) -> Record | None:
        """What holds in this epoch; everything else is as good as absent."""
        record = decode_record(self._get(key, now))
        return record if record is not None and record.epoch == self.epoch else None

    def _stamp(self, stamp: str, token: bytes, now: int) -> bytes:
        data = self._get(stamp, now)
        if data is None or len(data) != TOKEN_BYTES:
            data = token
        self.held[stamp] = Held(data, now + self.limits.stamp_ms)
        return data

    def _get(self, key: str, now: int) -> bytes | None:
        held = self.held.get(key)
        if held is None:
            return None
        if held.until_ms <= now:
            del self.held[key]
            return None
        return held.data

    def _set(self, key: str, record: Record, lifetime_ms: int, now: int) -> None:
        if lifetime_ms > 0:
            self.held[key] = Held(encode_record(record), now + lifetime_ms)
        else:
            self.held.pop(key, None)

    def _left(self, key: str, now: int) -> int:
        held = self.held.get(key)
        return 0 if held is None else held.until_ms - now


def _is_usable(record: Record, want: int) -> bool:
    if record.flags & DERIVED:
        return record.has_value and record.version == want
    return record.is_current and record.version >= want


def _says_anything(record: Record) -> bool:
    return bool(record.flags) or record.floor > 0 or record.lease != NO_LEASE


def _bumped(record: Record, bump: Bump) -> Record:
    """The record after an event. A floor never falls. A lease survives: the floor judges what is put under it."""
    floor = max(record.floor, bump.version or 0)
    if bump.unknown:
        return _emptied(record)._replace(flags=UNKNOWN, floor=floor, lease=NO_LEASE, lease_until_ms=0)
    if bump.version is None:
        # Nothing can be compared with it: neither the value nor what is being loaded may stay.
        return _emptied(record)._replace(lease=NO_LEASE, lease_until_ms=0)
    if record.flags & UNKNOWN:
        return record._replace(flags=0, floor=floor) if bump.version >= record.floor else record
    if record.has_value and record.version < floor and not record.flags & KEEP:
        return _emptied(record)._replace(floor=floor)
    return record._replace(floor=floor)


def _emptied(record: Record) -> Record:
    """Epoch, floor and lease alone."""
    return record._replace(flags=0, codec=0, schema=0, version=0, written_at_ms=0, soft_ms=0, load_ms=0, payload=b"")


class AsyncReferenceTier:
    """The same with awaitable methods, over a `ReferenceTier`."""

    def __init__(self, tier: ReferenceTier | None = None) -> None:
        self.tier = tier or ReferenceTier()

    async def look(self, keys: Sequence[str]) -> Page:
        """As `SharedTier.look`."""
        return self.tier.look(keys)

    async def lease(self, key: str, want: int, stamps: Sequence[str], *, refresh: bool) -> Lease:
        """As `SharedTier.lease`."""
        return self.tier.lease(key, want, stamps, refresh=refresh)

    async def put(self, put: Put) -> Reject | None:
        """As `SharedTier.put`."""
        return self.tier.put(put)

    async def release(self, key: str, lease: bytes) -> None:
        """As `SharedTier.release`."""
        self.tier.release(key, lease)

    async def apply(self, bumps: Sequence[Bump], stamps: Sequence[str], positions: Sequence[Position]) -> Applied:
        """As `SharedTier.apply`."""
        return self.tier.apply(bumps, stamps, positions)

    async def open(self, cause: str, positions: Sequence[Position]) -> bytes:
        """As `SharedTier.open`."""
        return self.tier.open(cause, positions)

    async def progress(self) -> Progress:
        """As `SharedTier.progress`."""
        return self.tier.progress()

    async def time(self) -> int:
        """As `SharedTier.time`."""
        return self.tier.time()
