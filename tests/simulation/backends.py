"""Shared tiers for the simulation: the reference and a real Redis, with what can befall them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from redis import Redis

from relay.cache.limits import TierLimits
from relay.cache.redis.commands import Commands
from relay.cache.redis.shared import RedisShared
from relay.cache.reference import ReferenceTier
from relay.cache.tiers import SharedTier
from relay.core.record import NO_LEASE, decode_record, encode_record

Clock = Callable[[], int]
Token = Callable[[], bytes]


class Backend(Protocol):
    """A shared tier and its misfortunes."""

    tier: SharedTier

    def evict(self, name: str, *, spares_lease: bool = False) -> None:
        """The server is short of memory. `spares_lease`: as if leases lay under keys of their own."""
        ...

    def flush(self) -> None:
        """Everything is gone."""
        ...

    def snapshot(self) -> Any:
        """What a standby has that has caught up."""
        ...

    def restore(self, snapshot: Any) -> None:
        """That standby takes over."""
        ...


class Reference:
    """The reference."""

    def __init__(self, clock: Clock, token: Token, kind: Any = ReferenceTier) -> None:
        self.tier = kind(clock=clock, token=token)

    def evict(self, name: str, *, spares_lease: bool = False) -> None:
        """As `Backend.evict`."""
        held = self.tier.held.get(name)
        kept = spared(held.data) if held is not None and spares_lease else None
        if kept is None:
            self.tier.evict(name)
        else:
            held.data = kept

    def flush(self) -> None:
        """As `Backend.flush`."""
        self.tier.flush()

    def snapshot(self) -> Any:
        """As `Backend.snapshot`."""
        held = {name: (held.data, held.until_ms) for name, held in self.tier.held.items()}
        return held, dict(self.tier.offsets), self.tier.epoch

    def restore(self, snapshot: Any) -> None:
        """As `Backend.restore`."""
        held, offsets, epoch = snapshot
        kind = type(next(iter(self.tier.held.values()))) if self.tier.held else None
        self.tier.held.clear()
        if kind is None:
            from relay.cache.reference import Held as kind  # noqa: N813 - the class that the tier itself uses
        self.tier.held |= {name: kind(data, until_ms) for name, (data, until_ms) in held.items()}
        self.tier.offsets = dict(offsets)
        self.tier.epoch = epoch


class OnRedis:
    """A namespace of a Redis."""

    def __init__(self, client: Redis, namespace: str, clock: Clock, token: Token) -> None:
        self._client = client
        self.commands = Commands(namespace, TierLimits(), clock, token)
        self.tier = RedisShared(client, namespace, commands=self.commands)

    def evict(self, name: str, *, spares_lease: bool = False) -> None:
        """As `Backend.evict`."""
        key = self.commands.prefix + name
        data = self._client.get(key)
        kept = spared(data) if data is not None and spares_lease else None
        if kept is None:
            self._client.delete(key)
        else:
            self._client.set(key, kept, keepttl=True)

    def flush(self) -> None:
        """As `Backend.flush`, within the namespace: others use the server too."""
        for key in self._keys():
            self._client.delete(key)

    def snapshot(self) -> Any:
        """As `Backend.snapshot`."""
        return {key: (max(0, self._client.pttl(key)), self._client.dump(key)) for key in self._keys()}

    def restore(self, snapshot: Any) -> None:
        """As `Backend.restore`."""
        self.flush()
        for key, (ttl, data) in snapshot.items():
            self._client.restore(key, ttl, data)

    def _keys(self) -> list[bytes]:
        # Braces mean nothing to SCAN, brackets and stars are not in a namespace.
        return list(self._client.scan_iter(match=self.commands.prefix + "*"))


def spared(data: bytes) -> bytes | None:
    """The record with nothing but its lease; None if there is none."""
    record = decode_record(data)
    if record is None or record.lease == NO_LEASE:
        return None
    return encode_record(record._replace(flags=0, floor=0, version=0, payload=b""))
