"""The shared tier by itself: applying events beside a bare loop of SETs, and what entries and tombstones weigh."""

from __future__ import annotations

import time
from collections.abc import Callable

from redis import Redis

from relay.cache.redis import RedisShared
from relay.cache.tiers import Bump, Position, Put
from relay.core.record import HAS_VALUE, HEADER_BYTES
from relay.demo.redis import EmbeddedRedis
from tests.bench.parts import SCALE, median, report

ROUNDS = 5
BATCH = 500
EVENTS = max(5_000, round(50_000 * SCALE))
ENTRIES = max(1_000, round(50_000 * SCALE))
PAYLOAD = b'{"id": 42, "name": "somebody", "email": "somebody@example.org"}'
LIFETIME_MS = 600_000


def batches(version: int) -> list[list[Bump]]:
    """One event for each of so many entities, in the batches of a consumer."""
    return [
        [Bump(f"r:user:{number}", version, False) for number in range(start, start + BATCH)]
        for start in range(0, EVENTS, BATCH)
    ]


def rate(work: Callable[[], None]) -> float:
    """Events per second."""
    start = time.perf_counter()
    work()
    return EVENTS / (time.perf_counter() - start)


def apply_all(tier: RedisShared, events: list[list[Bump]]) -> None:
    """As a consumer does: one batch after the other, the progress with each."""
    for number, batch in enumerate(events):
        tier.apply(batch, [], [Position("bench", 0, number * BATCH, (number + 1) * BATCH)])


def set_all(client: Redis, events: list[list[Bump]]) -> None:
    """The least that a consumer could do: overwrite a key for each event, in pipelines of the same size."""
    value = bytes(HEADER_BYTES)
    for batch in events:
        pipeline = client.pipeline(transaction=False)
        for bump in batch:
            pipeline.set(f"relay:{{bare}}:{bump.key}", value, px=LIFETIME_MS)
        pipeline.execute()


def applying() -> None:
    """Events of entities that nobody has read, and of entities whose values they outdate."""
    with EmbeddedRedis() as server, Redis.from_url(server.url) as client:
        tier = RedisShared.from_url(server.url, "bench", timeout_seconds=10)
        found: dict[str, list[tuple[float, float]]] = {"new": [], "known": [], "outdated": []}
        for number in range(ROUNDS + 1):
            client.flushdb()
            for version, kind in enumerate(found, 1):
                tier.open("bench", [Position("bench", 0, 0, 0)])
                if kind == "outdated":
                    put_all(tier, [f"r:user:{entity}" for entity in range(EVENTS)], version - 1)
                elif kind == "known":
                    apply_all(tier, batches(version - 1))
                    tier.apply([], [], [])
                events = batches(version)
                ours = rate(lambda events=events: apply_all(tier, events))
                bare = rate(lambda events=events: set_all(client, events))
                if number:  # the first round warms up
                    found[kind].append((ours, bare))
        tier.close()
    for kind, pairs in found.items():
        ours, bare = median([a for a, _ in pairs]), median([b for _, b in pairs])
        ratio = median([a / b for a, b in pairs])
        holds = ours >= 30_000 and ratio >= 0.5
        report(f"applying events, {kind}", f"{ours:,.0f}/s", f"bare SET {bare:,.0f}/s", ratio, ">= 0.5", holds)


def put_all(tier: RedisShared, names: list[str], version: int) -> None:
    """Fills each record by the way that readers take."""
    for name in names:
        lease = tier.lease(name, 0, [], refresh=False)
        put = Put(name, lease.lease, version, HAS_VALUE, 3, 1, PAYLOAD, LIFETIME_MS, LIFETIME_MS, 1, {})
        assert tier.put(put) is None


def weights() -> None:
    """Bytes of the server per key, beside a plain SET of the same key and payload."""
    with EmbeddedRedis() as server, Redis.from_url(server.url) as client:
        tier = RedisShared.from_url(server.url, "bench", timeout_seconds=10)
        names = [f"r:user:{number}" for number in range(ENTRIES)]

        def weigh(fill: Callable[[], object]) -> float:
            client.flushdb()
            tier.open("bench", [])
            before = client.info("memory")["used_memory"]
            fill()
            return float(client.info("memory")["used_memory"] - before) / ENTRIES

        def set_plainly() -> None:
            for start in range(0, ENTRIES, BATCH):
                pipeline = client.pipeline(transaction=False)
                for name in names[start : start + BATCH]:
                    pipeline.set(tier.commands.prefix + name, PAYLOAD, px=LIFETIME_MS)
                pipeline.execute()

        def bump_all() -> None:
            for start in range(0, ENTRIES, BATCH):
                tier.apply([Bump(name, 1, False) for name in names[start : start + BATCH]], [], [])

        plain = weigh(set_plainly)
        entry, tombstone = weigh(lambda: put_all(tier, names, 1)), weigh(bump_all)
        tier.close()
    limit = f"SET of {len(PAYLOAD)} bytes {plain:.0f} B"
    report("memory of an entry", f"{entry:.0f} B", limit, entry / plain, "stated", True)
    report("memory of a tombstone", f"{tombstone:.0f} B", limit, tombstone / plain, "stated", True)


def shared() -> None:
    """What the shared tier costs its server and its consumer."""
    applying()
    weights()
