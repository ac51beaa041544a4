"""What happens to the process tiers: their feeds apply events, break off and join again, and sweep floors."""

from __future__ import annotations

from tests.simulation.explorer import Move
from tests.simulation.protocol import Case
from tests.simulation.shared_moves import Moves
from tests.simulation.state import IDLE, NOTHING, Local, State, spend


def moves_of_feeds(state: State, case: Case) -> Moves:
    """Everything that the feed of each process may do now."""
    if not case.has_local:
        return
    for who, local in enumerate(state.locals):
        if local.position < len(state.log):
            yield _applies(state, case, who, local)
            if state.budget.gaps:
                yield Move("process misses events", who), _missing(state, case, who, local)
        if not local.is_open:
            if not case.guards.waits_for_shared or _has_joined(state, case, local):
                opened = local._replace(is_open=True, epoch=state.tier.epoch)
                begun = _new_generation(state, case, who) if case.guards.opening_is_a_generation else state
                yield Move("process opens", who), _with_local(begun, who, opened)
        elif case.has_shared and local.epoch != state.tier.epoch and case.guards.epoch_closes:
            yield Move("process notices the epoch", who), _closed(state, case, who, local, local.position)
        if state.budget.sweeps and (local.floor or local.blocked) and _may_sweep(state, case, who, local):
            swept = local._replace(floor=0, floor_offset=NOTHING, blocked=False)
            yield (
                Move("process sweeps its floor", who),
                _with_local(state, who, swept)._replace(budget=spend(state, "sweeps")),
            )


def _applies(state: State, case: Case, who: int, local: Local) -> tuple[Move, State]:
    version = state.log[local.position]
    offset = local.position
    after = local._replace(position=offset + 1)
    if version in case.unversioned:
        after = after._replace(entry=NOTHING)
        if case.guards.unversioned_blocks:
            after = after._replace(blocked=True, floor_offset=offset)
            readers = tuple(
                reader._replace(is_void=True) if reader.at != IDLE and reader.process == who else reader
                for reader in state.readers
            )
            state = state._replace(readers=readers)
    elif case.guards.local_floors:
        floor = max(local.floor, version)
        entry = local.entry if local.entry >= floor else NOTHING
        after = after._replace(floor=floor, floor_offset=offset, entry=entry)
    elif local.entry < version:
        after = after._replace(entry=NOTHING)
    return Move("process applies", who, version), _with_local(state, who, after)


def _missing(state: State, case: Case, who: int, local: Local) -> State:
    end = len(state.log)
    spent = state._replace(budget=spend(state, "gaps"))
    if not case.guards.gap_closes:
        return _with_local(spent, who, local._replace(position=end))
    return _closed(spent, case, who, local, end)


def _closed(state: State, case: Case, who: int, local: Local, position: int) -> State:
    # Whatever was published before the feed joined must have reached the shared tier when the process opens.
    closed = Local(is_open=False, epoch=local.epoch, position=position, join=len(state.log))
    return _with_local(_new_generation(state, case, who), who, closed)


def _has_joined(state: State, case: Case, local: Local) -> bool:
    if not case.has_shared:
        return True
    return bool(state.tier.epoch) and state.tier.progress >= local.join


def _may_sweep(state: State, case: Case, who: int, local: Local) -> bool:
    guards = case.guards
    if guards.sweep_waits_for_shared and state.tier.progress <= local.floor_offset:
        return False
    if not guards.sweep_waits_for_fills:
        return True
    return not any(
        reader.at != IDLE and reader.process == who and reader.floor_at_start < local.floor for reader in state.readers
    )


def _new_generation(state: State, case: Case, who: int) -> State:
    if not case.guards.generation:
        return state
    readers = tuple(
        reader._replace(of_generation=False) if reader.process == who else reader for reader in state.readers
    )
    return state._replace(readers=readers)


def _with_local(state: State, who: int, local: Local) -> State:
    return state._replace(locals=(*state.locals[:who], local, *state.locals[who + 1 :]))
