"""Sessions in a real Redis: sync and async say the same, what overlaps is added up, what has ended goes."""

from __future__ import annotations

import asyncio

import pytest
import redis
import redis.asyncio

from relay.cache.session_store import AsyncRedisSessions, AsyncStoredSessions, RedisSessions, StoredSessions
from relay.cache.sessions import PRIMARY, Sessions
from relay.core.record import VERSION_MAX
from relay.core.token import Floor, Floors
from relay.errors import CacheError

NAME, NOW = b"n" * 16, 1_800_000_000
ONE = Floors({b"\x00\xff\x00\xff    ": Floor(VERSION_MAX, NOW + 60, False), b"+2345678": Floor(5, NOW + 20, True)})
OTHER = Floors({b"+2345678": Floor(4, NOW + 50, False), b"87654321": Floor(1, NOW + 5, False)}, NOW + 30)
BOTH = Floors(
    {
        b"\x00\xff\x00\xff    ": Floor(VERSION_MAX, NOW + 60, False),
        b"+2345678": Floor(5, NOW + 50, True),
        b"87654321": Floor(1, NOW + 5, False),
    },
    NOW + 30,
)


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as made:
        yield made


def test_floors_are_added_up(client, namespace):
    """The greater version, for the longer time, in either order, and the names of all additions."""
    store = RedisSessions(client, namespace)
    assert store.load(NAME) == (Floors(), set())
    for name, order in ((b"a" * 16, (ONE, OTHER)), (b"b" * 16, (OTHER, ONE))):
        for number, floors in enumerate(order):
            store.add(name, bytes([number]) * 8, floors, NOW, 60)
        assert store.load(name) == (BOTH, {bytes(8), bytes([1]) * 8})


def test_what_has_ended_goes(client, namespace):
    """Floors and additions one by one, and the session with its TTL."""
    store = RedisSessions(client, namespace)
    store.add(NAME, b"first...", BOTH, NOW, 25)
    store.add(NAME, b"second..", Floors(), NOW + 25, 25)
    kept = store.load(NAME)
    assert set(kept.floors.by_entity) == {b"\x00\xff\x00\xff    ", b"+2345678"}
    assert kept.additions == {b"second.."}
    (key,) = client.scan_iter(f"relay:{{{namespace}}}:*")
    assert 0 < client.ttl(key) <= 25


def test_both_faces_keep_one_session(client, redis_url, namespace):
    """What a thread writes a task reads, and the other way round; a flush sends both to the primary."""
    sessions = Sessions([b"k" * 32])
    sync = StoredSessions(RedisSessions(client, namespace), sessions)
    session = sync.open()
    session.wrote("user", 1, 5)
    ticket = sync.token(session)

    async def scene() -> str:
        async with redis.asyncio.Redis.from_url(redis_url) as made:
            stored = AsyncStoredSessions(AsyncRedisSessions(made, namespace), sessions)
            same = await stored.open(ticket)
            assert same.least("user", 1) == 5
            same.wrote("user", 2, 6)
            return await stored.token(same)

    ticket = asyncio.run(scene())
    assert [sync.open(ticket).least("user", number) for number in (1, 2, 3)] == [5, 6, 0]
    for key in client.scan_iter(f"relay:{{{namespace}}}:*"):
        client.delete(key)
    assert sync.open(ticket).least("user", 3) == PRIMARY


def test_a_client_that_decodes_is_refused(redis_url, namespace):
    """Before the first session is taken for lost."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as made, pytest.raises(CacheError, match="RLY-953"):
        RedisSessions(made, namespace)
