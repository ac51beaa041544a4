"""Floors over a simulated outbox: ids become visible in any order, and no event is passed over or overtaken.

The world below has what the proof has to cope with: writers that take ids and commit in any order or not at all, stay
open for long, or are prepared and go on under another name; two relay processes with two workers each, interleaved
between all their statements; relays that are restarted and begin with the hints of others; crashes of the database that
bring removed rows back, draw ids again and tell no relay of it. Everything that happens is drawn from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import pytest

from relay.core.horizon import PATIENCE_SECONDS, Horizon, raised_floor
from relay.daemon.floors import Floors, Hint, Server, View

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
        self.floors = self.new_floors()
        self.interrupt()

    def new_floors(self) -> Floors:
        return Floors(LANES)

    def interrupt(self) -> None:
        """Its connections are lost, and what it did on them."""
        self.actors = [self.work(), self.work(), self.watch()]

    def view(self) -> View:
        """As `Lookout.view`, in one transaction."""
        view = self.floors.view()
        if view.server is None:
            self.floors.begin(view, self.world.server, self.world.last_id, self.world.hints)
            view = self.floors.view()
        return view

    def work(self) -> Iterator[None]:
        """As `Store.claim` and what follows it, for one lane at a time."""
        world = self.world
        while True:
            lane = world.draw.randrange(LANES)
            view = self.view()
            yield
            if lane in world.locked:
                continue
            head = world.read(lane, view.floors[lane], limit=1)
            is_still = self.is_still(view)
            if not head or not is_still:
                yield
                if world.draw.random() < 0.5:
                    yield from self.look()
                continue
            world.locked.add(lane)
            yield
            read = world.read(lane, self.start(view, lane, head[0]), limit=world.draw.randint(1, 5))
            yield
            if view.pins and self.pins_ended(view, world.writers()):
                world.locked.discard(lane)
                continue
            self.floors.raise_to(view, {lane: read[0] if read else None})
            world.expect_nothing_overtaken(lane, read)
            yield
            for id_ in read:
                world.remove(id_)
            world.locked.discard(lane)
            yield
            if read:
                self.floors.raise_to(view, {lane: read[-1] + 1})

    def start(self, view: View, lane: int, head: int) -> int:
        return max(view.floors[lane], min(head, view.proven + 1))

    def look(self) -> Iterator[None]:
        """As `Lookout.look`: without any lock, and no further than some reach."""
        view = self.view()
        yield
        ends = [floor + self.world.draw.choice([1, 5, 1000]) for floor in view.floors]
        found = [self.world.read(lane, view.floors[lane], 1, ends[lane]) for lane in range(LANES)]
        is_still = self.is_still(view)
        yield
        if is_still:
            self.floors.raise_to(view, {lane: (found[lane] or [ends[lane]])[0] for lane in range(LANES)})

    def is_still(self, view: View) -> bool:
        return self.floors.is_still(view, self.world.server, self.world.last_id)

    def pins_ended(self, view: View, writers: list[str]) -> bool:
        return self.floors.pins_ended(view, writers)

    def hints(self) -> tuple[Server | None, int, list[Hint]]:
        return self.floors.hints()

    def watch(self) -> Iterator[None]:
        """As `Observer.observe`."""
        while True:
            view = self.floors.view()
            yield
            server, last_id = self.world.server, self.world.last_id
            yield
            writers = self.world.writers()
            yield
            self.floors.observe(view, server, last_id, writers, self.world.now)
            self.world.expect_proof(self.floors)
            yield
            if self.world.draw.random() < 0.2:
                server, last_id, hints = self.hints()
                yield
                if server == self.world.server and self.world.last_id >= last_id:
                    self.world.save(hints)
                yield


class World:
    """The database: what is visible, who writes, and the last id."""

    def __init__(self, seed: int, process: Callable[[World], Process] = Process) -> None:
        self.draw = random.Random(seed)
        self.now = 0.0
        self.last_id = 0
        self.visible: dict[int, int] = {}
        self.undo: list[Callable[[], None]] = []
        """What takes back, newest last, what relays have committed without waiting for the disk."""
        self.hints: list[Hint] = []
        self.server = Server("0", "one sequence")
        self.open: list[Writer] = []
        self.locked: set[int] = set()
        self._process = process
        self._numbers = 0
        self.processes = [process(self), process(self)]

    def writers(self) -> list[str]:
        return [writer.name for writer in self.open]

    def read(self, lane: int, floor: int, limit: int, end: int = 1 << 60) -> list[int]:
        return sorted(id_ for id_, key in self.visible.items() if key % LANES == lane and floor <= id_ < end)[:limit]

    def remove(self, id_: int) -> None:
        key = self.visible.pop(id_)
        self.undo.append(lambda: self.visible.update({id_: key}))

    def save(self, hints: list[Hint]) -> None:
        before = self.hints
        self.hints = hints
        self.undo.append(lambda: setattr(self, "hints", before))

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
            elif chance < 0.304:
                self.restart(self.draw.randrange(len(self.processes)))
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

    def restart(self, number: int) -> None:
        """A relay that knows nothing takes the place of another one, which stopped between two units."""
        process = self.processes[number]
        if not self.locked:
            process.floors = process.new_floors()
            process.interrupt()

    def crash(self) -> None:
        """Transactions that are not prepared are gone, the last removals too, and ids that nobody kept come again."""
        self.open = [writer for writer in self.open if writer.name.startswith("-1/")]
        for _ in range(min(len(self.undo), self.draw.randrange(3))):
            # A suffix of each key comes back: removals are lost from the end of the log.
            self.undo.pop()()
        self.undo.clear()
        kept = [*self.visible, *(id_ for writer in self.open for id_ in writer.rows)]
        # Ids that a hint tells of were written down before it.
        kept += [hint.proven for hint in self.hints]
        self.last_id = max(kept, default=self.last_id)
        self.locked.clear()
        self.server = self.server._replace(started=str(int(self.server.started) + 1))
        for process in self.processes:
            process.interrupt()


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
            view = self.floors.view()
            yield
            writers = self.world.writers()
            yield
            self.floors.observe(view, self.world.server, self.world.last_id, writers, self.world.now)
            self.world.expect_proof(self.floors)
            yield


class PinsUnasked(Process):
    """Does not ask, after the read, whether a pin has ended."""

    def pins_ended(self, view: View, writers: list[str]) -> bool:
        return False


class FromTheHead(Process):
    """Reads from the row that the claim has seen, although earlier ones may have become visible."""

    def start(self, view: View, lane: int, head: int) -> int:
        return head


class Unforgetting(Process):
    """Takes in what was looked at before the floors went back."""

    def new_floors(self) -> Floors:
        return TimelessFloors(LANES)


class TimelessFloors(Floors):
    def raise_to(self, view: View, first_live: Mapping[int, int | None]) -> None:
        super().raise_to(replace(view, epoch=self._epoch), first_live)


class Trusting(Process):
    """Does not look who answers."""

    def is_still(self, view: View) -> bool:
        return True


class HintsOfPins(Process):
    """Leaves hints that do not allow for what a long writer has yet to commit."""

    def hints(self) -> tuple[Server | None, int, list[Hint]]:
        view = self.floors.view()
        return view.server, view.last_id, [Hint(frozenset(), view.floors, view.proven)]


@pytest.mark.parametrize("broken", [WritersFirst, PinsUnasked, FromTheHead, Unforgetting, Trusting, HintsOfPins])
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
