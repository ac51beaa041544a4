"""What must not go wrong when two things happen at once: the races of the read path, one by one, on both faces.

The numbers are those of the table of races in the documentation. What happens meanwhile happens inside of a loader, or
between a look and its answer, so each race is played in one thread and always in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from relay.cache import Bounded, Eventual, Need, Session, Versioned
from relay.cache.glancing import Found
from relay.cache.tiers import Bump, Grant
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


def overtaken(world: World, id_: int, value: object) -> None:
    """A change is committed and its event applied, while something else is under way."""
    world.apply(id_, world.commit(id_, value))


def test_race_01_a_value_that_was_invalidated_while_it_was_loaded_stays_nowhere(world):
    user = world.entity()
    world.commit(1, "old")
    world.hooks.in_load.append(lambda: overtaken(world, 1, "new"))
    assert user(1) == "old"
    assert ("shared", "floor") in world.rejects()
    assert user(1) == "new"


def test_race_02_also_when_the_floor_was_evicted_before_the_value_came(world):
    user = world.entity()
    world.commit(1, "old")

    def overtake_and_evict() -> None:
        overtaken(world, 1, "new")
        del world.tier.reference.held[world.record(1)]

    world.hooks.in_load.append(overtake_and_evict)
    assert user(1) == "old"
    assert ("shared", "lease") in world.rejects()
    assert user(1) == "new"


def test_race_04_a_transaction_that_has_written_reads_its_own_rows_and_leaves_no_copy(world):
    user = world.entity()
    world.commit(1, "committed")
    assert user(1) == "committed"
    world.rows[1] = ("uncommitted", 2)
    with world.cache.bypass():
        assert user(1) == "uncommitted"
        assert user.many([1]) == {1: "uncommitted"}
    world.rows[1] = ("committed", 1)
    assert user(1) == "committed"
    world.now += 40
    assert user.read(1).tier == "shared"


def test_race_04_the_session_does_not_wait_for_a_version_that_may_be_rolled_back(world):
    user = world.entity()
    world.rows[1] = ("uncommitted", 7)
    with world.cache.session():
        with world.cache.bypass():
            user(1)
        world.rows[1] = ("committed", 1)
        assert user(1) == "committed"


def test_race_05_a_loader_that_read_a_replica_behind_the_event_is_asked_for_the_primary(world):
    needs: list[Need] = []

    def load(id_: int, need: Need) -> Versioned[str]:
        needs.append(need)
        return Versioned("new", 2) if need.primary else Versioned("old", 1, cacheable=False)

    user = world.entity(load)
    world.local.apply(ENTITY, "1", 2)
    assert user(1) == "new"
    assert needs == [Need(2, primary=False), Need(2, primary=True)]


def test_race_05_a_bound_is_loaded_from_the_primary_one_by_one_and_together(world):
    needs: list[Need] = []

    def load(_: int, need: Need) -> Versioned[str]:
        needs.append(need)
        return Versioned("new", 2)

    def load_many(wanted: dict[int, Need]) -> dict[int, Versioned[str]]:
        needs.extend(wanted.values())
        return {id_: Versioned("new", 2) for id_ in wanted}

    async def load_many_in_loop(wanted: dict[int, Need]) -> dict[int, Versioned[str]]:
        return load_many(wanted)

    user = world.entity(load, load_many=load_many if world.face == "threads" else load_many_in_loop)
    user.read(1, policy=Bounded(1.0))
    user.many([2, 3], policy=Bounded(1.0))
    assert needs == [Need(0, primary=True)] * 3


def test_race_05_what_a_replica_showed_is_served_and_kept_nowhere(world):
    user = world.entity(lambda id_, need: Versioned("perhaps old", 1, cacheable=False))
    assert user.read(1).tier == user.read(1).tier == "source"
    assert user.read(1).age_seconds is None


def test_race_09_a_value_loaded_while_the_tier_was_flushed_does_not_get_into_the_new_epoch(bare):
    user = bare.entity()
    bare.commit(1, "old")

    def flush() -> None:
        bare.commit(1, "new")  # its event is among those that the flush has taken
        bare.tier.reference.held.clear()
        bare.tier.reference.open("flush", ())

    bare.hooks.in_load.append(flush)
    assert user(1) == "old"
    assert user(1) == "new"


def test_race_09_a_record_of_another_epoch_is_not_there(bare):
    user = bare.entity()
    bare.commit(1, "old")
    user(1)
    bare.commit(1, "new")
    bare.tier.reference.open("failover", ())
    assert user(1) == "new"


def test_race_09_also_of_many_that_were_found_fresh_before(bare):
    user = bare.entity()
    bare.commit(1, "old")
    for _ in range(3):
        assert user.many([1]) == {1: "old"}
    bare.apply(1, bare.commit(1, "applied"))
    for _ in range(3):
        assert user.many([1]) == {1: "applied"}
    bare.commit(1, "new")
    bare.tier.reference.open("failover", ())
    assert user.many([1]) == {1: "new"}
    bare.now += 700
    bare.rows[1] = ("newer", 4)
    assert user.many([1]) == {1: "newer"}


def test_race_12_what_the_process_has_applied_is_not_undone_by_a_shared_tier_that_is_behind(world):
    user = world.entity()
    world.commit(1, "old")
    user(1)
    world.local.apply(ENTITY, "1", world.commit(1, "new"))
    assert user(1) == "new"
    assert user(1) == "new"


def test_race_12_also_when_it_is_applied_between_the_look_and_its_answer(world):
    user = world.entity()
    world.commit(1, "old")
    user(1)
    world.now += 31
    world.hooks.in_look.append(lambda: world.local.apply(ENTITY, "1", world.commit(1, "new")))
    assert user(1) == "old"
    assert ("local", "floor") in world.rejects()
    assert user(1) == "new"


def test_race_14_what_was_read_before_the_tier_opened_is_not_put_afterwards(world):
    user = world.entity()
    world.commit(1, "old")
    ticket = world.local.close("gap")
    user(1)
    world.commit(1, "new")  # its event fell into the gap

    def join() -> None:
        world.apply(1, 2)
        assert world.local.open(ticket)

    world.hooks.in_look.append(join)
    assert user(1) == "old"
    assert user(1) == "new"


def test_race_15_what_was_read_before_a_gap_is_not_put_after_it(world):
    user = world.entity()
    world.commit(1, "old")
    user(1)
    world.now += 31

    def gap() -> None:
        world.apply(1, world.commit(1, "new"))
        assert world.local.open(world.local.close("gap"))

    world.hooks.in_look.append(gap)
    assert user(1) == "old"
    assert ("local", "generation") in world.rejects()
    assert user(1) == "new"


def test_race_18_an_entity_that_is_deleted_and_made_again_is_each_time_as_it_is(world):
    user = world.entity()
    for value in ("first", None, "second"):
        version = world.commit(1, value)
        world.apply(1, version)
        world.local.apply(ENTITY, "1", version)
        assert user(1) == value
        assert user.read(1).version == version


def test_race_18_an_absence_that_knows_no_version_is_served_and_not_kept(world):
    user = world.entity(lambda id_, need: Versioned(None, 0))
    world.apply(1, 7)
    assert user(1) is None
    assert user.read(1).tier == "source"


def test_race_20_a_result_whose_dependency_changed_while_it_was_computed_is_not_kept(bare):
    found = ["old"]

    def search(query: str) -> list[str]:
        result = list(found)
        bare.hooks.call(bare.hooks.in_load)
        return result

    cached = bare.derived(search, depends=lambda query: ["listing"])

    def change() -> None:
        found[:] = ["new"]
        bare.tier.reference.apply((), ["s:listing"], ())

    bare.hooks.in_load.append(change)
    assert cached("q") == ["old"]
    assert ("shared", "stamps") in bare.rejects()
    assert cached("q") == cached("q") == ["new"]


def test_race_20_a_result_is_gone_when_a_stamp_is_renewed_or_lost(bare):
    count = iter(range(10))
    cached = bare.derived(lambda query: next(count), depends=lambda query: ["listing", query])
    assert cached("a") == cached("a") == 0
    assert bare.renew("listing")
    assert cached("a") == cached("a") == 1
    del bare.tier.reference.held["s:a"]
    assert cached("a") == cached("a") == 2


def test_race_21_whoever_waits_for_a_process_that_died_loads_for_himself_and_keeps_nothing(bare):
    user = bare.entity(wait_seconds=0.0)
    bare.commit(1, "value")
    assert bare.tier.reference.lease(bare.record(1), 0, (), refresh=False).grant is Grant.GRANTED
    assert user(1) == user(1) == "value"
    assert len(bare.loads) == 2
    bare.now += 10
    assert user(1) == "value"
    assert user.read(1).tier == "shared"


def test_race_21_a_load_that_took_too_long_is_served_and_kept_nowhere(world):
    user = world.entity(load_seconds=2.0)
    world.commit(1, "value")

    def take_long() -> None:
        world.now += 3

    world.hooks.in_load.append(take_long)
    assert user(1) == "value"
    assert ("shared", "deadline") in world.rejects()
    assert user.read(1).tier == "source"


def test_race_22_a_refresh_in_the_background_that_overlaps_an_invalidation_keeps_nothing(world):
    user = world.entity(hard_ttl=600, soft_ttl=60)
    world.commit(1, "old")
    user(1)
    world.now += 61
    world.hooks.in_load.append(lambda: overtaken(world, 1, "new"))
    assert user(1) == "old"
    world.settle()
    assert len(world.loads) == 2
    world.local.apply(ENTITY, "1", 2)
    assert user(1) == "new"


def test_race_23_readers_of_a_key_that_changes_during_every_load_get_their_value_all_the_same(world):
    user = world.entity()
    world.commit(1, 0)
    for count in range(1, 20):
        world.hooks.in_load.append(lambda: overtaken(world, 1, world.rows[1][1]))
        assert user(1) == count - 1
    assert user(1) == 19
    assert user.read(1).tier == "local"


def test_race_24_whoever_has_written_does_not_read_the_copy_of_before(world):
    user = world.entity()
    world.commit(1, "old")
    user(1)
    with world.cache.session() as session:
        session.wrote(ENTITY, 1, world.commit(1, "new"))
        assert user(1) == "new"
        assert user.read(1, policy=Session()).version == 2
        assert user.many([1]) == {1: "new"}


def test_race_25_a_session_compares_at_every_read_also_after_it_was_served_once(world):
    user = world.entity()
    world.commit(1, "old")
    user(1)
    copy = world.tier.reference.held[world.record(1)]
    with world.cache.session() as session:
        session.wrote(ENTITY, 1, world.commit(1, "new"))
        assert user(1) == "new"
        world.local.void(world.local.space(ENTITY))
        world.tier.reference.held[world.record(1)] = copy  # the event has not come, and a failover took the tier back
        assert user(1) == "new"


def test_reads_of_a_session_do_not_go_back_in_time(world):
    user = world.entity()
    world.commit(1, "old")
    user(1)
    copy = world.tier.reference.held[world.record(1)]
    world.apply(1, world.commit(1, "new"))
    world.local.apply(ENTITY, "1", 2)
    with world.cache.session():
        assert user(1) == "new"
        world.local.void(world.local.space(ENTITY))
        world.tier.reference.held[world.record(1)] = copy  # a failover took the tier back
        world.local.space(ENTITY).floors.clear()
        assert user(1) == "new"


def test_race_27_a_value_of_another_schema_is_a_miss_and_is_replaced(face):
    old, new = World(face, local=False), World(face, local=False)
    new.tier.reference = old.tier.reference
    old.commit(1, {"name": "x"})
    new.rows = old.rows
    assert old.entity(schema=1)(1) == {"name": "x"}
    user = new.entity(schema=2)
    assert user.read(1).tier == "source"
    assert user.read(1).tier == "shared"
    old.close()
    new.close()


@pytest.mark.parametrize("data", [b"", b"R", b"garbage" * 20, b"R\x01" + bytes(70), b"R\x01\x01\x03" + b"\xff" * 80])
def test_race_27_bytes_that_nobody_here_has_written_are_a_miss(bare, data):
    user = bare.entity()
    bare.commit(1, "value")
    user(1)
    held = bare.tier.reference.held[bare.record(1)]
    held.data = data
    assert user(1) == "value"


def test_race_27_a_value_that_cannot_be_decoded_is_loaded_again(bare):
    user = bare.entity()
    bare.commit(1, {"a": 1})
    user(1)
    held = bare.tier.reference.held[bare.record(1)]
    held.data = held.data[:-1]
    assert user(1) == {"a": 1}
    assert user.read(1).tier == "shared"


def test_an_entity_whose_event_could_not_be_applied_is_kept_nowhere(world):
    user = world.entity()
    world.commit(1, "value")
    world.tier.reference.apply([Bump(world.record(1), None, unknown=True)], (), ())
    assert user.read(1).tier == user.read(1).tier == "source"
    assert all(need.primary for _, need in world.loads)


def test_an_invalidation_without_a_version_stops_what_is_being_loaded(world):
    user = world.entity()
    world.commit(1, "old")

    def invalidate() -> None:
        world.rows[1] = ("new", 1)
        world.local.invalidate(ENTITY, "1")
        world.apply(1, None)

    world.hooks.in_load.append(invalidate)
    assert user(1) == "old"
    assert user(1) == user(1) == "new"


def test_a_reader_who_came_after_an_event_is_not_given_what_was_loaded_before_it(bare):
    """The flight began before the event was applied: who looked afterwards needs more than it brings."""
    user = bare.entity()
    bare.commit(1, "old")
    reader = next(iter(bare.cache.readers.values()))
    flight, leads = reader.flights.enter("1")
    assert leads
    overtaken(bare, 1, "new")
    flight.landed = Found("old", 1, "source", 1000.0)
    bare.hooks.in_wait.append(lambda: reader.flights.leave(flight))
    assert user(1) == "new"
    assert not bare.hooks.in_wait
    assert user.read(1, policy=Eventual()).version == 2


def test_a_load_that_failed_gives_its_lease_back(bare):
    user = bare.entity()
    bare.error = ValueError("down")
    with pytest.raises(ValueError, match="down"):
        user(1)
    with pytest.raises(ValueError, match="down"):
        user.many([1])
    assert bare.tier.reference.lease(bare.record(1), 0, (), refresh=False).grant is Grant.GRANTED
