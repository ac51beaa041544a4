"""Sessions read what they wrote, on every tier and replica, by both faces and with both schemes of keys."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from relay.cache import Session, Sessions, Strong
from relay.cache.asgi import SessionMiddleware
from relay.cache.sessions import CURRENT, PRIMARY
from relay.consumer.effects import Effects
from relay.core.change import decode
from relay.core.token import FLOORS_MAX
from tests.support.caches import World


@pytest.fixture(params=["sync", "async"])
def face(request) -> str:
    return request.param


@pytest.fixture(params=["entity", "versioned"])
def make(request, face, redis_url, namespace) -> Iterator[Any]:
    made: list[World] = []

    def world(**settings: Any) -> World:
        made.append(World(face, redis_url, namespace, scheme=request.param, **settings))
        return made[-1]

    yield world
    for one in made:
        one.close()


def test_own_writes_are_read_in_the_own_process_and_in_others_before_their_event(make):
    """By the session, and by whoever else reads where it was written; elsewhere, by the token."""
    here, there = make(), make()
    here.consumer.open("test", ())
    for world in (here, there):
        world.use(here.source)
    here.source.write("42", "Ann")
    assert [world.read()[:2] for world in (here, there)] == [("Ann", 1)] * 2
    with here.cache.session() as session:
        session.wrote("user", "42", here.source.write("42", "Anna"))
        assert here.read()[:2] == ("Anna", 2)
        token = session.token()
    assert here.read()[:2] == ("Anna", 2)
    with there.cache.session(token):
        assert there.read()[:2] == ("Anna", 2)
        assert there.do(there.user.many(["42"])) == {"42": "Anna"}


def test_the_process_that_wrote_gives_nobody_the_value_of_before(make):
    """The session may never read it, and the event may be late: the process tier hears of the write itself."""
    world = make()
    world.consumer.open("test", ())
    world.source.write("42", "Ann")
    assert [world.read()[:3] for _ in range(2)][1] == ("Ann", 1, "local")
    with world.cache.session() as session:
        session.wrote("user", "42", world.source.write("42", "Anna"))
    assert world.read()[:2] == ("Anna", 2)


def test_a_session_is_not_satisfied_for_ever_because_one_replica_caught_up(make):
    """Each read is compared: the next replica that is asked may be behind."""
    world = make(with_local=False)
    world.consumer.open("test", ())
    world.source.write("42", "Ann")
    behind = world.source.rows["42"]
    with world.cache.session() as session:
        session.wrote("user", "42", world.source.write("42", "Anna"))
        for shown in (world.source.rows["42"], behind, world.source.rows["42"], behind):
            world.source.lags["42"] = shown
            assert world.read(policy=Session())[:2] == ("Anna", 2)
    assert world.read()[:2] == ("Anna", 2)


def test_what_a_session_has_seen_does_not_grow_older(make):
    """Not even where a copy of before is still there: another process, whose event has not come."""
    here, there = make(), make()
    here.consumer.open("test", ())
    for world in (here, there):
        world.use(here.source)
    here.source.write("42", "Ann")
    there.read()
    here.source.write("42", "Anna")
    with here.cache.session() as session:
        assert here.read(policy=Strong())[:2] == ("Anna", 2)
        token = session.token()
    with there.cache.session(token):
        assert there.read()[:2] == ("Anna", 2)


def test_a_session_that_wrote_too_much_for_its_token_reads_the_rest_from_the_primary(make):
    """Slower, and never older: every one of its writes is seen by the next request."""
    here, there = make(), make()
    here.consumer.open("test", ())
    for world in (here, there):
        world.use(here.source)
    ids = [str(number) for number in range(FLOORS_MAX + 3)]
    for id_ in ids:
        here.source.write(id_, "old")
    there.do(there.user.many(ids))
    with here.cache.session() as session:
        for id_ in ids:
            session.wrote("user", id_, here.source.write(id_, "new"))
        token = session.token()
    with there.cache.session(token) as session:
        assert [session.least("user", id_) for id_ in ids].count(PRIMARY) == 3
        assert set(there.do(there.user.many(ids)).values()) == {"new"}
        assert {there.read(id_).value for id_ in ids} == {"new"}


def test_a_write_that_was_rolled_back_is_waited_for_by_nobody(make):
    """It was never told to the session, and what its transaction read was kept nowhere."""
    world = make()
    world.consumer.open("test", ())
    world.source.write("42", "Ann")
    world.read()
    committed = world.source.rows["42"]
    with world.cache.session() as session:
        world.source.write("42", "rolled back")
        with world.cache.bypass():
            assert world.read().value == "rolled back"
        world.source.rows["42"] = committed
        assert world.read()[:2] == ("Ann", 1)
        assert session.least("user", "42") == 1
    loads = len(world.source.loads)
    assert world.read()[:2] == ("Ann", 1)
    assert len(world.source.loads) == loads


def test_clocks_that_differ_shorten_no_floor_below_the_lag():
    """The process that reads is ahead by less than the margin: the floor is there for as long as the caches may lag."""
    now = 1_800_000_000.0
    sessions = [Sessions([b"k" * 32], lag_seconds=60, margin_seconds=30, clock=lambda d=d: now + d) for d in (0, 29)]
    wrote = sessions[0].open()
    wrote.wrote("user", "42", 7)
    token = wrote.token()
    now += 60
    assert sessions[1].open(token).least("user", "42") == 7


def test_what_an_event_says_of_its_time_orders_nothing(make):
    """Clocks of databases are set, and step at a failover: only versions count."""
    world = make()
    world.consumer.open("test", ())
    for value in ("Ann", "Anna"):
        world.source.write("42", value)
    world.read()
    for version, ts in ((2, "1970-01-01T00:00:00Z"), (1, "2099-01-01T00:00:00Z"), (2, None), (1, "rubbish")):
        headers = [("entity", b"user"), ("id", b"42"), ("action", b"updated"), ("version", str(version).encode())]
        change = decode(b"user:42", b"{}", headers + ([("ts", ts.encode())] if ts else []))
        effects = Effects()
        effects.add(change)
        world.consumer.apply(effects.bumps(), (), ())
        world.forget_local()
        assert world.read()[:3] == ("Anna", 2, "shared")


def test_a_web_framework_carries_a_session_into_threads():
    """A plain endpoint of FastAPI runs in a thread of its own, and has the session of its request all the same."""
    sessions = Sessions([b"k" * 32])
    app = FastAPI()
    app.add_middleware(SessionMiddleware, sessions=sessions)

    @app.post("/user")
    def write() -> None:
        CURRENT.get().wrote("user", 1, 7)

    @app.get("/user")
    def read() -> int:
        return CURRENT.get().least("user", 1)

    async def scene() -> None:
        reach = {"transport": ASGITransport(app), "base_url": "https://shop"}
        async with AsyncClient(**reach) as browser, AsyncClient(**reach) as other:
            assert (await browser.get("/user")).json() == 0
            assert "set-cookie" in (await browser.post("/user")).headers
            answer = await browser.get("/user")
            assert (answer.json(), "set-cookie" in answer.headers) == (7, False)
            assert (await other.get("/user")).json() == 0

    asyncio.run(scene())


def test_deleted_and_made_again_an_entity_counts_on(make):
    """Absence has a version; events of its first life, repeated, bring nothing of it back."""
    world = make()
    world.consumer.open("test", ())
    for value in ("Ann", None, "Bea"):
        world.source.write("42", value)
        world.announce()
        assert world.read()[:2] == (value, world.source.version("42"))
    for version in (1, 2, 3, 2, 1):
        world.announce(version=version)
        assert world.read()[:2] == ("Bea", 3)
    world.forget_local()
    assert world.read()[:2] == ("Bea", 3)
