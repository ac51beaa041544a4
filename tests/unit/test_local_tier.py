"""The process tier: floors, generations, what goes when there is no room, and what a fork leaves."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from relay.cache.eviction import Entry
from relay.cache.local import Local, Mark

AT = ("changes", 0, 7)


class Process:
    """A tier with a clock, and short names for what one does with it."""

    def __init__(self, **settings: Any) -> None:
        self.now = 100.0
        self.local = Local(clock=lambda: self.now, **settings)
        self.users = self.local.space("user")

    def put(self, key: str, version: int, mark: Any = "now") -> str | None:
        taken = self.local.mark() if mark == "now" else mark
        self.now += 0.001
        entry = Entry(key, f"v{version}", version, as_of=0, fresh_until=1e9, soft_until=1e9, hard_until=1e9)
        return self.local.put(self.users, entry, taken)

    @property
    def there(self) -> dict[str, int]:
        return {key: entry.version for key, entry in self.users.entries.items()}


@pytest.fixture
def process() -> Process:
    return Process()


def test_nothing_is_served_or_put_below_what_was_applied(process):
    assert process.put("1", 1) is None
    process.local.apply("user", "1", 2, AT)
    assert process.there == {}
    assert process.put("1", 1) == "floor"
    assert process.put("1", 2) is None


def test_an_older_event_and_the_same_one_again_change_nothing(process):
    process.put("1", 5)
    for version in (5, 3, 5):
        process.local.apply("user", "1", version, AT)
    assert process.there == {"1": 5}
    assert process.users.floor("1") == 5


def test_a_newer_value_is_not_replaced_by_an_older_one(process):
    process.put("1", 5)
    assert process.put("1", 4) == "floor"
    assert process.there == {"1": 5}


def test_what_began_before_it_was_closed_or_opened_is_not_put(process):
    before = process.local.mark()
    process.put("1", 1)
    ticket = process.local.close("gap")
    assert process.there == {}
    assert process.local.mark() is None
    assert process.put("1", 1, None) == "closed"
    while_closed = process.local.mark()
    just_before = Mark(process.local.generation, process.now)  # opened between the two looks that `mark` takes
    assert process.local.open(ticket)
    assert process.put("1", 1, just_before) == "generation"
    assert process.put("1", 1, before) == "generation"
    assert process.put("1", 1, while_closed) == "closed"
    assert process.put("1", 1) is None


def test_an_old_ticket_does_not_open_what_was_closed_again(process):
    old = process.local.close("gap")
    new = process.local.close("gap again")
    assert not process.local.open(old)
    assert process.local.open(new)
    assert not process.local.open(new)


def test_a_floor_stays_until_the_shared_tier_has_passed_it_and_no_fill_is_older(process):
    process.local.apply("user", "1", 2, AT)
    for _ in range(3):
        process.now += 1000
        assert process.local.sweep({("changes", 0): 7, ("changes", 1): 99}) == 0
    mark = process.local.mark()
    assert process.local.sweep({("changes", 0): 8}) == 0
    process.now += 20
    assert process.local.sweep({("changes", 0): 8}) == 0
    assert process.put("1", 1, mark) == "floor"
    process.now += 11
    assert process.local.sweep({("changes", 0): 8}) == 1
    assert process.put("1", 1, mark) == "deadline"
    assert process.put("1", 1) is None


def test_an_event_without_a_version_blocks_fills_until_the_shared_tier_has_applied_it(process):
    before = process.local.mark()
    process.put("1", 1)
    process.local.invalidate("user", "1", AT)
    assert process.there == {}
    assert process.put("1", 1, before) == "floor"
    assert process.put("1", 1) == "floor"
    mark = process.local.mark()
    process.local.sweep({("changes", 0): 8})
    assert process.put("1", 1, mark) == "floor"
    assert process.put("1", 1) is None


def test_an_invalidation_by_hand_stops_what_is_under_way_and_nothing_else(process):
    before = process.local.mark()
    process.local.invalidate("user", "1")
    assert process.put("1", 1, before) == "floor"
    assert process.put("2", 1, before) is None
    assert process.put("1", 1) is None


def test_with_more_floors_than_it_can_keep_it_forgets_everything_and_waits_for_its_feed():
    process = Process(floors_max=3)
    assert process.local.open(process.local.close("join"))
    mark = process.local.mark()
    process.put("x", 1)
    for number in range(4):
        process.local.apply("user", str(number), 9, ("changes", 0, number))
    assert not process.local.is_open
    assert process.there == {}
    assert process.put("0", 1, mark) == "closed"
    assert process.local.size().floors == 1


def test_without_a_feed_it_forgets_floors_and_what_is_under_way_and_stays_open():
    process = Process(floors_max=3)
    mark = process.local.mark()
    for number in range(4):
        process.local.apply("user", str(number), 9)
    assert process.put("0", 1, mark) == "generation"
    assert process.put("0", 1) is None


def test_it_never_holds_more_than_its_limit_and_spares_what_is_read():
    process = Process(entries_max=10)
    process.put("hot", 1)
    for number in range(1000):
        process.users.entries["hot"].hits += 1
        process.put(str(number), 1)
        assert len(process.there) <= 10
    assert "hot" in process.there
    assert process.local.size().entries == 10
    assert process.local.size().evictions == 991


def test_entries_of_all_entities_share_one_limit():
    process = Process(entries_max=4)
    for number in range(4):
        process.put(str(number), 1)
    other = process.local.space("order")
    entry = Entry("9", "v", 1, as_of=0, fresh_until=1e9, soft_until=1e9, hard_until=1e9)
    assert process.local.put(other, entry, process.local.mark()) is None
    assert len(process.there) + len(other.entries) == 4


def test_what_is_dropped_is_kept_for_those_who_may_have_it_if_the_cache_says_so(process):
    process.users.keep = True
    process.put("1", 1)
    process.local.apply("user", "1", 2)
    assert process.there == {}
    assert process.users.kept["1"].version == 1
    process.put("1", 2)
    assert not process.users.kept


def test_many_threads_leave_it_in_order():
    process = Process(entries_max=50)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for number in range(2000):
                key = str((number * seed) % 97)
                entry = process.users.entries.get(key)
                if entry is not None:
                    entry.hits += 1
                if number % 5 == 0:
                    process.local.apply("user", key, number // 5)
                elif number % 701 == 0:
                    process.local.open(process.local.close("gap"))
                else:
                    process.put(key, number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert process.local.size().entries == len(process.there) <= 50
    assert all(version >= process.users.floor(key) for key, version in process.there.items())


def test_a_forked_child_serves_nothing_that_a_feed_has_kept_up_to_date(process):
    assert process.local.open(process.local.close("join"))
    process.put("1", 1)
    child = os.fork()
    if not child:
        os._exit(0 if not process.local.is_open and not process.there else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert process.there == {"1": 1}
