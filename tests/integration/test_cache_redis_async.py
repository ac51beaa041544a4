"""What is peculiar to asyncio: reads that go out together, cancellation, deadlines, and event loops."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import Redis

from relay.cache.redis import AsyncRedisShared, RedisShared
from relay.cache.redis.failures import Breaker
from relay.cache.tiers import TierError
from tests.support.proxy import TcpProxy
from tests.support.redis import private_server
from tests.support.tiers import PATIENCE_SECONDS

KEYS = [f"r:user:{number}" for number in range(100)]


@pytest.fixture
def server() -> Iterator[Any]:
    """A server of one's own, open, with a text under each key that tells which key it is."""
    with private_server() as own, Redis.from_url(own.url) as client:
        RedisShared.from_url(own.url, "loop", timeout_seconds=PATIENCE_SECONDS).open("first", [])
        client.mset({f"relay:{{loop}}:{key}": key for key in KEYS})
        yield own


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[AsyncRedisShared]:
    tier = AsyncRedisShared.from_url(url, "loop", **{"timeout_seconds": PATIENCE_SECONDS, **options})
    try:
        yield tier
    finally:
        await tier.close()


def commands(url: str) -> int:
    """How many MGETs the server has seen."""
    with Redis.from_url(url) as client:
        return int(client.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"])


def test_the_reads_of_one_turn_are_one_command(server):
    """A hundred tasks that read a hundred keys send one MGET, and each gets its own."""

    async def read() -> list[Any]:
        async with connected(server.url) as tier:
            return await asyncio.gather(*(tier.look([key]) for key in KEYS))

    before = commands(server.url)
    pages = asyncio.run(read())
    assert commands(server.url) == before + 1
    assert [list(page.records) for page in pages] == [[key.encode()] for key in KEYS]
    assert all(page.epoch is not None for page in pages)


def test_more_reads_than_fit_one_command_are_several(server):
    """Two thousand reads of one turn, and one read of two thousand keys, are split, and put together again."""

    async def read() -> None:
        async with connected(server.url) as tier:
            pages = await asyncio.gather(*(tier.look([KEYS[number % 100]]) for number in range(2_000)))
            assert [page.records[0] for page in pages] == [KEYS[number % 100].encode() for number in range(2_000)]
            page, other = await asyncio.gather(tier.look(KEYS * 20), tier.look(KEYS[:1]))
            assert list(page.records) == [key.encode() for key in KEYS * 20]
            assert list(other.records) == [KEYS[0].encode()]
            assert (await tier.look([])).records == []

    asyncio.run(read())


def test_a_cancelled_reader_harms_no_other(server):
    """Of a hundred who wait together any may be cancelled, the first as well: the others get their own."""

    async def read() -> None:
        with TcpProxy(server.port) as proxy:
            async with connected(f"redis://127.0.0.1:{proxy.port}") as tier:
                await tier.look(KEYS)
                proxy.freeze()
                tasks = [asyncio.create_task(tier.look([key])) for key in KEYS]
                await asyncio.sleep(0.05)
                for task in tasks[::2]:
                    task.cancel()
                proxy.thaw()
                found = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(isinstance(one, asyncio.CancelledError) for one in found[::2])
                assert [list(page.records) for page in found[1::2]] == [[key.encode()] for key in KEYS[1::2]]

    asyncio.run(read())


def test_the_first_of_a_turn_may_be_cancelled_before_anything_is_sent(server):
    """Those who came after it in the same turn are sent without it."""

    async def read() -> None:
        async with connected(server.url) as tier:
            tasks = [asyncio.create_task(tier.look([key])) for key in KEYS]
            asyncio.get_running_loop().call_soon(tasks[0].cancel)
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(found[0], asyncio.CancelledError)
            assert [list(page.records) for page in found[1:]] == [[key.encode()] for key in KEYS[1:]]
            alone = asyncio.create_task(tier.look(KEYS[:1]))
            asyncio.get_running_loop().call_soon(alone.cancel)
            with pytest.raises(asyncio.CancelledError):
                await alone
            assert list((await tier.look(KEYS[:1])).records) == [KEYS[0].encode()]

    before = commands(server.url)
    asyncio.run(read())
    assert commands(server.url) == before + 2


def test_the_reply_to_a_cancelled_command_is_read_by_nobody(server):
    """Whoever asks after a cancelled one gets the answer to the own question."""

    async def ask() -> None:
        with TcpProxy(server.port) as proxy:
            async with connected(f"redis://127.0.0.1:{proxy.port}") as tier:
                for number, key in enumerate(KEYS[:10]):
                    await tier.time()
                    proxy.freeze("down")
                    task = asyncio.create_task(tier.lease(f"r:none:{number}", 0, [], refresh=False))
                    await asyncio.sleep(0.02)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                    proxy.thaw()
                    assert list((await tier.look([key])).records) == [key.encode()]

    asyncio.run(ask())


def test_all_who_wait_together_are_told_of_the_failure(server):
    """When the one command times out, each of those who wait for it gets an error of its own."""

    async def read() -> None:
        async with connected(server.url, timeout_seconds=0.05) as tier:
            server.pause()
            found = await asyncio.gather(*(tier.look([key]) for key in KEYS), return_exceptions=True)
            server.resume()
        assert {type(one) for one in found} == {TierError}
        assert {one.reason for one in found} == {"timeout"}
        assert len({id(one) for one in found}) == len(KEYS)

    asyncio.run(read())


def test_a_loop_that_is_late_is_not_taken_for_a_server_that_is(server):
    """A reply that arrived while the loop was busy counts, although the deadline has passed meanwhile."""

    async def read() -> None:
        async with connected(server.url, timeout_seconds=1.0, breaker=Breaker(10**9)) as tier:
            await tier.look(KEYS)
            reading = asyncio.create_task(tier.look(KEYS))
            for _ in range(4):
                await asyncio.sleep(0)  # until the command is on its way
            time.sleep(1.3)
            assert list((await reading).records) == [key.encode() for key in KEYS]

    asyncio.run(read())


def test_one_tier_serves_one_loop_after_the_other(server):
    """Connections belong to a loop; the next loop gets its own."""
    tier = AsyncRedisShared.from_url(server.url, "loop", timeout_seconds=PATIENCE_SECONDS)

    async def read() -> None:
        assert list((await tier.look(KEYS)).records) == [key.encode() for key in KEYS]
        await tier.close()

    for _ in range(3):
        asyncio.run(read())


def test_one_tier_serves_loops_in_several_threads(server):
    """Four loops at once, with one tier, get each their own answers."""
    tier = AsyncRedisShared.from_url(server.url, "loop", timeout_seconds=PATIENCE_SECONDS)
    found: list[bool] = []

    async def read(key: str) -> None:
        for _ in range(50):
            pages = await asyncio.gather(*(tier.look([key]) for _ in range(3)))
            found.extend(list(page.records) == [key.encode()] for page in pages)
        await tier.close()

    threads = [threading.Thread(target=asyncio.run, args=(read(key),)) for key in KEYS[:4]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 600


def test_those_who_queue_for_a_dead_server_are_told_together(server):
    """Five hundred leases of a frozen server cost the wait of those who have a connection, and no wait after theirs."""

    async def ask() -> None:
        held = Breaker(bypass_seconds=(3600.0, 3600.0))
        async with connected(server.url, timeout_seconds=0.3, connect_timeout_seconds=0.3, breaker=held) as tier:
            server.pause()
            asked = (tier.lease(f"r:many:{number}", 0, [], refresh=False) for number in range(500))
            found = await asyncio.gather(*asked, return_exceptions=True)
            server.resume()
        reasons = [one.reason for one in found]
        assert reasons.count("timeout") <= 32
        assert reasons.count("timeout") + reasons.count("bypassed") == 500

    asyncio.run(ask())


def test_more_callers_than_connections_wait_for_each_other(server):
    """Five hundred leases at once are granted over 32 connections."""

    async def ask() -> None:
        async with connected(server.url) as tier:
            leases = await asyncio.gather(*(tier.lease(f"r:many:{n}", 0, [], refresh=False) for n in range(500)))
            assert len({lease.lease for lease in leases}) == 500
        with Redis.from_url(server.url) as client:
            assert client.info("stats")["total_connections_received"] < 60

    asyncio.run(ask())
