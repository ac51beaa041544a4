"""A service of the chaos run that reads items through the cache, and looks over its own shoulder.

    python -m tests.support.item_reader        READER (JSON): face, with_feed, database, bootstrap, topic, redis,
                                               namespace, count, per_second

Before each read it notes what has been applied to the copies that it may get, past the cache: in this process, and in
the shared tier. No older version may be served. Beside that its process tier is probed as the shared one is: some time
after an event nothing older may be servable. Each second it says in a line of JSON what it has found since its start.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from typing import Any

import psycopg

from relay.cache import AsyncCache, AsyncRedisShared, Cache, Local, Need, RedisShared, Versioned
from relay.cache.local import At
from relay.cache.tiers import Page, TierError
from relay.consumer import Feed
from relay.core.names import record_name
from relay.core.record import HAS_VALUE, NO_LEASE, Record, decode_record, encode_record
from relay.daemon.verification.knowledge import Name
from relay.daemon.verification.sources import Primary, Tail
from relay.daemon.verification.verifier import Sources, Verifier
from tests.support.items import ENTITY, ROWS, draw_id, rows

SCALES = (1.0, 10.0, 60.0)
SHARE = 0.25
"""Of the keys are probed in the process tier: each reader decodes every event once more for it."""
BATCH = 50
THREADS = 2
EPOCH = b"process "
SETTINGS: dict[str, Any] = {"hard_ttl": 600, "soft_ttl": 480, "early": 1.0, "loads_max": 8}


class Noting(Local):
    """A process tier that also remembers for ever what was applied to it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.applied: dict[str, int] = {}

    def apply(self, entity: str, id: str, version: int, at: At | None = None) -> None:  # noqa: A002
        super().apply(entity, id, version, at)
        if version > self.applied.get(id, 0):
            self.applied[id] = version

    def look(self, keys: list[str]) -> Page:
        """What a hit would be served, as the checker wants it."""
        entries, now = self.space(ENTITY).entries, self.clock()
        found: list[bytes | None] = []
        for key in keys:
            entry = entries.get(key.rpartition(":")[2])
            is_served = entry is not None and entry.fresh_until > now
            version = entry.version if entry is not None and is_served else 0
            record = Record(HAS_VALUE, 0, 0, EPOCH, 0, version, NO_LEASE, 0, 0, 0, 0, b"")
            found.append(encode_record(record) if is_served else None)
        return Page(EPOCH, found)


class Tally:
    """What was read since the start."""

    def __init__(self, local: Noting | None) -> None:
        self.counts: Counter[str] = Counter()
        self.broken: list[dict[str, Any]] = []
        self._local = local
        self._shared: dict[str, int] = {}
        self._lock = threading.Lock()

    def before(self, key: str, page: Page | None) -> tuple[int, int]:
        """The versions below which nothing may be served: of the process tier, and of the shared one."""
        applied = 0 if self._local is None else self._local.applied.get(key, 0)
        record = None if page is None else decode_record(page.records[0])
        with self._lock:
            if record is not None and record.floor > self._shared.get(key, 0):
                self._shared[key] = record.floor
            return applied, self._shared.get(key, 0)

    def read(self, key: str, before: tuple[int, int], found: Any) -> None:
        """Judges one read. A hit of the process tier owes nothing to the shared one."""
        floor = before[0] if found.tier == "local" else max(before)
        with self._lock:
            self.counts["reads"] += 1
            self.counts[found.tier] += 1
            if found.version < floor or found.value != found.version:
                self.counts["older" if found.version < floor else "mixed"] += 1
                self.broken.append({"id": key, "before": before, "found": list(found)})

    def read_many(self, floors: dict[int, int], found: dict[int, int]) -> None:
        """Judges one read of many: of whichever tiers, none may be below what was applied here."""
        with self._lock:
            self.counts["reads"] += len(floors)
            self.counts["many"] += len(floors)
            for id_, floor in floors.items():
                if found[id_] < floor:
                    self.counts["older"] += 1
                    self.broken.append({"id": id_, "before": floor, "found": found[id_]})

    def failed(self, error: Exception) -> None:
        """A read that raised: what the source raises is its own, anything else is not."""
        with self._lock:
            self.counts["source failed" if isinstance(error, psycopg.Error) else "raised"] += 1
            if not isinstance(error, psycopg.Error):
                self.broken.append({"raised": repr(error)})


def probe(told: dict[str, Any], local: Noting, say: Any) -> None:
    """The thread that probes the process tier. Ends with the process."""
    tail = Tail({"bootstrap.servers": told["bootstrap"]}, told["topic"])
    verifier = Verifier(
        Sources(local, lambda names: versions(told["database"], names), tail.events, list),
        SCALES, clock=time.monotonic, draw=random.random, reads_per_turn=10, pending_max=1_000_000,
        on_violation=lambda name, found, trace: say({"violation": [*name], **found, "trace": trace}),
    )  # fmt: skip
    verifier.share = SHARE
    said = 0.0
    while True:
        verifier.turn(walks=False)
        if time.monotonic() - said > 1:
            said = time.monotonic()
            tally = verifier.tally
            say({"probes": [[sum(tally.samples[k, s] for k in KINDS), sum(tally.violations[k, s] for k in KINDS)]
                            for s in SCALES], "healed": tally.healed_seconds})  # fmt: skip
        time.sleep(0.05)


KINDS = ("event", "read")


def versions(dsn: str, names: list[Name]) -> list[int]:
    """As the primary has them; waits until it answers."""
    while True:
        try:
            with psycopg.connect(dsn, connect_timeout=5) as connection:
                return Primary(connection).versions(names)
        except psycopg.OperationalError:
            time.sleep(0.1)


def read_in_threads(told: dict[str, Any], local: Noting | None, tally: Tally) -> None:
    """The synchronous face."""
    shared, watch = (RedisShared.from_url(told["redis"], told["namespace"]) for _ in range(2))
    cache = Cache("chaos", local=local, shared=shared)
    connections = threading.local()

    def load(ids: list[int]) -> dict[int, tuple[int, int]]:
        if getattr(connections, "own", None) is None:
            connections.own = psycopg.connect(told["database"], autocommit=True, connect_timeout=5)
        try:
            return rows(connections.own.execute(ROWS, [ids]).fetchall())
        except psycopg.OperationalError:
            connections.own = None
            raise

    def load_many(needs: dict[int, Need]) -> dict[int, Versioned[int]]:
        return {id_: Versioned(*row) for id_, row in load(list(needs)).items()}

    @cache.entity(ENTITY, load_many=load_many, **SETTINGS)
    def item(id: int, need: Need) -> Versioned[int]:  # noqa: A002
        return Versioned(*load([id])[id])

    def work(number: int) -> None:
        draw = random.Random()
        while True:
            time.sleep(draw.expovariate(told["per_second"] / THREADS))
            try:
                if draw.random() < 0.05:
                    ids = list({draw_id(draw, told["count"], 0.1) for _ in range(BATCH)})
                    floors = {id_: tally.before(str(id_), None)[0] for id_ in ids}
                    tally.read_many(floors, item.many(ids))
                    continue
                id_ = draw_id(draw, told["count"], 0.5)
                try:
                    page = watch.look([record_name(ENTITY, str(id_))])
                except TierError:
                    page = None
                before = tally.before(str(id_), page)
                tally.read(str(id_), before, item.read(id_))
            except Exception as error:  # Whatever a caller would have seen.
                tally.failed(error)

    for number in range(THREADS):
        threading.Thread(target=work, args=(number,), daemon=True).start()


async def read_in_tasks(told: dict[str, Any], local: Noting | None, tally: Tally) -> None:
    """The asynchronous face."""
    shared, watch = (AsyncRedisShared.from_url(told["redis"], told["namespace"]) for _ in range(2))
    cache = AsyncCache("chaos", local=local, shared=shared)
    pool: list[psycopg.AsyncConnection[Any]] = []

    async def load(ids: list[int]) -> dict[int, tuple[int, int]]:
        own = pool.pop() if pool else None
        if own is None:
            own = await psycopg.AsyncConnection.connect(told["database"], autocommit=True, connect_timeout=5)
        found = rows(await (await own.execute(ROWS, [ids])).fetchall())
        pool.append(own)
        return found

    async def load_many(needs: dict[int, Need]) -> dict[int, Versioned[int]]:
        return {id_: Versioned(*row) for id_, row in (await load(list(needs))).items()}

    @cache.entity(ENTITY, load_many=load_many, **SETTINGS)
    async def item(id: int, need: Need) -> Versioned[int]:  # noqa: A002
        return Versioned(*(await load([id]))[id])

    async def work(number: int) -> None:
        draw = random.Random()
        while True:
            await asyncio.sleep(draw.expovariate(told["per_second"] / THREADS))
            try:
                if draw.random() < 0.05:
                    ids = list({draw_id(draw, told["count"], 0.1) for _ in range(BATCH)})
                    floors = {id_: tally.before(str(id_), None)[0] for id_ in ids}
                    tally.read_many(floors, await item.many(ids))
                    continue
                id_ = draw_id(draw, told["count"], 0.5)
                try:
                    page = await watch.look([record_name(ENTITY, str(id_))])
                except TierError:
                    page = None
                before = tally.before(str(id_), page)
                tally.read(str(id_), before, await item.read(id_))
            except Exception as error:  # Whatever a caller would have seen.
                tally.failed(error)

    await asyncio.gather(*(work(number) for number in range(THREADS)))


def main() -> None:
    """Reads until stdin ends."""
    told = json.loads(os.environ["READER"])
    saying = threading.Lock()

    def say(message: dict[str, Any]) -> None:
        with saying:
            print(json.dumps(message), flush=True)

    local = Noting(entries_max=told["count"], ttl=600) if told["with_feed"] else None
    tally = Tally(local)
    if local is not None:
        tier = RedisShared.from_url(told["redis"], told["namespace"])
        Feed(kafka={"bootstrap.servers": told["bootstrap"]}, topics=[told["topic"]], local=local, shared=tier).start()
        threading.Thread(target=probe, args=(told, local, say), daemon=True).start()
    if told["face"] == "sync":
        read_in_threads(told, local, tally)
    else:
        threading.Thread(target=lambda: asyncio.run(read_in_tasks(told, local, tally)), daemon=True).start()
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    while True:
        time.sleep(1)
        say({"counts": tally.counts, "broken": tally.broken[:20]})


if __name__ == "__main__":
    main()
