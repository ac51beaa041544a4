"""What happens to the shared tier: writes and their events, consumers applying them, and Redis losing things."""

from __future__ import annotations

from collections.abc import Iterator

from tests.simulation.explorer import Move
from tests.simulation.protocol import Case
from tests.simulation.state import NOTHING, Consumer, Record, State, Tier, spend

Moves = Iterator[tuple[Move, State]]


def moves_of_writer(state: State, case: Case) -> Moves:
    """Transactions commit; their events reach the log afterwards, usually at once."""
    if state.budget.writes:
        version = state.db + 1
        token = version if case.has_session and case.session_writes else state.token
        if not case.guards.only_committed:
            if not state.announced:
                yield (
                    Move("the writer announces", None, version),
                    state._replace(announced=version, log=(*state.log, version)),
                )
            after = state._replace(db=version, announced=0, budget=spend(state, "writes"), token=token)
            if state.announced:
                yield Move("the writer commits", None, version), after
        else:
            after = state._replace(db=version, budget=spend(state, "writes"), token=token)
            if case.reorders:
                after = after._replace(outbox=(*state.outbox, version))
            else:
                after = after._replace(log=(*state.log, version))
            yield Move("the writer commits", None, version), after
    for version in state.outbox:
        rest = tuple(other for other in state.outbox if other != version)
        yield Move("the relay publishes", None, version), state._replace(outbox=rest, log=(*state.log, version))
    if case.has_replica and state.replica < state.db:
        yield Move("the replica reaches", None, state.replica + 1), state._replace(replica=state.replica + 1)


def moves_of_consumers(state: State, case: Case) -> Moves:
    """Consumers apply what they have read, look after their progress, and die."""
    if not case.has_shared:
        return
    for who, consumer in enumerate(state.consumers):
        yield from _moves_of_consumer(state, case, who, consumer)
    owner = len(state.consumers) - 1
    position = state.consumers[owner].position
    if state.budget.rewinds or state.budget.rebalances:
        if case.commits_early:
            position = len(state.log)
        if state.committed != position:
            yield Move("consumer commits its offset", owner), state._replace(committed=position)
    fresh = Consumer(state.committed, claims=case.guards.claims_after_restart)
    if state.budget.rewinds:
        consumers = (*state.consumers[:owner], fresh)
        yield (
            Move("consumer begins again at its offset", owner),
            state._replace(consumers=consumers, budget=spend(state, "rewinds")),
        )
    if state.budget.rebalances:
        yield (
            Move("consumer takes over", owner + 1),
            state._replace(consumers=(*state.consumers, fresh), budget=spend(state, "rebalances")),
        )


def _moves_of_consumer(state: State, case: Case, who: int, consumer: Consumer) -> Moves:
    tier, guards = state.tier, case.guards
    if consumer.must_open:
        epoch = state.epochs + 1
        record = None if guards.read_checks_epoch and guards.put_checks_epoch else tier.record
        after = _with_consumer(state, who, consumer._replace(must_open=False, claims=True, epoch=epoch))
        yield (
            Move("consumer opens an epoch", who),
            after._replace(epochs=epoch, tier=Tier(epoch, consumer.position, record)),
        )
        return
    if not tier.epoch:
        yield (
            Move("consumer finds the tier closed", who),
            _with_consumer(state, who, consumer._replace(must_open=True, wrote_progress=False)),
        )
        return
    if consumer.wrote_progress:
        yield _applies(state, case, who, consumer)
        return
    stored = max(tier.progress, 0)
    if guards.loss_is_noticed and consumer.claims and stored < consumer.position:
        if guards.loss_voids_all or tier.epoch == consumer.epoch:
            found = consumer._replace(must_open=True)
        else:
            found = consumer._replace(claims=False, epoch=tier.epoch)
        yield Move("consumer finds its progress lost", who), _with_consumer(state, who, found)
        return
    if consumer.position < len(state.log):
        yield _applies(state, case, who, consumer)
    if not consumer.claims:
        after = _with_consumer(state, who, consumer._replace(claims=True))
        yield (
            Move("consumer applies nothing", who),
            after._replace(tier=tier._replace(progress=max(stored, consumer.position))),
        )


def _applies(state: State, case: Case, who: int, consumer: Consumer) -> tuple[Move, State]:
    version = state.log[consumer.position]
    progress = max(state.tier.progress, consumer.position + 1)
    if not case.guards.progress_with_records and not consumer.wrote_progress:
        after = _with_consumer(state, who, consumer._replace(wrote_progress=True))
        return Move("consumer writes the progress of", who, version), after._replace(
            tier=state.tier._replace(progress=progress)
        )
    tier = state.tier._replace(progress=progress, record=_bumped(state.tier, case, version))
    applied = Consumer(consumer.position + 1, epoch=consumer.epoch)
    return Move("consumer applies", who, version), _with_consumer(state, who, applied)._replace(tier=tier)


def _bumped(tier: Tier, case: Case, version: int) -> Record | None:
    record = tier.record
    if record is not None and record.epoch != tier.epoch:
        record = None
    if version in case.unversioned:
        if record is None:
            return None
        return record._replace(value=NOTHING, lease=0 if case.guards.unversioned_cancels_lease else record.lease)
    floor, value, lease = (record.floor, record.value, record.lease) if record else (0, NOTHING, 0)
    if version >= floor and version in case.deleted and not case.guards.deletion_is_a_bump:
        value = version
    floor = max(floor, version)
    if value < floor and case.guards.nothing_below_floor:
        value = NOTHING
    return Record(tier.epoch, floor, value, lease)


def moves_of_redis(state: State, case: Case) -> Moves:
    """Redis evicts the record, loses everything, or goes back to what its standby had."""
    tier, budget = state.tier, state.budget
    if budget.evictions and tier.record is not None:
        record = None
        if not case.guards.lease_lies_in_record and tier.record.lease:
            record = Record(tier.record.epoch, lease=tier.record.lease)
        yield (
            Move("Redis evicts the record"),
            state._replace(tier=tier._replace(record=record), budget=spend(state, "evictions")),
        )
    if budget.flushes:
        yield Move("Redis is flushed"), state._replace(tier=Tier(0, NOTHING, None), budget=spend(state, "flushes"))
    if budget.failovers and state.standby != tier:
        yield Move("the standby catches up"), state._replace(standby=tier)
        yield (
            Move("Redis fails over to its standby"),
            state._replace(tier=state.standby, budget=spend(state, "failovers")),
        )


def _with_consumer(state: State, who: int, consumer: Consumer) -> State:
    consumers = state.consumers
    return state._replace(consumers=(*consumers[:who], consumer, *consumers[who + 1 :]))
