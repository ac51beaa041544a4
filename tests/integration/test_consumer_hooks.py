"""Hooks of a consumer: in order, at least once, and whatever they do, nothing stale is served and nothing stops."""

from __future__ import annotations

import asyncio
import threading

import pytest

from relay.cache.reference import ReferenceTier
from relay.cache.tiers import Grant
from relay.consumer import Change, Consumer, HookSettings, Key, Stamp
from tests.support.consumers import Writer, dead_letters, fresh_group, owns, until

QUICK = HookSettings(tries=2, retry_seconds=0.01, hook_seconds=0.3)


@pytest.fixture
def writer(kafka, topic) -> Writer:
    return Writer(kafka.bootstrap, topic)


@pytest.fixture
def tier() -> ReferenceTier:
    return ReferenceTier()


@pytest.fixture
def consumer(kafka, topic, tier) -> Consumer:
    properties = {"bootstrap.servers": kafka.bootstrap}
    return Consumer(kafka=properties, topics=[topic], group=fresh_group(), shared=tier, hooks=QUICK)


def is_unknown(tier, entity: str, id_: str) -> bool:
    return tier.lease(f"r:{entity}:{id_}", 0, (), refresh=False).grant is Grant.UNKNOWN


def test_hooks_see_the_changes_of_their_entity_in_order(consumer, writer):
    """Plain functions and coroutine functions, those of the entity and those of all."""
    seen: dict[str, list[Change]] = {"user": [], "all": [], "async": []}
    consumer.on("user")(seen["user"].append)
    consumer.on("*", seen["all"].append)

    @consumer.on("order")
    async def handle(change: Change) -> None:
        await asyncio.sleep(0.001)
        seen["async"].append(change)

    with consumer:
        until("it owns the topic", lambda: owns(consumer))
        writer.touch_all([("user", "1", v) for v in range(1, 21)] + [("order", "1", v) for v in range(1, 21)])
        until("all were called", lambda: len(seen["all"]) == 40 and len(seen["async"]) == 20)
    for name in ("user", "async"):
        assert [change.version for change in seen[name]] == list(range(1, 21))
    assert seen["user"][0].document() == {"entity": "user", "id": "1", "action": "updated", "version": 1}


def test_what_hooks_return_is_invalidated(consumer, writer, tier):
    """A record that is being filled loses its lease, and a stamp changes, before the event counts as done."""
    tier.open("test", ())
    lease = tier.lease("d:search:x", 0, ["s:listing"], refresh=False)
    orders = tier.lease("r:user_orders:7", 0, (), refresh=False)
    consumer.on("order", lambda change: [Key("user_orders", 7), Stamp("listing")])
    with consumer:
        until("it owns the topic", lambda: owns(consumer))
        # The first start of the group began an epoch, so what is asked for is asked again.
        lease = tier.lease("d:search:x", 0, ["s:listing"], refresh=False)
        orders = tier.lease("r:user_orders:7", 0, (), refresh=False)
        assert (lease.grant, orders.grant) == (Grant.GRANTED, Grant.GRANTED)
        writer.touch_all([("order", "1", 1)])
        until("the stamp has changed", lambda: tier.look(["s:listing"]).records[0] != lease.stamps[0])
        until("the lease is gone", lambda: tier.lease("r:user_orders:7", 0, (), refresh=False).grant is Grant.GRANTED)


def test_an_async_service_runs_its_hooks_in_its_own_loop(consumer, writer):
    """Entered with `async with`, coroutine functions run in the loop of the service."""

    async def service() -> asyncio.AbstractEventLoop:
        loops = asyncio.Queue()

        @consumer.on("user")
        async def handle(change: Change) -> None:
            await loops.put(asyncio.get_running_loop())

        async with consumer:
            await asyncio.to_thread(until, "it owns the topic", lambda: owns(consumer))
            await asyncio.to_thread(writer.touch_all, [("user", "1", 1)])
            return asyncio.get_running_loop() is await asyncio.wait_for(loops.get(), 60)

    assert asyncio.run(service())


def hanging(_change: Change) -> None:
    threading.Event().wait(30)


async def hanging_async(_change: Change) -> None:
    await asyncio.sleep(30)


def raising(_change: Change) -> None:
    raise ZeroDivisionError("secret")


def exiting(_change: Change) -> None:
    raise SystemExit(3)


FAILING = {
    "raises": (raising, "RLY-935", "ZeroDivisionError", "2"),
    "exits": (exiting, "RLY-935", "SystemExit", "2"),
    "hangs": (hanging, "RLY-936", "the hook did not end in time", "1"),
    "hangs-as-a-coroutine": (hanging_async, "RLY-936", "the hook did not end in time", "1"),
    "returns-a-text": (lambda change: "user", "RLY-937", "a hook returned a str", "1"),
    "returns-numbers": (lambda change: [1], "RLY-937", "a hook returned a int among its results", "1"),
}
"""By the id of the entity whose hook it is: the hook, and what is said of it."""


def test_an_event_whose_hook_fails_is_set_aside_and_its_entity_unknown(  # noqa: PLR0917
    kafka, topic, consumer, writer, tier, caplog
):
    """F-C4, F-C6: nobody is served a copy of the entity until a later event of it succeeds; others are not held up.
    What the error says is in no log."""
    done: list[str] = []
    broken = dict(FAILING)

    @consumer.on("user")
    def handle(change: Change) -> object:
        if change.id in broken:
            return broken[change.id][0](change)
        done.append(change.id)
        return None

    with consumer:
        until("it owns the topic", lambda: owns(consumer))
        writer.touch_all([("user", id_, 1) for id_ in [*FAILING, "sound"]])
        dead = {record.key().decode(): record for record in dead_letters(kafka.bootstrap, topic, len(FAILING))}
        until("the sound one was handled", lambda: done == ["sound"])
        assert all(is_unknown(tier, "user", id_) for id_ in FAILING)
        assert not is_unknown(tier, "user", "sound")
        broken.clear()
        writer.touch_all([("user", id_, 2) for id_ in FAILING])
        until("all are known again", lambda: not any(is_unknown(tier, "user", id_) for id_ in FAILING))
        until("nothing is left to be committed", lambda: not any(consumer.health().lag.values()))
    assert sorted(done) == sorted([*FAILING, "sound"])
    assert "secret" not in caplog.text
    for id_, (_, code, reason, attempts) in FAILING.items():
        record = dead[f"user:{id_}"]
        headers = {name: value.decode() for name, value in record.headers()}
        assert (headers["relay-error"], headers["relay-reason"], headers["relay-attempts"]) == (code, reason, attempts)
        assert (headers["relay-origin-topic"], headers["entity"], headers["version"]) == (topic, "user", "1")
        assert record.value().startswith(f'{{"entity":"user","id":"{id_}"'.encode())
