"""What readers do: look into the process tier, into the shared tier, take a lease, load, put, and put."""

from __future__ import annotations

from collections.abc import Iterator

from tests.simulation.explorer import Move
from tests.simulation.protocol import Case
from tests.simulation.state import (
    FETCHED,
    IDLE,
    LOADED,
    LOADING,
    NOTHING,
    Reader,
    Record,
    State,
    spend,
    usable,
)

Reads = Iterator[tuple[Move, State, str | None]]


def moves_of_readers(state: State, case: Case) -> Reads:
    """Everything that each reader may do now, with what is wrong with what it returns."""
    for who, reader in enumerate(state.readers):
        if reader.at == IDLE:
            anywhere = case.has_session and who == 0
            for process in range(case.processes) if anywhere else (who % case.processes,):
                for move, after, wrong in _begins(state, case, who, process):
                    yield move._replace(where=process) if case.processes > 1 else move, after, wrong
        elif reader.at == LOADING:
            yield from _loads(state, case, who, reader)
        elif reader.at == LOADED:
            yield _puts(state, case, who, reader)
        else:
            yield _ends(state, case, who, reader)


def _begins(state: State, case: Case, who: int, process: int) -> Reads:
    local, tier, guards = state.locals[process], state.tier, case.guards
    promised = state.token if case.has_session and who == 0 else 0
    token = promised if guards.token_learns or case.session_writes else 0
    floor = local.floor if case.has_local and guards.local_floors else 0
    wanted = token if guards.token_on_local else 0
    if case.has_local and local.is_open and local.entry != NOTHING and local.entry >= wanted:
        yield _returns(
            Move("reader hits process tier", who, local.entry), state, case, who, (local.entry, max(promised, floor))
        )
        return
    need = max(token if guards.token_on_shared else 0, floor if guards.floor_on_shared else 0)
    reader = Reader(
        LOADING,
        process,
        of_generation=case.has_local and (local.is_open or not guards.opening_is_a_generation),
        floor_at_start=floor if case.budget.sweeps else 0,
        need=need,
        is_void=local.blocked,
        promised=max(promised, floor),
    )
    if not case.has_shared or not tier.epoch:
        yield Move("reader bypasses the shared tier", who), _with_reader(state, who, reader), None
        return
    record = usable(case, tier)
    if record is not None and record.value != NOTHING and record.value >= need:
        hit = reader._replace(at=FETCHED, need=0, value=record.value)
        yield Move("reader hits shared tier", who, record.value), _with_reader(state, who, hit), None
        if state.budget.refreshes and not record.lease:
            spent = state._replace(budget=spend(state, "refreshes"))
            yield _leases(spent, case, who, reader, "refreshes")
        return
    if record is None or not record.lease:
        yield _leases(state, case, who, reader, "leases")
        return
    yield Move("reader finds the lease taken", who), _with_reader(state, who, reader), None
    if state.budget.takeovers:
        yield _leases(
            state._replace(budget=spend(state, "takeovers")), case, who, reader, "leases after the lease ran out"
        )


def _leases(state: State, case: Case, who: int, reader: Reader, how: str) -> tuple[Move, State, None]:
    record = usable(case, state.tier)
    if record is None or record.epoch != state.tier.epoch:
        record = Record(state.tier.epoch)
    lease = _unused_lease(state)
    leased = reader._replace(lease=lease, need=max(reader.need, record.floor))
    tier = state.tier._replace(record=record._replace(lease=lease))
    return Move(f"reader {how}", who), _with_reader(state, who, leased)._replace(tier=tier), None


def _unused_lease(state: State) -> int:
    # The smallest number that nobody holds, so that states differ by who holds which lease and by nothing else.
    held = {reader.lease for reader in state.readers}
    for tier in (state.tier, state.standby):
        if tier.record is not None:
            held.add(tier.record.lease)
    lease = 1
    while lease in held:
        lease += 1
    return lease


def _loads(state: State, case: Case, who: int, reader: Reader) -> Reads:
    loaded = reader._replace(at=LOADED if reader.lease else FETCHED, need=0, value=state.db)
    yield Move("reader loads from primary", who, state.db), _with_reader(state, who, loaded), None
    if not case.has_replica or (case.guards.replica_reaches_need and state.replica < reader.need):
        return
    move = Move("reader loads from replica", who, state.replica)
    if not case.guards.replica_uncached:
        yield move, _with_reader(state, who, loaded._replace(value=state.replica)), None
        return
    yield _returns(move, _released(state, reader), case, who, (state.replica, reader.promised))


def _puts(state: State, case: Case, who: int, reader: Reader) -> tuple[Move, State, None]:
    tier = state.tier
    accepted = _accepts(case, state, reader)
    if accepted:
        floor = tier.record.floor if tier.record else 0
        state = state._replace(tier=tier._replace(record=Record(tier.epoch, floor, reader.value)))
    else:
        state = _released(state, reader)
    move = Move("reader puts in shared tier", who, reader.value, "accepted" if accepted else "refused")
    # Refused, something newer is known there, of which this process may not have heard.
    is_void = reader.is_void or (not accepted and tier.epoch != 0)
    return move, _with_reader(state, who, reader._replace(at=FETCHED, lease=0, is_void=is_void)), None


def _accepts(case: Case, state: State, reader: Reader) -> bool:
    tier, guards = state.tier, case.guards
    record = tier.record
    if not tier.epoch:
        return False
    if record is None:
        return not guards.put_checks_lease
    if guards.put_checks_epoch and record.epoch != tier.epoch:
        return False
    if guards.put_checks_lease and not record.lease:
        return False
    if guards.put_checks_lease and guards.put_compares_lease and record.lease != reader.lease:
        return False
    return not guards.put_checks_floor or reader.value >= max(record.floor, record.value)


def _ends(state: State, case: Case, who: int, reader: Reader) -> tuple[Move, State, str | None]:
    local = state.locals[reader.process]
    if not case.has_local:
        return _returns(Move("reader returns", who, reader.value), state, case, who, (reader.value, reader.promised))
    is_floored = case.guards.local_floors and reader.value < local.floor
    may_put = local.is_open and reader.of_generation and not local.blocked and not reader.is_void
    accepted = may_put and not is_floored and reader.value >= local.entry
    if accepted:
        locals_ = list(state.locals)
        locals_[reader.process] = local._replace(entry=reader.value)
        state = state._replace(locals=tuple(locals_))
    move = Move("reader puts in process tier", who, reader.value, "accepted" if accepted else "refused")
    return _returns(move, state, case, who, (reader.value, reader.promised))


def _returns(move: Move, state: State, case: Case, who: int, read: tuple[int, int]) -> tuple[Move, State, str | None]:
    value, promised = read
    wrong = f"the reader was promised v{promised} and got v{value}" if value < promised else None
    token = max(state.token, value) if case.has_session and who == 0 else state.token
    return move, _with_reader(state, who, Reader())._replace(token=token), wrong


def _released(state: State, reader: Reader) -> State:
    record = state.tier.record
    if record is None or not reader.lease or record.lease != reader.lease:
        return state
    return state._replace(tier=state.tier._replace(record=record._replace(lease=0)))


def _with_reader(state: State, who: int, reader: Reader) -> State:
    return state._replace(readers=(*state.readers[:who], reader, *state.readers[who + 1 :]))
