"""A million events, each looked for at what readers are served one, ten and sixty seconds later, while everything that
may break does so at random: the chaos run of the read side.

PROBES sets how often events are looked at, at all scales together, SECONDS_MAX after how long it ends all the same,
RATE how many versions a second are written, SEED the draws. Figures are printed as `relay cache verify` prints them.
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis as client

from relay.cache import RedisShared
from relay.core.names import record_name
from relay.core.nines import nines
from relay.core.record import decode_record
from relay.daemon.verification import report
from relay.daemon.verification.knowledge import Name
from relay.daemon.verification.sources import Primary, Tail, Walk
from relay.daemon.verification.verifier import Sources, Verifier
from relay.demo.postgres import EmbeddedPostgres
from relay.demo.redis import EmbeddedRedis
from tests.faults.copies import Copies, Patient, Readers
from tests.support.items import ENTITY, Application
from tests.support.kafka import KafkaCluster, fresh_topic
from tests.support.postgres import fresh_database, private_server
from tests.support.redis import private_server as private_redis
from tests.support.relay_process import Fleet
from tests.support.scenario import seed_of_run, wait_empty

pytestmark = pytest.mark.faults

ITEMS = 2000
SCALES = (1.0, 10.0, 60.0)
TURN_SECONDS = 0.02
WALK_SECONDS = 1.0
QUIET_SECONDS = 180.0
"""After the last fault, until everything has to be right."""

SETTINGS = {
    "RELAY_DAEMON__ROWS_MAX": "500",
    "RELAY_DAEMON__PUBLISH_TIMEOUT_SECONDS": "5",
    "RELAY_DAEMON__TAKEOVER_SECONDS": "10",
    "RELAY_DATABASE__DEADLINE_SECONDS": "5",
    "RELAY_DATABASE__CONNECT_TIMEOUT_SECONDS": "2",
}


def number(name: str, default: float) -> float:
    """A setting of the run."""
    return float(os.environ.get(name, "") or default)


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    with private_server(18) as server:
        yield server


@pytest.fixture
def own_kafka() -> Iterator[KafkaCluster]:
    with KafkaCluster() as cluster:
        yield cluster


@pytest.fixture
def own_redis() -> Iterator[EmbeddedRedis]:
    with private_redis() as server:
        yield server


def test_a_million_events_are_right_a_minute_later_whatever_breaks(own_postgres, own_kafka, own_redis, tmp_path):
    """No copy is served for a minute after its event, and none below what was applied, by any reader, ever."""
    seed = seed_of_run()
    print(f"\nSEED={seed}")
    topic, dsn = fresh_topic(own_kafka), fresh_database(own_postgres)
    application = Application(dsn, topic, count=ITEMS, per_second=number("RATE", 1500), seed=f"{seed}/application")
    fleet = Fleet(dsn, own_kafka.bootstrap, 2, settings=SETTINGS)
    traces = Path(os.environ.get("TRACES", "") or tmp_path / "violations")
    with fleet, Readers(own_redis, own_kafka.bootstrap, topic, dsn, ITEMS, traces) as readers:
        copies = Copies(
            draw=random.Random(f"{seed}/faults"), postgres=own_postgres, kafka=own_kafka, redis=own_redis, fleet=fleet,
            readers=readers,
        )  # fmt: skip
        verifier, look = watching(own_redis, own_kafka.bootstrap, topic, dsn, readers)
        application.start()
        began = time.monotonic()
        wanted = number("PROBES", 1_000_000)
        breaking = threading.Thread(target=copies.break_everything, daemon=True)
        breaking.start()
        try:
            until = began + number("SECONDS_MAX", math.inf)
            turn(verifier, lambda: probes(verifier) >= wanted or time.monotonic() > until, copies)
        finally:
            copies.stop()
            breaking.join(180)
            application.stop()
        if copies.failure is not None:
            raise copies.failure
        assert not breaking.is_alive()
        took = time.monotonic() - began
        # What was committed last has its minute as well, now without faults.
        quiet = time.monotonic() + 65
        turn(verifier, lambda: time.monotonic() > quiet, copies)
        wait_empty(dsn, QUIET_SECONDS, fleet)
        readers.wait_applied(QUIET_SECONDS)
        wrong = stale_records(own_redis, readers.namespace, dsn)
        readers.tell_once_more()
        say(seed, took, application, copies, verifier, look, readers)
    found = report.as_data(verifier, took)
    assert found["scales"][-1]["violations"] == 0, f"SEED={seed}, see {traces}"
    assert (found["unhealed"], found["ahead"], wrong) == (0, 0, []), f"SEED={seed}, see {traces}"
    assert not readers.broken, f"SEED={seed}: {readers.broken[:5]}"
    assert readers.probes[60.0][1] == 0, f"SEED={seed}, process tiers, see {traces}"


class Served:
    """The shared tier, counting how many of the looks found something that a reader would be served."""

    def __init__(self, tier: RedisShared) -> None:
        self._tier = tier
        self.looks = self.served = 0

    def look(self, keys: Any) -> Any:
        page = self._tier.look(keys)
        for data in page.records:
            record = decode_record(data)
            self.looks += 1
            self.served += record is not None and record.epoch == page.epoch and record.is_current
        return page


def watching(redis: EmbeddedRedis, bootstrap: str, topic: str, dsn: str, readers: Readers) -> tuple[Verifier, Served]:
    """The checker of `relay cache verify`, with parts that wait for a database that is away."""
    tier = Served(RedisShared.from_url(redis.url, readers.namespace, timeout_seconds=0.5))
    walk, primary = Walk(client.Redis.from_url(redis.url, socket_timeout=1), readers.namespace), Patient(dsn)
    verifier = Verifier(
        Sources(tier, primary.versions, Tail({"bootstrap.servers": bootstrap}, topic).events, Patient.of(walk)),
        SCALES, clock=time.monotonic, draw=random.random, pending_max=1_000_000, on_violation=readers.note,
    )  # fmt: skip
    return verifier, tier


def turn(verifier: Verifier, is_over: Any, copies: Copies) -> None:
    """Runs the checker, and says every half minute how far it is."""
    walked = said = time.monotonic()
    while not is_over():
        if copies.failure is not None:
            raise copies.failure
        now = time.monotonic()
        walks = now - walked >= WALK_SECONDS
        walked = now if walks else walked
        verifier.turn(walks=walks)
        if now - said > 30:
            said = now
            tally = verifier.tally
            print(" ".join(f"{s:g} s: {tally.violations['event', s]}/{tally.samples['event', s]}" for s in SCALES),
                  f"missed {tally.missed}", flush=True)  # fmt: skip
        time.sleep(TURN_SECONDS)


def stale_records(redis: EmbeddedRedis, namespace: str, dsn: str) -> list[tuple[str, int, int]]:
    """Nothing is written any more: records that a reader would be served with another version than the database's."""
    tier = RedisShared.from_url(redis.url, namespace, timeout_seconds=5)
    names = [Name(ENTITY, str(id_)) for id_ in range(ITEMS)]
    page = tier.look([record_name(*name) for name in names])
    with psycopg.connect(dsn) as connection:
        there = Primary(connection).versions(names)
    found = []
    for name, data, version in zip(names, page.records, there, strict=True):
        record = decode_record(data)
        is_served = record is not None and record.epoch == page.epoch and record.is_current
        if is_served and record is not None and record.version != version:
            found.append((name.id, record.version, version))
    return found


def probes(verifier: Verifier) -> int:
    """Looks at events so far."""
    return sum(verifier.tally.samples["event", scale] for scale in SCALES)


def say(  # noqa: PLR0917
    seed: int, took: float, application: Application, copies: Copies, verifier: Verifier, look: Served, readers: Readers
) -> None:  # fmt: skip
    """The figures of the run."""
    data = report.as_data(verifier, took)
    print(f"seed {seed}: {took:.0f} s, {application.committed} versions committed")
    print("faults: " + ", ".join(f"{count} {name}" for name, count in sorted(copies.counts.items())))
    print(report.as_text(data))
    print(f"{look.served} of {look.looks} looks found a copy that would have been served")
    for scale, (samples, violations) in sorted(readers.probes.items()):
        print(f"process tiers at {scale:g} s: {violations} of {samples}, nines {nines(violations, samples):.1f}")
    print("reads: " + ", ".join(f"{count} {name}" for name, count in sorted(readers.counts.items())))
    print(json.dumps(data), flush=True)
    assert isinstance(readers.counts, Counter)
