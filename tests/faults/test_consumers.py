"""The rows of the fault catalogue for consumers that take longer; the others are in tests/integration."""

from __future__ import annotations

import random
import threading
import time

import pytest

from relay.cache import RedisShared
from relay.consumer import Change, Consumer, HookSettings
from relay.core.record import decode_record
from tests.support.consumer_process import QUICK, ConsumerProcess, calls
from tests.support.consumers import Writer, dead_letters, fresh_group, headers_of, is_settled, owns, until
from tests.support.kafka import fresh_topic

pytestmark = pytest.mark.faults

STRATEGIES = {
    "cooperative": QUICK,
    "eager": {"partition.assignment.strategy": "range"} | QUICK,
    "KIP-848": {"group.protocol": "consumer"},
}


@pytest.fixture
def tier(redis_url, namespace) -> RedisShared:
    return RedisShared.from_url(redis_url, namespace, timeout_seconds=5)


def floors(tier, ids: list[str]) -> dict[str, int]:
    found = {}
    for start in range(0, len(ids), 100):
        some = ids[start : start + 100]
        records = tier.look([f"r:user:{id_}" for id_ in some]).records
        found |= {id_: 0 if r is None else decode_record(r).floor for id_, r in zip(some, records, strict=True)}
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rebalance_storm_loses_and_reorders_nothing(  # noqa: PLR0917
    kafka, topic, tier, redis_url, namespace, tmp_path, strategy
):
    """F-C3: members join, leave and are killed every second or two; all floors rise, and hooks see each key in order:
    whatever is repeated, no version is handled before the one before it has been."""
    settings = {"kafka": {"bootstrap.servers": kafka.bootstrap}, "topics": [topic], "group": fresh_group()}
    with Consumer(**settings, shared=tier) as consumer:
        until("the group has offsets", lambda: is_settled(consumer))
    journals = [tmp_path / f"journal-{n}" for n in range(4)]
    members = [
        ConsumerProcess(
            bootstrap=kafka.bootstrap, topic=topic, group=settings["group"], properties=STRATEGIES[strategy],
            redis=redis_url, namespace=namespace, journal=journal,
        )
        for journal in journals
    ]  # fmt: skip
    ids = [str(n) for n in range(100)]
    versions = 60
    stop = threading.Event()

    def write() -> None:
        writer = Writer(kafka.bootstrap, topic)
        for version in range(1, versions + 1):
            writer.touch_all([("user", id_, version) for id_ in ids])
            stop.wait(0.5)

    writing = threading.Thread(target=write)
    seed = random.randrange(1 << 30)
    draw = random.Random(seed)
    running: set[ConsumerProcess] = set()
    try:
        writing.start()
        while writing.is_alive():
            member = draw.choice(members)
            if member not in running:
                member.start()
                running.add(member)
            else:
                member.kill() if draw.random() < 0.5 else member.stop()
                running.remove(member)
            time.sleep(draw.uniform(0.5, 2))
        for member in set(members[:2]) - running:
            member.start()
            running.add(member)
        until(f"all floors are there (seed {seed})", lambda: set(floors(tier, ids).values()) == {versions}, 120)
        wanted = {(id_, v) for id_ in ids for v in range(1, versions + 1)}
        until(f"all hooks were called (seed {seed})", lambda: wanted <= {call[1:3] for call in calls(*journals)}, 120)
    finally:
        stop.set()
        writing.join()
        for member in running:
            member.kill()
    first: dict[tuple[str, int], int] = {}
    for call in calls(*journals):
        first.setdefault((call.id, call.version), call.at)
    for id_ in ids:
        times = [first[id_, version] for version in range(1, versions + 1)]
        assert times == sorted(times), f"id {id_} out of order (seed {seed})"


def test_a_hook_slower_than_the_poll_interval_does_not_cost_the_membership(kafka, topic, tier):
    """F-C4: polling goes on beside it; the partitions whose hooks are behind are paused, the others flow."""
    properties = {"bootstrap.servers": kafka.bootstrap, "max.poll.interval.ms": 6000, "session.timeout.ms": 3000}
    consumer = Consumer(
        kafka=properties, topics=[topic], group=fresh_group(), shared=tier,
        hooks=HookSettings(hook_seconds=60, queue_max=5),
    )  # fmt: skip
    called: list[str] = []

    @consumer.on("slow")
    def wait(change: Change) -> None:
        called.append(change.id)
        time.sleep(9 if len(called) == 1 else 0)

    with consumer:
        until("it owns the topic", lambda: owns(consumer))
        writer = Writer(kafka.bootstrap, topic)
        writer.touch_all([("slow", "1", version) for version in range(1, 31)] + [("user", "1", 1)])
        until("the others flow", lambda: floors(tier, ["1"]) == {"1": 1})
        until("all were called, none twice", lambda: len(called) == 30)
        until("nothing is left", lambda: is_settled(consumer))
    assert len(called) == 30


def test_a_partition_that_was_paused_when_it_was_lost_is_consumed_when_it_comes_back(kafka, tier, caplog):
    """F-C3: the client remembers pauses beyond the end of an ownership; the lag grows truthfully meanwhile (F-C14)."""
    topic = fresh_topic(kafka, 1)
    settings = {
        "kafka": {"bootstrap.servers": kafka.bootstrap, "partition.assignment.strategy": "range"},
        "topics": [topic],
        "group": fresh_group(),
        "shared": tier,
        "hooks": HookSettings(hook_seconds=60, queue_max=2),
    }
    gate, called = threading.Event(), set()

    def hook(change: Change) -> None:
        gate.wait(60)
        called.add(change.version)

    first, second = Consumer(**settings), Consumer(**settings)
    first.on("user", hook)
    second.on("user", hook)
    writer = Writer(kafka.bootstrap, topic)
    caplog.set_level("INFO", "relay.consumer")
    with first:
        until("it owns the topic", lambda: is_settled(first))
        writer.touch_all([("user", "1", version) for version in range(1, 11)])
        until("they are applied", lambda: floors(tier, ["1"]) == {"1": 10})
        writer.touch_all([("user", "1", version) for version in range(11, 21)])
        until("the others wait", lambda: first.health().lag == {(topic, 0): 10})
        with second:
            until("it is taken away", lambda: "consumer.revoked" in caplog.text)
            gate.set()
            until("all were called", lambda: called >= set(range(1, 21)))
        writer.touch_all([("user", "1", 21)])
        until("it goes on", lambda: 21 in called)


def test_an_event_of_fifty_megabytes_is_set_aside_without_its_value(kafka, tier):
    """F-C8: a topic that takes it has no dead-letter topic that does; where the value is, is said."""
    topic = fresh_topic(kafka, 1, {"max.message.bytes": "60000000"})
    properties = {"bootstrap.servers": kafka.bootstrap}
    with Consumer(kafka=properties, topics=[topic], group=fresh_group(), shared=tier) as consumer:
        until("it owns the topic", lambda: is_settled(consumer))
        writer = Writer(kafka.bootstrap, topic, bytes_max=60_000_000)
        writer.raw(b"user:1", bytes(50_000_000), headers_of("user", "1", 1))
        writer.touch_all([("user", "2", 1)])
        until("the next one is applied", lambda: floors(tier, ["2"]) == {"2": 1})
        dead = dead_letters(kafka.bootstrap, topic, 1)[0]
        until("nothing waits", lambda: is_settled(consumer))
    headers = dict(dead.headers())
    assert (dead.key(), dead.value(), headers["relay-omitted-bytes"]) == (b"user:1", None, b"50000000")
    assert headers["relay-origin-offset"] == b"0"
