"""Single-flight: one loads, the others wait, nobody waits for ever, and nobody waits for himself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from relay.cache import AsyncCache, Cache, Local, Need, Versioned
from relay.cache.bulkhead import Bulkhead
from relay.cache.flights import Flights, copy_of
from relay.errors import CacheError

PATIENCE = 20.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """What each returned or raised."""
    results: list[Any] = [None] * len(calls)

    def run(number: int) -> None:
        try:
            results[number] = calls[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    return results


@pytest.fixture
def cache():
    with Cache("test", local=Local()) as cache:
        yield cache


def reader_of(cache: Any) -> Any:
    return next(iter(cache.readers.values()))


class OddError(Exception):
    """Cannot be made of its arguments."""

    def __init__(self, one: int, *, two: int) -> None:
        super().__init__(f"{one} and {two}")
        self.two = two


def test_of_all_threads_that_miss_a_key_one_loads(cache):
    loads: list[int] = []

    @cache.entity("user")
    def user(id: int, need: Need) -> Versioned[str]:  # noqa: A002
        loads.append(id)
        until(lambda: len(waiting(cache, "1")) == 9)
        return Versioned("value", 1)

    assert in_threads(*[lambda: user(1)] * 10) == ["value"] * 10
    assert loads == [1]


def waiting(cache: Any, key: str) -> list[Any]:
    flight = reader_of(cache).flights._flights.get(key)
    return [] if flight is None else flight.ended._calls or []


def test_the_exception_of_the_one_who_loads_reaches_all_as_one_of_their_own(cache):
    @cache.entity("user")
    def user(id: int, need: Need) -> Versioned[str]:  # noqa: A002
        until(lambda: len(waiting(cache, "1")) == 3)
        raise OddError(1, two=2)

    errors = in_threads(*[lambda: user(1)] * 4)
    assert [type(error) for error in errors] == [OddError] * 4
    assert {str(error) for error in errors} == {"1 and 2"}
    assert {error.two for error in errors} == {2}
    assert len({id(error) for error in errors}) == 4


@pytest.mark.parametrize(
    "error", [ValueError("x"), OSError(2, "no such file"), UnicodeDecodeError("utf8", b"", 0, 1, "x")]
)
def test_a_copy_of_an_exception_says_the_same(error):
    twin = copy_of(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert twin.args == error.args


def test_after_a_failure_the_next_reader_loads_again(cache):
    outcomes: list[Any] = [ValueError("once"), Versioned("value", 1)]

    @cache.entity("user")
    def user(id: int, need: Need) -> Versioned[str]:  # noqa: A002
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with pytest.raises(ValueError, match="once"):
        user(1)
    assert user(1) == "value"


def test_when_the_one_who_loads_dies_the_others_are_released_and_one_takes_over(cache):
    deaths: list[BaseException] = [SystemExit()]

    @cache.entity("user")
    def user(id: int, need: Need) -> Versioned[str]:  # noqa: A002
        if deaths:
            until(lambda: len(waiting(cache, "1")) == 3)
            raise deaths.pop()
        return Versioned("value", 1)

    results = in_threads(*[lambda: user(1)] * 4)
    assert sorted(map(str, results)) == ["", "value", "value", "value"]


def test_a_loader_that_reads_its_own_key_is_told_so(cache):
    @cache.entity("user")
    def user(id: int, need: Need) -> Versioned[Any]:  # noqa: A002
        return Versioned(user(id), 1)

    with pytest.raises(CacheError) as caught:
        user(1)
    assert caught.value.code == "RLY-911"
    with pytest.raises(CacheError), cache.bypass():
        user(1)
    with pytest.raises(CacheError):
        user.many([1])


def test_loaders_that_read_one_another_in_a_circle_end(cache):
    @cache.entity("left")
    def left(id: int, need: Need) -> Versioned[Any]:  # noqa: A002
        return Versioned(right(id), 1)

    @cache.entity("right")
    def right(id: int, need: Need) -> Versioned[Any]:  # noqa: A002
        return Versioned(left(id), 1)

    with pytest.raises(CacheError) as caught:
        left(1)
    assert caught.value.code == "RLY-911"


def test_threads_whose_loads_wait_for_one_another_do_not_wait_for_ever(cache):
    """Each loads what the other one needs: the one who would close the circle loads for himself."""
    both = threading.Barrier(2)
    is_first: set[str] = {"left", "right"}

    @cache.entity("left", load_seconds=1000)
    def left(id: int, need: Need) -> Versioned[str]:  # noqa: A002
        if "left" in is_first:
            is_first.remove("left")
            both.wait(PATIENCE)
            return Versioned("left of " + right(id), 1)
        return Versioned("left alone", 1)

    @cache.entity("right", load_seconds=1000)
    def right(id: int, need: Need) -> Versioned[str]:  # noqa: A002
        if "right" in is_first:
            is_first.remove("right")
            both.wait(PATIENCE)
            return Versioned("right of " + left(id), 1)
        return Versioned("right alone", 1)

    results = in_threads(lambda: left(1), lambda: right(1))
    assert set(results) in (
        {"left of right of left alone", "right of left alone"},
        {"right of left of right alone", "left of right alone"},
    )


def test_tasks_whose_loads_wait_for_one_another_do_not_wait_for_ever():
    async def go() -> list[str]:
        async with AsyncCache("test", local=Local()) as cache:
            both = asyncio.Barrier(2)
            is_first: set[str] = {"left", "right"}

            @cache.entity("left", load_seconds=1000)
            async def left(id: int, need: Need) -> Versioned[str]:  # noqa: A002
                if "left" in is_first:
                    is_first.remove("left")
                    await both.wait()
                    return Versioned("left of " + await right(id), 1)
                return Versioned("left alone", 1)

            @cache.entity("right", load_seconds=1000)
            async def right(id: int, need: Need) -> Versioned[str]:  # noqa: A002
                if "right" in is_first:
                    is_first.remove("right")
                    await both.wait()
                    return Versioned("right of " + await left(id), 1)
                return Versioned("right alone", 1)

            return list(await asyncio.gather(left(1), right(1)))

    results = asyncio.run(asyncio.wait_for(go(), PATIENCE))
    assert results in (
        ["left of right of left alone", "right of left alone"],
        ["left of right alone", "right of left of right alone"],
    )


def test_flights_of_a_parent_are_not_waited_for_in_a_forked_child():
    flights: Flights[int] = Flights()
    flights.enter("1")
    flights.forget_all()
    assert flights.try_lead("1") is not None


def test_a_task_that_is_cancelled_leaves_the_others_their_load():
    async def go() -> None:
        async with AsyncCache("test", local=Local()) as cache:
            loads: list[int] = []
            may_end = asyncio.Event()

            @cache.entity("user")
            async def user(id: int, need: Need) -> Versioned[str]:  # noqa: A002
                loads.append(id)
                await may_end.wait()
                return Versioned("value", 1)

            tasks = [asyncio.ensure_future(user(1)) for _ in range(5)]
            while not loads:
                await asyncio.sleep(0)
            tasks[0].cancel()
            await asyncio.sleep(0)
            may_end.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(results[0], asyncio.CancelledError)
            assert results[1:] == ["value"] * 4
            assert loads == [1]

    asyncio.run(asyncio.wait_for(go(), PATIENCE))


def test_closing_cancels_loads_and_releases_those_who_wait():
    async def go() -> None:
        cache = AsyncCache("test")
        started = asyncio.Event()

        @cache.entity("user")
        async def user(id: int, need: Need) -> Versioned[str]:  # noqa: A002
            if started.is_set():
                return Versioned("second", 1)
            started.set()
            await asyncio.Event().wait()
            raise AssertionError

        waiter = asyncio.ensure_future(user(1))
        await started.wait()
        await cache.aclose()
        assert await waiter == "second"

    asyncio.run(asyncio.wait_for(go(), PATIENCE))


def test_a_load_that_is_cancelled_before_it_began_releases_those_who_wait():
    async def go() -> None:
        cache = AsyncCache("test")

        @cache.entity("user")
        async def user(id: int, need: Need) -> Versioned[str]:  # noqa: A002
            return Versioned("value", 1)

        waiter = asyncio.ensure_future(user(1))
        await asyncio.sleep(0)
        assert reader_of(cache).flights.count == 1
        await cache.aclose()
        assert await waiter == "value"

    asyncio.run(asyncio.wait_for(go(), PATIENCE))


def test_tasks_of_two_loops_share_a_load():
    cache = AsyncCache("test", local=Local())
    loads: list[int] = []

    @cache.entity("user")
    async def user(id: int, need: Need) -> Versioned[str]:  # noqa: A002
        loads.append(id)
        while len(waiting(cache, "1")) < 2:
            await asyncio.sleep(0.001)
        return Versioned("value", 1)

    def run() -> str:
        return asyncio.run(asyncio.wait_for(_awaited(user, 1), PATIENCE))

    assert in_threads(run, run) == ["value"] * 2
    assert loads == [1]


async def _awaited(user: Any, id_: int) -> str:
    return await user(id_)


def test_a_loader_whose_tasks_read_its_own_key_is_told_so():
    async def go() -> None:
        async with AsyncCache("test") as cache:

            @cache.entity("user")
            async def user(id: int, need: Need) -> Versioned[Any]:  # noqa: A002
                return Versioned(await asyncio.gather(asyncio.ensure_future(_awaited(user, id))), 1)

            with pytest.raises(CacheError) as caught:
                await user(1)
            assert caught.value.code == "RLY-911"

    asyncio.run(asyncio.wait_for(go(), PATIENCE))


def test_no_more_loads_run_at_once_than_are_allowed(cache):
    running: set[int] = set()
    most: list[int] = []

    @cache.entity("user", loads_max=3)
    def user(id: int, need: Need) -> Versioned[int]:  # noqa: A002
        running.add(id)
        most.append(len(running))
        time.sleep(0.002)
        running.discard(id)
        return Versioned(id, 1)

    assert in_threads(*[lambda number=number: user(number) for number in range(20)]) == list(range(20))
    assert max(most) <= 3


def test_who_finds_no_place_to_load_in_time_is_told_so(cache):
    may_end = threading.Event()

    @cache.entity("user", loads_max=1, load_seconds=0.05)
    def user(id: int, need: Need) -> Versioned[int]:  # noqa: A002
        if id == 1:
            may_end.wait(PATIENCE)
        return Versioned(id, 1)

    def second() -> int:
        until(lambda: reader_of(cache).flights.count == 1)
        try:
            return user(2)
        finally:
            may_end.set()

    results = in_threads(lambda: user(1), second)
    assert results[0] == 1
    assert results[1].code == "RLY-914"
    assert user(3) == 3


def test_a_load_inside_of_a_load_needs_no_place_of_its_own(cache):
    @cache.entity("inner", loads_max=1)
    def inner(id: int, need: Need) -> Versioned[int]:  # noqa: A002
        return Versioned(0 if id == 0 else inner(id - 1) + 1, 1)

    assert inner(5) == 5


def test_a_place_that_comes_to_one_who_has_gone_is_handed_on():
    bulkhead = Bulkhead(1)
    assert bulkhead.enter() is None
    gone, patient = bulkhead.enter(), bulkhead.enter()
    assert gone is not None
    assert patient is not None
    bulkhead.leave()
    assert gone.has_fired
    bulkhead.withdraw(gone)
    assert patient.has_fired
    bulkhead.leave()
    assert bulkhead.enter() is None
