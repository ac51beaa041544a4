"""Floors over a simulated outbox: ids become visible in any order, and no event is passed over or overtaken.

The world below has what the proof has to cope with: writers that take ids and commit in any order or not at all, stay
open for long, or are prepared and go on under another name; two relay processes with two workers each, interleaved
between all their statements; crashes of the database that bring removed rows back and draw ids again. Everything that
happens is drawn from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from relay.core.horizon import PATIENCE_SECONDS, Horizon, raised_floor
from relay.daemon.floors import Floors

SEEDS = 250
STEPS = 1_000
KEYS = 6
LANES = 2


@dataclass(eq=False)
class Writer:
    """A transaction that holds a write lock on the outbox."""

    name: str
    rows: dict[int, int] = field(default_factory=dict)
    """Id to key. Nobody else sees them before the commit."""
    names: set[str] = field(default_factory=set)
    is_lazy: bool = False


class BrokenError(AssertionError):
    """A row was overtaken or passed over."""


class Process:
    """One relay process on the simulated outbox. Each method is a generator: others act between its statements."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.floors = Floors(LANES)
        self.actors = [self.work(), self.work(), self.watch()]

    def work(self) -> Iterator[None]:
        """As `Store.claim` and what follows it, for one lane at a time."""
        world = self.world
        while True:
            lane = world.draw.randrange(LANES)
            view = self.floors.view()
            yield
            if lane in world.locked:
                continue
            world.locked.add(lane)
            yield
            read = world.read(lane, view.floors[lane], limit=world.draw.randint(1, 5))
            yield
            if view.pins and self.pins_ended(view, world.writers()):
                world.locked.discard(lane)
                continue
            self.floors.raise_to(view, {lane: read[0] if read else None})
            world.expect_nothing_overtaken(lane, read)
            yield
            for id_ in read:
                world.removed.append((id_, world.visible.pop(id_)))
            world.locked.discard(lane)
            yield
            if read:
                self.floors.raise_to(view, {lane: read[-1] + 1})
            elif world.draw.random() < 0.5:
                yield from self.probe()

    def probe(self) -> Iterator[None]:
        """As `Store.has_work`: without any lock."""
        view = self.floors.view()
        yield
        found = any(self.world.read(lane, view.floors[lane], 1) for lane in range(LANES))
        yield
        if not found:
            self.floors.raise_all(view)

    def pins_ended(self, view, writers) -> bool:
        return self.floors.pins_ended(view, writers)

    def watch(self) -> Iterator[None]:
        """As `Watch._observe`."""
        while True:
            epoch = self.floors.view().epoch
            yield
            last_id = self.world.last_id
            yield
            writers = self.world.writers()
            yield
            self.floors.observe(last_id, writers, self.world.now, epoch)
            self.world.expect_proof(self.floors)
            yield


class World:
    """The database: what is visible, who writes, and the last id."""

    def __init__(self, seed: int, process: Callable[[World], Process] = Process) -> None:
        self.draw = random.Random(seed)
        self.now = 0.0
        self.last_id = 0
        self.visible: dict[int, int] = {}
        self.removed: list[tuple[int, int]] = []
        self.open: list[Writer] = []
        self.locked: set[int] = set()
        self._process = process
        self._numbers = 0
        self.processes = [process(self), process(self)]

    def writers(self) -> list[str]:
        return [writer.name for writer in self.open]

    def read(self, lane: int, floor: int, limit: int) -> list[int]:
        return sorted(id_ for id_, key in self.visible.items() if key % LANES == lane and id_ >= floor)[:limit]

    def expect_nothing_overtaken(self, lane: int, read: list[int]) -> None:
        """What is sent of a key is the beginning of what is visible of it."""
        for key in {self.visible[id_] for id_ in read}:
            waiting = sorted(id_ for id_, of in self.visible.items() if of == key)
            sent = [id_ for id_ in read if self.visible[id_] == key]
            if sent != waiting[: len(sent)]:
                raise BrokenError(f"key {key} of lane {lane}: sent {sent} of {waiting}")

    def expect_proof(self, floors: Floors) -> None:
        """No floor is above an id that may still appear, except from a pin."""
        view = floors.view()
        for writer in self.open:
            if not writer.names & view.pins.keys() and any(id_ <= view.proven for id_ in writer.rows):
                raise BrokenError(f"{view.proven} is taken for proven, and {writer} is open")

    def play(self, steps: int) -> None:
        for _ in range(steps):
            self.now += self.draw.choice([0.0, 0.1, 0.5])
            chance = self.draw.random()
            if chance < 0.30:
                self.write()
            elif chance < 0.302:
                self.crash()
            else:
                next(self.draw.choice(self.draw.choice(self.processes).actors))

    def finish(self) -> None:
        """All writers end; then everything that was committed has to be found."""
        while self.open:
            self._end(self.open[0])
        for _ in range(4_000):
            self.now += 0.1
            next(self.draw.choice(self.draw.choice(self.processes).actors))
            if not self.visible:
                return
        raise BrokenError(f"never found: {self.visible}, {[p.floors.view() for p in self.processes]}")

    def write(self) -> None:
        """A writer begins, draws an id, ends, or is prepared."""
        what = self.draw.random()
        if what < 0.25 or not self.open:
            if len(self.open) < 7:
                name = self._name()
                self.open.append(Writer(name, {}, {name}, self.draw.random() < 0.15))
            return
        writer = self.draw.choice(self.open)
        if what < 0.65 and not writer.name.startswith("-1/"):
            key = self.draw.randrange(KEYS)
            # The lock of the key, which is what makes id order commit order per key.
            if not any(key in other.rows.values() for other in self.open if other is not writer):
                self.last_id += 1
                writer.rows[self.last_id] = key
        elif what < 0.72 and not writer.name.startswith("-1/"):
            writer.name = f"-1/{self._name()}"
            writer.names.add(writer.name)
        elif not writer.is_lazy or self.draw.random() < 0.05:
            self._end(writer)

    def _end(self, writer: Writer) -> None:
        self.open.remove(writer)
        if self.draw.random() < 0.85:
            self.visible.update(writer.rows)

    def _name(self) -> str:
        self._numbers += 1
        return f"3/{self._numbers}"

    def crash(self) -> None:
        """Transactions that are not prepared are gone, the last removals too, and ids that nobody kept come again."""
        self.open = [writer for writer in self.open if writer.name.startswith("-1/")]
        for id_, key in self.removed[len(self.removed) - self.draw.randrange(3) :]:
            # A suffix of each key comes back: removals are lost from the end of the log.
            self.visible[id_] = key
        self.removed.clear()
        kept = [*self.visible, *(id_ for writer in self.open for id_ in writer.rows)]
        self.last_id = max(kept, default=self.last_id)
        self.locked.clear()
        for process in self.processes:
            process.floors.forget()
            process.actors = [process.work(), process.work(), process.watch()]


def play_all(process: Callable[[World], Process] = Process) -> int:
    """The number of seeds that were played without a fault."""
    for seed in range(SEEDS):
        world = World(seed, process)
        try:
            world.play(STEPS)
            world.finish()
        except BrokenError as error:
            raise BrokenError(f"seed {seed}: {error}") from None
    return SEEDS


def test_no_event_is_passed_over_and_none_is_overtaken():
    """A floor never passes a row that may appear, except a pin's; and those are found when the pin ends."""
    assert play_all() == SEEDS


class WritersFirst(Process):
    """Notes the writers before it reads the last id."""

    def watch(self) -> Iterator[None]:
        while True:
            epoch = self.floors.view().epoch
            writers = self.world.writers()
            yield
            last_id = self.world.last_id
            yield
            self.floors.observe(last_id, writers, self.world.now, epoch)
            self.world.expect_proof(self.floors)
            yield


class PinsUnasked(Process):
    """Does not ask, after the read, whether a pin has ended."""

    def pins_ended(self, view, writers) -> bool:
        return False


class Unforgetting(Process):
    """Takes in what was looked at before the floors went back."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        view = self.floors.view

        def timeless():
            seen = view()
            return type(seen)(seen.floors, seen.proven, seen.pins, seen.paused, self.floors._epoch)

        self.floors.view = timeless
        raise_to = self.floors.raise_to

        def always(seen, first_live):
            raise_to(type(seen)(seen.floors, seen.proven, seen.pins, seen.paused, self.floors._epoch), first_live)

        self.floors.raise_to = always


@pytest.mark.parametrize("broken", [WritersFirst, PinsUnasked, Unforgetting])
def test_each_part_of_the_proof_is_needed(broken):
    """Without one of its parts a row is lost or overtaken, and the simulation sees it."""
    with pytest.raises(BrokenError):
        play_all(broken)


def test_nothing_is_proven_before_a_first_observation():
    """A fresh horizon lets no floor rise."""
    horizon = Horizon()
    assert (horizon.proven, horizon.pins) == (0, {})
    assert raised_floor(0, None, horizon.proven) == 1


def test_an_observation_is_proven_by_the_next_one_that_sees_its_writers_gone():
    """An open writer holds up the proof of the ids that had been drawn; the next one may go on."""
    horizon = Horizon()
    assert horizon.observe(10, ["3/1"], 0.0) is None
    horizon.observe(12, ["3/1", "3/2"], 1.0)
    assert horizon.proven == 0
    horizon.observe(15, ["3/2"], 2.0)
    assert horizon.proven == 10
    assert not horizon.is_settled
    horizon.observe(15, [], 3.0)
    horizon.observe(15, [], 4.0)
    assert horizon.proven == 15
    assert horizon.is_settled


def test_a_long_writer_becomes_a_pin_and_the_proof_goes_on_without_it():
    """After the patience, from where it was first seen; when it ends, floors go back to there, once."""
    horizon = Horizon()
    horizon.observe(10, [], 0.0)
    horizon.observe(20, ["3/7"], 1.0)
    for turn in range(1, 9):
        horizon.observe(20 + turn, ["3/7"], 1.0 + turn * PATIENCE_SECONDS)
    assert horizon.pins == {"3/7": 10}
    assert horizon.proven > 20
    assert not horizon.is_settled
    assert horizon.observe(40, [], 100.0) == 10
    assert horizon.observe(41, [], 101.0) is None
    assert horizon.pins == {}


def test_a_prepared_writer_is_pinned_from_where_it_began_under_its_old_name():
    """Its old name ends before it does; the ids that it holds are the old one's."""
    horizon = Horizon()
    horizon.observe(10, [], 0.0)
    horizon.observe(20, ["3/7"], 1.0)
    horizon.observe(30, ["-1/99"], 2.0)
    assert horizon.pins == {"-1/99": 10}
    assert horizon.observe(30, [], 3.0) == 10


def test_a_pin_that_is_prepared_stays_a_pin():
    """Its end under the old name sends the floors back, and its new name is pinned from the same place."""
    horizon = Horizon()
    horizon.pins["3/7"] = 5
    assert horizon.end_pins({"3/7": 5}, {"-1/99"}) == 5
    assert horizon.pins == {"-1/99": 5}
    assert horizon.end_pins({"-1/99": 5}, {"-1/99"}) is None


@pytest.mark.parametrize(
    ("floor", "first_live", "proven", "expected"),
    [(5, 9, 100, 9), (5, 9, 7, 8), (5, None, 7, 8), (5, None, 3, 5), (5, 4, 100, 5), (0, 1, 0, 1)],
)
def test_a_floor_rises_to_the_first_row_never_beyond_the_proof_and_never_falls(floor, first_live, proven, expected):
    """The first live row, or the id after the last proven one, whichever is less."""
    assert raised_floor(floor, first_live, proven) == expected
