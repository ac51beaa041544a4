"""A service of the demo that reads accounts through the cache: a process of its own, of which there are two.

    python -m relay.demo.service        DEMO_DATABASE, DEMO_KAFKA (JSON), DEMO_TOPIC, DEMO_REDIS, DEMO_NAMESPACE and
                                        DEMO_TIERS in the environment

With DEMO_TIERS=both it has a process tier with a feed in front of the shared tier, with `shared` it has not.

Before a read it looks up, past the cache, what has been applied to the copy that it may get: no older version may be
served, unless it is marked as stale. Each quarter of a second it says in a line of JSON what it read: enough to tell
afterwards how stale that was. It stops when a line comes in on stdin, or its end.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from contextlib import ExitStack
from typing import Any, Final

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from relay.cache import Cache, Local, Need, Read, RedisShared, Versioned
from relay.cache.numbers import LOADS, READS, SAVED, Numbers
from relay.consumer import Feed
from relay.core.names import record_name
from relay.core.record import decode_record
from relay.demo.application import ACCOUNTS, HOT, Account
from relay.demo.consumer import say, stop_when_told
from relay.errors import RelayError
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
        self._older = self._marked = self._failed = 0

    def add(self, id_: int, found: Read[Any], began: float, floor: int) -> None:
        """One read of an account, and the version below which it might get nothing, unless it was told so."""
        with self._lock:
            self._reads.append((id_, found.version, began))
            self._marked += found.is_stale
            self._older += found.version < floor and not found.is_stale

    def add_failure(self) -> None:
        """A read that got nothing: neither a copy nor the source."""
        with self._lock:
            self._failed += 1

    def take(self) -> dict[str, Any]:
        """What came together, and begins anew."""
        with self._lock:
            counts = {"older": self._older, "marked": self._marked, "failed": self._failed}
            message = {"reads": self._reads, **counts}
            self._reads, self._older, self._marked, self._failed = [], 0, 0, 0
            return message


class Floors:
    """What has been applied to the copies of an account, seen past the cache; it never forgets, unlike Redis."""

    def __init__(self, url: str, namespace: str, local: Local | None) -> None:
        self._redis = Redis.from_url(url, socket_timeout=0.05, socket_connect_timeout=0.05)
        self._namespace = namespace
        self._space = None if local is None else local.space(CACHE)
        self._shared: dict[int, int] = {}

    def look(self, id_: int) -> tuple[int, int]:
        """The versions below which the process tier, and everybody behind it, may serve nothing."""
        in_process = 0 if self._space is None else self._space.floor(str(id_))
        try:
            data = self._redis.get(f"relay:{{{self._namespace}}}:{record_name(CACHE, str(id_))}")
        except RedisError:
            data = None
        record = decode_record(data if isinstance(data, bytes) else None)
        if record is not None and record.floor > self._shared.get(id_, 0):
            self._shared[id_] = record.floor
        return in_process, max(in_process, self._shared.get(id_, 0))


def read(account: Any, floors: Floors, tally: Tally, stop: threading.Event) -> None:
    """One thread of readers."""
    draw = random.Random()  # noqa: S311
    while not stop.wait(draw.expovariate(READS_PER_SECOND)):
        id_ = draw.randrange(HOT) if draw.random() < 0.5 else draw.randrange(ACCOUNTS)
        in_process, behind_it = floors.look(id_)
        began = time.time()
        try:
            found = account.read(id_)
        except (SQLAlchemyError, RelayError):
            tally.add_failure()
        else:
            tally.add(id_, found, began, in_process if found.tier == "local" else behind_it)


def report(tally: Tally, numbers: Numbers, local: Local | None) -> dict[str, Any]:
    """What was read since the last report, the counters of this process, and whether its process tier is open."""
    now = numbers.snapshot()
    hits = sum(now.value(READS, CACHE, tier, "hit") for tier in ("local", "shared"))
    saved = sum(now.value(SAVED, CACHE, by) for by in ("flight", "lease"))
    counters = {"hits": hits, "all": now.total(READS), "loads": now.total(LOADS), "saved": saved}
    return {**tally.take(), **counters, "is_open": local is None or local.is_open}


def main() -> None:
    """Reads until it is told to stop."""
    engine: Engine = create_engine(os.environ["DEMO_DATABASE"], pool_size=THREADS, pool_pre_ping=True)
    url, namespace = os.environ["DEMO_REDIS"], os.environ["DEMO_NAMESPACE"]
    numbers = Numbers()
    local = Local(entries_max=1000, ttl=60) if os.environ["DEMO_TIERS"] == "both" else None
    shared = RedisShared.from_url(url, namespace=namespace)
    cache = Cache("demo", local=local, shared=shared, recorder=numbers)

    @cache.entity(CACHE, hard_ttl=600, soft_ttl=480, keep=True)
    def account(id: int, need: Need) -> Versioned[dict[str, int] | None]:  # noqa: A002
        with Session(engine) as session:
            row = get_versioned(session, Account, id, entity=CACHE)
            value = None if row.value is None else {"balance": row.value.balance, "revision": row.value.revision}
            return Versioned(value, row.version, row.cacheable)

    stop, tally = stop_when_told(), Tally()
    floors = Floors(url, namespace, local)
    threads = [threading.Thread(target=read, args=(account, floors, tally, stop), daemon=True) for _ in range(THREADS)]
    with ExitStack() as parts:
        parts.enter_context(cache)
        if local is not None:
            kafka, topics = json.loads(os.environ["DEMO_KAFKA"]), [os.environ["DEMO_TOPIC"]]
            parts.enter_context(Feed(kafka=kafka, topics=topics, local=local, shared=shared))
        for thread in threads:
            thread.start()
        while not stop.wait(SAY_SECONDS):
            if not all(thread.is_alive() for thread in threads):
                raise SystemExit("a reader died")
            say(report(tally, numbers, local))
        for thread in threads:
            thread.join(5)
    say(report(tally, numbers, local))


if __name__ == "__main__":
    main()
