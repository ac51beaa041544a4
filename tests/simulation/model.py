"""The protocol as a model: its moves put together, and what must hold in every state.

WITNESS is the one to look at first. A copy may be older than the database only as long as something is on its way that
will take it away: an event that has not reached the tier, or a consumer that is about to find that the tier forgot.
It asks for no fairness and says nothing of time, and yet a stale copy that stays breaks it at once.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.simulation.explorer import Explorer, Move, Outcome
from tests.simulation.local_moves import moves_of_feeds
from tests.simulation.protocol import Case
from tests.simulation.read_moves import moves_of_readers
from tests.simulation.shared_moves import moves_of_consumers, moves_of_redis, moves_of_writer
from tests.simulation.state import NOTHING, State, initial_state, usable


def explore(case: Case, *, states_max: int = 10_000_000) -> Outcome:
    """Explores every interleaving of the case."""

    def successors(state: State) -> Iterator[tuple[Move, State, str | None]]:
        for moves in (moves_of_writer, moves_of_consumers, moves_of_redis, moves_of_feeds):
            for move, after in moves(state, case):
                yield move, after, None
        yield from moves_of_readers(state, case)

    return Explorer(initial_state(case), successors, lambda state: violation(state, case), states_max=states_max).run()


def violation(state: State, case: Case) -> str | None:
    """What is wrong with this state, or None."""
    owner = state.consumers[-1]
    forgot = bool(state.tier.epoch) and owner.claims and max(state.tier.progress, 0) < owner.position
    repaired = owner.must_open or (forgot and case.guards.loss_is_noticed)
    record = usable(case, state.tier)
    if record is not None:
        if record.floor > state.db:
            return f"phantom: the shared tier refuses what is below v{record.floor}, and the database has v{state.db}"
        if record.value != NOTHING and record.value < state.db and not repaired:
            coming = (*state.outbox, *state.log[owner.position :])
            if not any(version > record.value for version in coming):
                return f"the shared tier holds v{record.value}, the database v{state.db}, and nothing is on its way"
    for who, local in enumerate(state.locals):
        if local.entry == NOTHING:
            continue
        if local.entry < local.floor:
            return f"process {who} holds v{local.entry} below its floor v{local.floor}"
        if local.entry < state.db:
            coming = (*state.outbox, *state.log[local.position :])
            if any(version > local.entry for version in coming):
                continue
            will_close = local.epoch != state.tier.epoch and case.guards.epoch_closes
            if case.has_shared and (repaired or will_close):
                continue
            return f"process {who} holds v{local.entry}, the database v{state.db}, and nothing is on its way"
    return None
