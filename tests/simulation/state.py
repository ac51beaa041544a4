"""The state of the model: one key, whose value is its version.

That is enough to tell old from new, and keeps the number of states small. 0 is the version before the first write.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.simulation.protocol import Budget, Case

NOTHING = -1
"""No value, no progress."""


class Record(NamedTuple):
    """The key's record in the shared tier."""

    epoch: int
    floor: int = 0
    value: int = NOTHING
    lease: int = 0


class Tier(NamedTuple):
    """The shared tier. Epoch 0: closed."""

    epoch: int
    progress: int
    """Every event below this offset has been applied."""
    record: Record | None


class Consumer(NamedTuple):
    """A consumer of the shared tier. It has been acknowledged all events below `position`."""

    position: int
    must_open: bool = False
    claims: bool = True
    epoch: int = 1
    """The epoch it knew last. Only guards that are out ask for it."""
    wrote_progress: bool = False
    """It has written the progress of an event, and not yet its record. Only with a guard out."""


class Local(NamedTuple):
    """The process tier of one process, with its feed."""

    is_open: bool = True
    epoch: int = 1
    """The epoch of the shared tier under which it opened."""
    position: int = 0
    join: int = 0
    floor: int = 0
    floor_offset: int = NOTHING
    entry: int = NOTHING
    blocked: bool = False
    """There was an event without a version: nothing may be put until the shared tier has applied it."""


IDLE, LOADING, LOADED, FETCHED = range(4)


class Reader(NamedTuple):
    """One reader and how far its read is."""

    at: int = IDLE
    process: int = 0
    of_generation: bool = False
    """Whether the process tier was open when the read began, and has not begun a new generation since."""
    floor_at_start: int = 0
    is_void: bool = False
    """What it finds must not be put into the process tier: the process was blocked by an event without a version when
    the read began or since, or the shared tier has refused it."""
    need: int = 0
    promised: int = 0
    """What it may not get less than: the session's token, and what its process had applied, when the read began."""
    lease: int = 0
    value: int = NOTHING


class State(NamedTuple):
    """Everything."""

    budget: Budget
    db: int
    replica: int
    announced: int
    """A version published before its commit. Only with a guard out."""
    outbox: tuple[int, ...]
    log: tuple[int, ...]
    tier: Tier
    standby: Tier
    """What a failover would bring back."""
    epochs: int
    committed: int
    """The group's offset."""
    consumers: tuple[Consumer, ...]
    """The last one owns the partition."""
    locals: tuple[Local, ...]
    readers: tuple[Reader, ...]
    token: int
    """The newest version that the session wrote or saw."""


def initial_state(case: Case) -> State:
    """An open tier without records, and nobody doing anything."""
    tier = Tier(1, 0, None)
    return State(
        budget=case.budget,
        db=0,
        replica=0,
        announced=0,
        outbox=(),
        log=(),
        tier=tier,
        standby=tier,
        epochs=1,
        committed=0,
        consumers=(Consumer(0),),
        locals=(Local(),) * case.processes,
        readers=(Reader(),) * case.readers,
        token=0,
    )


def usable(case: Case, tier: Tier) -> Record | None:
    """The record, if it is one of the current epoch; nothing while the tier is closed."""
    record = tier.record
    if record is None or not tier.epoch:
        return None
    return record if record.epoch == tier.epoch or not case.guards.read_checks_epoch else None


def spend(state: State, what: str) -> Budget:
    """The budget after `what` has happened once more."""
    return state.budget._replace(**{what: getattr(state.budget, what) - 1})
