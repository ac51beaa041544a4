"""Relay in a race: two processes with a process tier and a shared one, or the shared one alone, which each have to be
right without the other; and events that take the consumer's way into them."""

from __future__ import annotations

import json
from typing import Any

from relay.cache import Cache, Local, Need, RedisShared, Versioned
from relay.cache.tiers import Applied, Position
from relay.consumer.effects import Effects
from relay.core.change import Change, decode
from relay.demo.redis import EmbeddedRedis
from tests.races.source import Source
from tests.support.consumers import headers_of
from tests.support.tiers import PATIENCE_SECONDS

ENTITY = "user"
ID = "42"
TOPIC = "relay.changes"


class Relay:
    """As a `Contender`. The outbox makes the difference where a writer dies, and where it speaks too early: the event
    is committed with the row, so it comes all the same, and not before."""

    name = "Relay"

    def __init__(self, source: Source, redis: EmbeddedRedis, namespace: str, *, with_local: bool = True) -> None:
        self._source, self._redis, self._with_local = source, redis, with_local
        self._tier = RedisShared.from_url(redis.url, namespace, timeout_seconds=PATIENCE_SECONDS)
        self._offset = 0
        self._tier.open("the race begins", [Position(TOPIC, 0, 0, 0)])
        self._processes = [self._process(namespace) for _ in range(2)]

    def _process(self, namespace: str) -> tuple[Cache, Local | None, Any]:
        shared = RedisShared.from_url(self._redis.url, namespace, timeout_seconds=PATIENCE_SECONDS)
        local = Local(ttl=3600) if self._with_local else None
        cache = Cache("races", local=local, shared=shared)

        @cache.entity(ENTITY, hard_ttl=3600)
        def user(id: str, need: Need) -> Versioned[str | None]:  # noqa: A002
            is_replica = self._source.replica is not None and not need.primary
            row = self._source.load(primary=need.primary)
            return Versioned(row.value, row.version, cacheable=not is_replica)

        return cache, local, user

    def read(self, process: int = 0) -> str | None:
        value: str | None = self._processes[process][2](ID)
        return value

    def invalidate(self, version: int) -> None:
        """The event arrives: in the consumer, which applies it to the shared tier, and in each process's feed."""
        key = f"{ENTITY}:{ID}".encode()
        value = json.dumps({"entity": ENTITY, "id": ID, "action": "updated", "version": version}).encode()
        change = decode(key, value, headers_of(ENTITY, ID, version))
        assert isinstance(change, Change)
        assert change.version is not None
        effects = Effects()
        effects.add(change)
        applied = self._apply(effects, events=1)
        assert applied.epoch is not None
        assert not applied.lost
        for local in self._locals():
            local.apply(change.entity, change.id, change.version)

    def write_through(self, value: str, version: int) -> None:
        """There is no such thing: whoever has written tells the version, and the value is loaded by who needs it."""
        self.invalidate(version)

    def announce(self, version: int) -> None:
        """The event goes into the outbox, and nobody hears of it before the commit."""

    def deliver(self) -> None:
        """A relay publishes what the outbox has."""
        self.invalidate(self._source.primary.version)

    def evict(self) -> None:
        assert self._redis.say(f"DEL {self._tier.commands.prefix}r:{ENTITY}:{ID}").startswith(":")
        for local in self._locals():
            local.void(local.space(ENTITY))

    def flush(self) -> None:
        """The consumer notices by its heartbeat, and begins a new epoch; so do the feeds, which close and open."""
        self._redis.flush()
        assert self._apply(Effects(), events=0).epoch is None
        self._tier.open("closed", [Position(TOPIC, 0, self._offset, self._offset)])
        for local in self._locals():
            local.open(local.close("a new epoch has begun"))

    def close(self) -> None:
        for cache, _, _ in self._processes:
            cache.close()
            assert isinstance(cache.shared, RedisShared)
            cache.shared.close()
        self._tier.close()

    def _apply(self, effects: Effects, *, events: int) -> Applied:
        position = Position(TOPIC, 0, self._offset, self._offset + events)
        self._offset += events
        return self._tier.apply(effects.bumps(), (), [position])

    def _locals(self) -> list[Local]:
        return [local for _, local, _ in self._processes if local is not None]
