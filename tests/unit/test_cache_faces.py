"""What callers see of a cache, through both faces: tiers, policies, TTLs, batches, failures, switches, figures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from relay.cache import Bounded, Cache, Eventual, Local, Need, Session, Strong, Versioned, presets
from relay.cache.numbers import LOADS, READS, SAVED, TIER_ERRORS
from relay.cache.tiers import Bump
from relay.errors import CacheError
from tests.support.reading import ENTITY, FACES, World


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def world(face: str) -> Iterator[World]:
    world = World(face)
    yield world
    world.close()


@pytest.fixture
def bare(face: str) -> Iterator[World]:
    """Without a process tier."""
    world = World(face, local=False)
    yield world
    world.close()


@pytest.fixture
def alone(face: str) -> Iterator[World]:
    """Without a shared tier."""
    world = World(face, shared=False)
    yield world
    world.close()


def code_of(call: Any, *args: Any) -> str:
    with pytest.raises(CacheError) as caught:
        call(*args)
    return caught.value.code


def test_a_read_says_which_tier_answered_and_how_old_the_answer_may_be(world):
    user = world.entity()
    world.commit(1, "value")
    first = user.read(1)
    assert (first.value, first.version, first.tier, first.is_stale) == ("value", 1, "source", False)
    world.now += 10
    assert user.read(1)[2:5] == ("local", 10, 10)
    world.now += 25
    shared = user.read(1)
    assert shared.tier == "shared"
    assert shared.bound_seconds == pytest.approx(35, abs=0.01)
    assert user.read(1).tier == "local"
    assert len(world.loads) == 1


def test_the_age_of_a_copy_counts_from_the_beginning_of_its_load(bare):
    user = bare.entity()
    bare.commit(1, "value")

    def take_a_second() -> None:
        bare.now += 1

    bare.hooks.in_load.append(take_a_second)
    assert user.read(1).age_seconds == pytest.approx(1)
    bare.now += 2
    assert user.read(1).age_seconds == pytest.approx(3, abs=0.01)


def test_without_any_tier_every_read_is_a_load(face):
    world = World(face, local=False, shared=False)
    user = world.entity()
    world.commit(1, "value")
    assert [user(1), user(1)] == ["value", "value"]
    assert len(world.loads) == 2
    world.close()


def test_an_absence_is_kept_too_and_for_a_shorter_time(world):
    user = world.entity(negative_ttl=5)
    assert user(1) is None
    assert user(1) is None
    assert user.many([1]) == {1: None}
    assert len(world.loads) == 1
    world.now += 6
    assert user(1) is None
    assert len(world.loads) == 2


def test_a_value_is_gone_after_its_hard_ttl(world):
    user = world.entity(hard_ttl=40)
    world.commit(1, "old")
    user(1)
    world.now += 39
    assert user(1) == "old"
    world.commit(1, "new")
    world.now += 2
    assert user(1) == "new"


def test_past_its_soft_ttl_a_value_is_served_and_loaded_anew_once(world):
    user = world.entity(hard_ttl=600, soft_ttl=20)
    world.commit(1, "old")
    user(1)
    world.commit(1, "new")
    world.now += 21
    assert user(1) == "old"
    for _ in range(5):
        user(1)
    world.settle()
    assert user(1) == "new"
    assert len(world.loads) == 2


def test_what_another_process_has_refreshed_is_taken_from_the_shared_tier(face):
    one, other = World(face), World(face)
    other.tier.reference = one.tier.reference
    other.rows = one.rows
    one.commit(1, "value")
    users = [world.entity(hard_ttl=600, soft_ttl=20) for world in (one, other)]
    assert [user(1) for user in users] == ["value", "value"]
    for world, user in zip((one, other), users, strict=True):
        one.now = other.now = max(one.now, other.now) + (21 if world is one else 0)
        user(1)
        world.settle()
    assert len(one.loads) == 2
    assert other.loads == []
    one.close()
    other.close()


def test_a_refresh_that_fails_is_not_begun_again_at_every_read(bare):
    user = bare.entity(hard_ttl=600, soft_ttl=20)
    bare.commit(1, "value")
    user(1)
    bare.now += 21
    bare.error = ValueError("down")
    for _ in range(5):
        assert user(1) == "value"
        bare.settle()
    assert len(bare.loads) == 2
    bare.now += 1.1
    user(1)
    bare.settle()
    assert len(bare.loads) == 3


def test_a_reader_does_not_wait_for_a_refresh_that_waits_for_a_thread(bare):
    user = bare.entity()
    bare.commit(1, "value")
    queued = next(iter(bare.cache.readers.values())).flights.try_lead("1", has_begun=False)
    assert queued is not None
    began = bare.now
    assert user(1) == "value"
    assert bare.now == began
    assert queued.ended.has_fired


def test_a_bound_is_kept_by_both_tiers(world):
    user = world.entity()
    world.commit(1, "old")
    user(1)
    world.commit(1, "new")
    world.now += 5
    assert user.read(1, policy=Bounded(10)).value == "old"
    assert user.read(1, policy=Bounded(4)).value == "new"
    assert user(1) == "new"


def test_a_cache_with_a_bound_keeps_it_on_its_fastest_path(world):
    user = world.entity(policy=Bounded(3))
    world.commit(1, "old")
    user(1)
    world.commit(1, "new")
    world.now += 2.9
    assert user(1) == "old"
    world.now += 0.2
    assert user(1) == "new"


def test_a_bound_is_not_claimed_for_what_a_replica_showed(bare):
    needs: list[Need] = []

    def load(id_: int, need: Need) -> Versioned[str]:
        needs.append(need)
        return Versioned("value", 1, cacheable=need.primary)

    user = bare.entity(load)
    assert user.read(1).bound_seconds is None
    assert user.read(1, policy=Bounded(5)).bound_seconds == 0
    assert [need.primary for need in needs] == [False, True]


def test_a_strong_read_asks_the_primary_every_time(world):
    user = world.entity(policy=Strong())
    world.commit(1, "value")
    user(1)
    user(1)
    assert [need.primary for _, need in world.loads] == [True, True]
    assert user.read(1, policy=Eventual()).tier == "source"
    assert user(1) == "value"
    assert len(world.loads) == 4


def test_many_ask_each_tier_once_and_load_what_is_left(world):
    user = world.entity()
    for id_ in range(6):
        world.commit(id_, f"value {id_}")
    user(0)
    user(1)
    world.local.void(world.local.space(ENTITY))
    world.now += 0.001
    user(2)
    world.tier.looks.clear()
    expected = {id_: f"value {id_}" for id_ in (5, 0, 1, 2, 3)}
    found = user.many([5, 0, 1, 2, 3, 5])
    assert found == expected
    assert list(found) == list(expected)
    assert world.tier.looks[0] == 4
    assert [id_ for id_, _ in world.loads] == [0, 1, 2, 5, 3]
    world.tier.looks.clear()
    assert user.many([5, 0, 1, 2, 3]) == expected
    assert world.tier.looks == []


def test_many_of_the_shared_tier_cost_one_look_and_no_load(bare):
    user = bare.entity()
    for id_ in range(100):
        bare.commit(id_, {"id": id_})
    expected = {id_: {"id": id_} for id_ in range(100)}
    assert user.many(range(100)) == expected
    bare.tier.looks.clear()
    bare.loads.clear()
    assert user.many(range(100)) == expected
    assert bare.tier.looks == [100]
    assert bare.loads == []


def test_many_are_loaded_by_one_call_where_there_is_a_loader_of_many(world):
    calls: list[Mapping[Any, Need]] = []

    def load_many(needs: Mapping[Any, Need]) -> dict[Any, Versioned[Any]]:
        calls.append(dict(needs))
        return {id_: Versioned(*world.rows[id_]) for id_ in needs if id_ in world.rows and id_ != 3}

    async def load_many_in_loop(needs: Mapping[Any, Need]) -> dict[Any, Versioned[Any]]:
        return load_many(needs)

    user = world.entity(load_many=load_many if world.face == "threads" else load_many_in_loop)
    for id_ in range(1, 4):
        world.commit(id_, f"value {id_}")
    assert user.many([1, 2, 3, 9]) == {1: "value 1", 2: "value 2", 3: "value 3", 9: None}
    assert [set(call) for call in calls] == [{1, 2, 3, 9}]
    assert [id_ for id_, _ in world.loads] == [3, 9]
    assert user.many([1, 2, 3, 9]) == {1: "value 1", 2: "value 2", 3: "value 3", 9: None}
    assert len(calls) == 1


def test_a_loader_of_many_that_is_behind_or_fails_or_returns_rubbish_is_seen_through(bare):
    outcome: list[Any] = [{1: Versioned("old", 1)}, ValueError("down"), [1]]

    def load_many(needs: Mapping[Any, Need]) -> Any:
        result = outcome.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    async def load_many_in_loop(needs: Mapping[Any, Need]) -> Any:
        return load_many(needs)

    user = bare.entity(load_many=load_many if bare.face == "threads" else load_many_in_loop)
    bare.rows[1] = ("new", 2)
    bare.apply(1, 2)
    assert user.many([1]) == {1: "new"}
    with pytest.raises(ValueError, match="down"):
        user.many([2])
    assert code_of(user.many, [2]) == "RLY-912"
    assert next(iter(bare.cache.readers.values())).flights.count == 0


def test_an_exception_of_one_of_many_is_raised_when_the_others_have_ended(world):
    def load(id_: int, need: Need) -> Versioned[int]:
        world.loads.append((id_, need))
        if id_ == 2:
            raise ValueError("no 2")
        return Versioned(id_, 1)

    user = world.entity(load)
    with pytest.raises(ValueError, match="no 2"):
        user.many([1, 2, 3])
    world.loads.clear()
    assert user.many([1, 3]) == {1: 1, 3: 3}
    assert world.loads == []


def test_a_sick_tier_is_no_error_for_readers(world):
    user = world.entity()
    world.commit(1, "value")
    world.tier.is_down = True
    assert user(1) == "value"
    assert user.read(1).tier == "local"
    assert user.many([1, 2]) == {1: "value", 2: None}
    assert user.invalidate(1) is False
    assert user(1) == "value"
    assert world.numbers.snapshot().value(TIER_ERRORS, "shared", "connection") >= 3


def test_a_tier_that_falls_ill_while_a_value_is_loaded_does_not_keep_the_value_from_its_reader(world):
    user = world.entity()
    world.commit(1, "value")

    def fall_ill() -> None:
        world.tier.is_down = True

    world.hooks.in_load.append(fall_ill)
    assert user(1) == "value"
    assert user.read(1).tier == "local"


def test_while_the_tier_is_closed_values_come_from_the_primary(bare):
    user = bare.entity()
    bare.commit(1, "value")
    user(1)
    bare.tier.reference.epoch = None
    assert user.read(1).tier == "source"
    assert bare.loads[-1][1].primary


def test_while_the_source_fails_the_last_value_is_served_if_the_cache_keeps_it(world):
    user = world.entity(keep=True)
    world.commit(1, "old")
    user(1)
    world.apply(1, 2)
    world.local.apply(ENTITY, "1", 2)
    world.error = ValueError("down")
    read = user.read(1)
    assert (read.value, read.version, read.is_stale) == ("old", 1, True)
    for policy in (Session(), Bounded(1e6), Strong()):
        with pytest.raises(ValueError, match="down"):
            user.read(1, policy=policy)
    world.tier.is_down = True
    assert user.read(1).is_stale
    with world.cache.session() as session:
        session.wrote(ENTITY, 1, 2)
        with pytest.raises(ValueError, match="down"):
            user(1)


def test_while_the_source_fails_nothing_old_is_served_by_a_cache_that_keeps_nothing(world):
    user = world.entity()
    world.commit(1, "old")
    user(1)
    world.apply(1, 2)
    world.local.apply(ENTITY, "1", 2)
    world.error = ValueError("down")
    with pytest.raises(ValueError, match="down"):
        user(1)


def test_flags_fail_static(alone):
    flag = alone.face_of(alone.cache.entity("flag", **presets.feature_flags()), alone.load)
    alone.commit("dark", True)
    assert flag("dark") is True
    alone.error = ValueError("down")
    alone.now += 3600
    read = flag.read("dark")
    assert (read.value, read.is_stale) == (True, True)


def test_off_means_that_nothing_is_copied_or_served_until_it_is_on_again(world):
    user = world.entity()
    world.commit(1, "old")
    user(1)
    user.off()
    world.rows[1] = ("new", 1)
    assert [user(1), user(1), user.many([1])[1]] == ["new"] * 3
    assert user.stats().is_off
    assert user.stats().local_entries == 0
    world.apply(1, None)
    user.on()
    world.now += 0.001
    assert user(1) == "new"
    assert user.read(1).tier == "local"


def test_an_invalidation_drops_the_value_in_both_tiers(world):
    user = world.entity()
    world.commit(1, "old")
    user(1)
    world.rows[1] = ("new", 1)
    assert user.invalidate(1) is True
    assert user(1) == "new"


def test_the_keys_that_are_read_most_can_be_warmed_again(world):
    user = world.entity()
    for id_ in range(50):
        world.commit(id_, id_)
        user(id_)
    for _ in range(200):
        for hot in (7, 8, 9):
            user.read(hot)
    world.tier.reference.open("flush", ())
    world.local.void(world.local.space(ENTITY))
    world.loads.clear()
    assert user.prewarm(top=3) == 3
    assert {id_ for id_, _ in world.loads} == {7, 8, 9}
    assert user.prewarm([1, 2]) == 2


def test_results_are_kept_by_what_they_were_asked_for(bare):
    calls: list[Any] = []

    def search(query: str, limit: int = 10) -> list[str]:
        calls.append((query, limit))
        return [query] * limit

    cached = bare.derived(search, ttl=60)
    assert cached("a") == cached("a", 10) == ["a"] * 10
    if bare.face == "threads":
        assert cached(limit=10, query="a") == ["a"] * 10
    assert cached("a", 2) == ["a", "a"]
    assert calls == [("a", 10), ("a", 2)]
    assert cached.read("a").tier == "shared"
    bare.now += 61
    assert cached("a") == ["a"] * 10
    assert len(calls) == 3


def test_results_without_a_shared_tier_are_kept_in_the_process(alone):
    calls: list[str] = []
    cached = alone.derived(lambda query: calls.append(query) or query, ttl=60, depends=lambda query: ["listing"])
    assert cached("a") == cached("a") == "a"
    assert calls == ["a"]
    assert alone.renew("listing")
    assert cached("a") == "a"
    assert calls == ["a", "a"]


def test_a_result_past_its_soft_ttl_is_served_and_computed_anew(bare):
    count = iter(range(10))
    cached = bare.derived(lambda query: next(count), ttl=60, soft_ttl=30, depends=lambda query: ["listing"])
    assert cached("a") == 0
    bare.now += 31
    assert cached("a") == 0
    bare.settle()
    assert cached("a") == 1


def test_loaders_that_break_their_contract_are_told_so(bare):
    returned: list[Any] = ["no version", Versioned("x", -1), Versioned("x", True), Versioned("x", 2**53), None]
    user = bare.entity(lambda id_, need: returned.pop(0))
    assert [code_of(user, 1) for _ in range(5)] == ["RLY-912"] * 5
    old = bare.entity(lambda id_, need: Versioned("old", 1), name="old")
    bare.tier.reference.apply([Bump("r:old:1", 2, unknown=False)], (), ())
    assert code_of(old, 1) == "RLY-913"
    derived = bare.derived(lambda thing: 1)
    assert code_of(derived, object()) == "RLY-916"


def test_a_value_that_the_codec_cannot_write_is_an_error_and_holds_nobody_up(bare):
    values: list[Any] = [object(), "value"]
    user = bare.entity(lambda id_, need: Versioned(values.pop(0), 1))
    assert code_of(user, 1) == "RLY-901"
    assert user(1) == "value"


def test_settings_that_make_no_sense_are_refused(face):
    world = World(face)
    wrong: list[dict[str, Any]] = [
        {"hard_ttl": 0},
        {"soft_ttl": 700},
        {"negative_ttl": 0},
        {"loads_max": 0},
        {"load_seconds": 0},
        {"schema": -1},
    ]
    for settings in wrong:
        assert code_of(lambda settings=settings: world.entity(**settings)) == "RLY-915"
    assert code_of(lambda: world.entity(name="a:b")) == "RLY-915"
    world.entity()
    assert code_of(world.entity) == "RLY-915"
    assert code_of(lambda: world.derived(lambda q: q, policy=Session())) == "RLY-915"
    world.close()


def test_every_read_is_counted_where_it_was_answered(world):
    user = world.entity()
    world.commit(1, "value")
    for _ in range(3):
        user(1)
    world.now += 31
    user(1)
    user.read(1)
    snapshot = world.numbers.snapshot()
    assert snapshot.value(READS, ENTITY, "source", "miss") == 1
    assert snapshot.value(READS, ENTITY, "local", "hit") == 3
    assert snapshot.value(READS, ENTITY, "shared", "hit") == 1
    assert snapshot.value(LOADS, ENTITY, "ok") == 1
    assert snapshot.total(SAVED) == 0


def test_the_presets_are_settings_that_a_cache_takes(face):
    world = World(face)
    world.face_of(world.cache.entity("profile", **presets.user_profile()), world.load)
    world.face_of(world.cache.derived("results", **presets.search_results()), lambda query: query)
    balance = world.face_of(world.cache.entity("balance", **presets.balances()), world.load)
    world.commit(1, 100)
    assert balance(1) == balance(1) == 100
    assert len(world.loads) == 2
    world.close()


def test_a_forked_child_reads_on_its_own():
    with Cache("test", local=Local()) as cache:
        loads: list[int] = []

        @cache.entity("user", hard_ttl=600, load_seconds=1000)
        def user(id: int, need: Need) -> Versioned[int]:  # noqa: A002
            loads.append(id)
            return Versioned(id, 1)

        user(1)
        reader = next(iter(cache.readers.values()))
        flight = reader.flights.try_lead("2")  # as if a thread of the parent were loading it
        assert flight is not None
        child = os.fork()
        if not child:
            signal.alarm(20)
            os._exit(0 if user(2) == 2 and user(1) == 1 and loads == [1, 2] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_cache_loads_no_library_that_was_not_asked_for():
    foreign = "redis", "orjson", "hiredis", "confluent_kafka", "sqlalchemy", "psycopg", "pydantic", "prometheus_client"
    program = "import sys, relay.cache; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(foreign) & set(done.stdout.split())
