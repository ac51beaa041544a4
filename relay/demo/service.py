"""A service of the demo that reads accounts through the cache: a process of its own, of which there are two.

    python -m relay.demo.service        DEMO_DATABASE, DEMO_KAFKA (JSON), DEMO_TOPIC and DEMO_REDIS in the environment

Before a read it looks up, past the cache, what has been applied to the copy that it may get: no older version may be
served. Each quarter of a second it says in a line of JSON what it read: enough to tell afterwards how stale that was. It
stops when a line comes in on stdin, or its end.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from typing import Any, Final

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from relay.cache import Cache, Local, Need, RedisShared, Versioned
from relay.cache.numbers import LOADS, READS, SAVED, Numbers
from relay.consumer import Feed
from relay.core.names import record_name
from relay.core.record import decode_record
from relay.demo.application import ACCOUNTS, HOT, Account
from relay.demo.consumer import NAMESPACE, say
from relay.outbox import get_versioned

THREADS: Final = 4
READS_PER_SECOND: Final = 100.0
"""Of each thread."""
SAY_SECONDS: Final = 0.25
CACHE: Final = "account"


class Tally:
    """What all threads have read since the last line."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reads: list[tuple[int, int, float]] = []
        self._older = self._failed = 0

    def add(self, id_: int, version: int, began: float, *, is_older: bool) -> None:
        """One read: of which account, which version it got, and when it began."""
        with self._lock:
            self._reads.append((id_, version, began))
            self._older += is_older

    def add_failure(self) -> None:
        """A read that got nothing: neither a copy nor the source."""
        with self._lock:
            self._failed += 1

    def take(self) -> dict[str, Any]:
        """What came together, and begins anew."""
        with self._lock:
            message = {"reads": self._reads, "older": self._older, "failed": self._failed}
            self._reads, self._older, self._failed = [], 0, 0
            return message


class Floors:
    """What has been applied to the copies of an account, seen past the cache; it never forgets, unlike Redis."""

    def __init__(self, url: str, local: Local) -> None:
        self._redis = Redis.from_url(url, socket_timeout=0.05, socket_connect_timeout=0.05)
        self._space = local.space(CACHE)
        self._shared: dict[int, int] = {}

    def look(self, id_: int) -> tuple[int, int]:
        """Versions below which the process tier and the shared tier may serve nothing."""
        seen = self._shared.get(id_, 0)
        try:
            data = self._redis.get(f"relay:{{{NAMESPACE}}}:{record_name(CACHE, str(id_))}")
        except RedisError:
            return self._space.floor(str(id_)), seen
        record = decode_record(data if isinstance(data, bytes) else None)
        if record is not None and record.floor > seen:
            seen = self._shared[id_] = record.floor
        return self._space.floor(str(id_)), seen


def read(account: Any, floors: Floors, tally: Tally, stop: threading.Event) -> None:
    """One thread of readers."""
    draw = random.Random()  # noqa: S311
    while not stop.wait(draw.expovariate(READS_PER_SECOND)):
        id_ = draw.randrange(HOT) if draw.random() < 0.5 else draw.randrange(ACCOUNTS)
        in_process, in_shared = floors.look(id_)
        began = time.time()
        try:
            found = account.read(id_)
        except DBAPIError:
            tally.add_failure()
            continue
        floor = in_process if found.tier == "local" else in_shared
        tally.add(id_, found.version, began, is_older=found.version < floor)


def figures(numbers: Numbers) -> dict[str, float]:
    """Counters of this process since its start."""
    now = numbers.snapshot()
    hits = sum(now.value(READS, CACHE, tier, "hit") for tier in ("local", "shared"))
    saved = sum(now.value(SAVED, CACHE, by) for by in ("flight", "lease"))
    return {"hits": hits, "all": now.total(READS), "loads": now.total(LOADS), "saved": saved}


def main() -> None:
    """Reads until it is told to stop."""
    engine: Engine = create_engine(os.environ["DEMO_DATABASE"], pool_size=THREADS, pool_pre_ping=True)
    numbers = Numbers()
    local = Local(entries_max=1000, ttl=10)
    shared = RedisShared.from_url(os.environ["DEMO_REDIS"], namespace=NAMESPACE)
    cache = Cache(NAMESPACE, local=local, shared=shared, recorder=numbers)

    @cache.entity(CACHE, hard_ttl=60, soft_ttl=48)
    def account(id: int, need: Need) -> Versioned[dict[str, int] | None]:  # noqa: A002, ARG001
        with Session(engine) as session:
            row = get_versioned(session, Account, id, entity=CACHE)
            value = None if row.value is None else {"balance": row.value.balance, "revision": row.value.revision}
            return Versioned(value, row.version, row.cacheable)

    feed = Feed(
        kafka=json.loads(os.environ["DEMO_KAFKA"]), topics=[os.environ["DEMO_TOPIC"]], local=local, shared=shared
    )
    stop, tally = threading.Event(), Tally()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    floors = Floors(os.environ["DEMO_REDIS"], local)
    threads = [threading.Thread(target=read, args=(account, floors, tally, stop), daemon=True) for _ in range(THREADS)]
    with feed:
        for thread in threads:
            thread.start()
        while not stop.wait(SAY_SECONDS):
            say(tally.take() | figures(numbers))
        for thread in threads:
            thread.join(5)
    say(tally.take() | figures(numbers))
    cache.close()


if __name__ == "__main__":
    main()
