"""Versioned keys keep their promise on a real Redis, whatever it forgets: both faces, version by event or by source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from relay.cache import AsyncCache, Bounded, Need, Strong
from relay.core.record import VERSION_MAX, decode_record
from relay.errors import CacheError
from tests.support.caches import World


@pytest.fixture(params=["sync", "async"])
def make(request, redis_url, namespace) -> Iterator[Any]:
    made: list[World] = []

    def world(**settings: Any) -> World:
        made.append(World(request.param, redis_url, namespace, **settings))
        made[-1].consumer.open("test", ())
        return made[-1]

    yield world
    for one in made:
        one.close()


def test_each_version_has_a_key_of_its_own_and_old_ones_stay_until_their_ttl(make):
    """One event invalidates; nothing is deleted, and nothing is ever changed under its key."""
    world = make(hard_ttl=600, jitter=0)
    world.source.write("42", "Ann")
    assert world.read()[:3] == ("Ann", 1, "source")
    assert world.read()[:3] == ("Ann", 1, "local")
    world.source.write("42", "Anna")
    world.announce()
    assert world.read()[:3] == ("Anna", 2, "source")
    assert world.keys("v:*") == {"v:user:42:v1", "v:user:42:v2"}
    assert 590 < world.client.ttl(f"relay:{{{world.namespace}}}:v:user:42:v1") <= 600
    world.forget_local()
    assert world.read()[:3] == ("Anna", 2, "shared")
    assert world.source.loads == ["42", "42"]


@pytest.mark.parametrize("policy", [None, Strong()], ids=["by event", "by source"])
def test_neither_an_eviction_nor_a_flush_brings_an_old_version_back(make, policy):
    """A counter in Redis would begin again at 1, and find the values of its first life."""
    world = make(with_local=False)
    for name in ("Ann", "Anna", "Annette"):
        world.source.write("42", name)
        world.announce()
        assert world.read(policy=policy)[:2] == (name, world.source.version("42"))

    world.client.delete(f"relay:{{{world.namespace}}}:r:user:42")
    assert world.read(policy=policy)[:2] == ("Annette", 3)

    for key in world.client.scan_iter(f"relay:{{{world.namespace}}}:*"):
        world.client.delete(key)
    world.source.write("42", "Anne")
    assert world.read(policy=policy)[:2] == ("Anne", 4)
    assert world.keys() == set()

    world.consumer.open("test", ())
    assert world.read(policy=policy)[:2] == ("Anne", 4)
    assert world.read(policy=policy)[:3] == ("Anne", 4, "shared")


def test_a_failover_that_lost_writes_is_over_with_its_epoch(make):
    """The record of the version is that of before; once the consumer has noticed, neither it nor any value counts."""
    world = make(with_local=False)
    world.source.write("42", "Ann")
    world.read()
    backup = {key: world.client.dump(key) for key in world.client.scan_iter(f"relay:{{{world.namespace}}}:*")}
    world.source.write("42", "Anna")
    world.announce()
    assert world.read()[:2] == ("Anna", 2)
    for key, content in backup.items():
        world.client.restore(key, 0, content, replace=True)
    world.consumer.open("lost", ())
    assert world.read()[:3] == ("Anna", 2, "source")
    assert world.read(policy=Strong())[:3] == ("Anna", 2, "shared")


@pytest.mark.parametrize("policy", [None, Strong()], ids=["by event", "by source"])
def test_what_is_deleted_and_made_again_counts_on(make, policy):
    """Absence is a value of its version, and no version is used twice."""
    world = make(with_local=False)
    for value in ("Ann", None, "Bea", None):
        world.source.write("42", value)
        world.announce()
        assert world.read(policy=policy)[:2] == (value, world.source.version("42"))
        assert world.read(policy=policy)[:3] == (value, world.source.version("42"), "shared")
    assert world.keys("v:*") == {f"v:user:42:v{number}" for number in (1, 2, 3, 4)}
    assert world.read("nobody", policy=policy)[:2] == (None, 0)


def test_a_value_that_is_newer_than_its_event_is_served_and_not_kept_under_the_old_key(make):
    """Its key would say something else than it holds. The record of the version follows, so that this is no storm."""
    world = make(with_local=False)
    world.source.write("42", "Ann")
    world.read()
    world.client.delete(f"relay:{{{world.namespace}}}:v:user:42:v1")
    world.source.write("42", "Anna")
    assert world.read()[:3] == ("Anna", 2, "source")
    kept = decode_record(world.client.get(f"relay:{{{world.namespace}}}:v:user:42:v1"))
    assert kept is None or not kept.has_value
    assert world.read()[:2] == ("Anna", 2)
    assert world.read()[:3] == ("Anna", 2, "shared")
    assert world.keys("v:*") >= {"v:user:42:v2"}
    assert len(world.source.loads) == 3


def test_by_source_nothing_old_is_ever_given(make):
    """Under Strong the version is asked for every time, and the value is still a copy."""
    world = make(policy=Strong())
    world.source.write("42", "Ann")
    for _ in range(3):
        assert world.read()[:2] == ("Ann", 1)
    world.source.write("42", "Anna")
    for _ in range(3):
        assert world.read()[:2] == ("Anna", 2)
    assert (len(world.source.loads), len(world.source.asked)) == (2, 6)


def test_a_session_reads_its_own_writes_before_their_event(make):
    """Also in another process, by its token, and it does not go back afterwards."""
    world = make()
    world.source.write("42", "Ann")
    world.read()
    with world.cache.session() as session:
        session.wrote("user", "42", world.source.write("42", "Anna"))
        assert world.read()[:2] == ("Anna", 2)
        token = session.token()
    with world.cache.session(token):
        assert world.read()[:2] == ("Anna", 2)
        assert world.do(world.user.many(["42"])) == {"42": "Anna"}


def test_a_lagging_replica_fills_nothing(make):
    """It is asked again for the primary, because the version is known."""
    world = make(with_local=False)
    world.source.write("42", "Ann")
    world.source.lags["42"] = (None, 0)
    assert world.read()[:2] == ("Ann", 1)
    assert world.source.loads == ["42", "42"]


def test_many_are_read_at_once_and_bounded_ones_are_bounded(make):
    """One look for the versions, one for the values; policies hold for the version."""
    world = make(with_local=False)
    for number in range(5):
        world.source.write(str(number), f"n{number}")
    ids = [str(number) for number in range(6)]
    wanted = {str(number): f"n{number}" for number in range(5)} | {"5": None}
    assert world.do(world.user.many(ids)) == wanted
    loads = len(world.source.loads)
    assert world.do(world.user.many([*ids, *ids])) == wanted
    assert len(world.source.loads) == loads
    asked = len(world.source.asked)
    assert world.read("1", policy=Bounded(1e-9)).value == "n1"
    assert len(world.source.asked) > asked
    assert len(world.source.loads) == loads
    assert world.do(world.user.prewarm(ids)) == 6


def test_it_can_be_switched_off_invalidated_and_bypassed(make):
    """As any other cache of an entity."""
    world = make()
    world.source.write("42", "Ann")
    world.read()
    world.user.off()
    world.source.write("42", "Anna")
    assert world.read()[:3] == ("Anna", 2, "source")
    world.user.on()
    assert world.do(world.user.invalidate("42")) is True
    assert world.read()[:2] == ("Anna", 2)
    world.source.write("42", "uncommitted")
    with world.cache.bypass():
        assert world.read().value == "uncommitted"
        assert world.do(world.user.many(["42"])) == {"42": "uncommitted"}
    world.source.rows["42"] = ("Anna", 2)
    world.forget_local()
    assert world.read()[:3] == ("Anna", 2, "shared")


def test_when_the_source_fails_the_last_value_is_served_if_it_may_be(make):
    """Only where the cache keeps such; marked as stale."""
    world = make(keep=True, with_local=False)
    world.source.write("42", "Ann")
    world.read()
    world.source.write("42", "Anna")
    world.announce()
    world.source.is_down = True
    found = world.read()
    assert (found.value, found.version, found.is_stale) == ("Ann", 1, True)
    with pytest.raises(ConnectionError):
        world.read(policy=Strong())


def test_a_loader_that_reads_its_own_key_is_refused(make):
    """It would wait for itself."""
    world = make()
    world.source.write("42", "Ann")

    async def re_entrant(id_: str, _version: int, _need: Need) -> Any:
        return await world.user(id_)

    is_async = isinstance(world.cache, AsyncCache)
    world.cache.readers["values of user"].loader = re_entrant if is_async else lambda id_, *_: world.user(id_)
    with pytest.raises(CacheError, match="RLY-911"):
        world.read()


def test_an_id_cannot_be_taken_for_a_version_of_another(make):
    """The id `42:v1` and the version 1 of 42, whatever the entity is called."""
    world = make()
    world.source.write("42", "Ann")
    world.source.write("42:v1", "Bob")
    for _ in range(2):
        assert (world.read("42").value, world.read("42:v1").value) == ("Ann", "Bob")
    for entity in ("user", "user.values"):
        world.local.apply(entity, "42:v1", VERSION_MAX)
    assert world.read("42")[:3] == ("Ann", 1, "local")
