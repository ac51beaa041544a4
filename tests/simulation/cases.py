"""The cases that are explored: those in which the protocol holds, and one for each guard taken out.

`PROTOCOL` is explored whenever the tests run, `PROTOCOL_AT_LENGTH` with the faults: more of everything at once. A case
of `WITHOUT` has just the budget that its trace needs; what it finds is replayed on the code by `test_replay.py`.
"""

from __future__ import annotations

from typing import Final

from tests.simulation.protocol import Budget, Case, Guards


def _without(guard: str, budget: Budget, **rest: object) -> Case:
    return Case(f"without {guard}", budget, Guards(**{guard: False}), **rest)  # type: ignore[arg-type]


PROTOCOL: Final = (
    Case("two writes, two evictions, a refresh", Budget(evictions=2, refreshes=1), has_local=False),
    Case("three writes in any order, a restart", Budget(3, rewinds=1), has_local=False, readers=1, reorders=True),
    Case("a lease that runs out, an eviction", Budget(evictions=1, takeovers=1), has_local=False),
    Case("a flush, a restart", Budget(flushes=1, rewinds=1), has_local=False),
    Case("a failover, a restart", Budget(failovers=1, rewinds=1), has_local=False, readers=1),
    Case("a failover, two readers", Budget(1, failovers=1, evictions=1), has_local=False),
    Case("a flush between two consumers", Budget(flushes=1, rebalances=1), has_local=False, readers=1),
    Case("a failover between two consumers", Budget(1, failovers=1, rebalances=1), has_local=False, readers=1),
    Case("offsets committed too early", Budget(rewinds=2), has_local=False, readers=1, commits_early=True),
    Case("a replica", Budget(evictions=1), has_local=False, has_replica=True),
    Case("events without versions", Budget(evictions=1), has_local=False, unversioned=frozenset({1, 2})),
    Case("an event without a version, then one with", Budget(rewinds=1), has_local=False, unversioned=frozenset({1})),
    Case(
        "a deletion that comes again",
        Budget(2, evictions=1, rebalances=1),
        has_local=False,
        readers=1,
        deleted=frozenset({1}),
    ),
    Case("a process tier, two readers", Budget(evictions=1)),
    Case("two process tiers", Budget(1, evictions=1), processes=2),
    Case("a gap, two readers", Budget(gaps=1)),
    Case("a gap and a swept floor", Budget(gaps=1, sweeps=1), readers=1),
    Case("a swept floor, two readers", Budget(sweeps=1)),
    Case("a failover under a process tier", Budget(failovers=1, sweeps=1), readers=1),
    Case("a flush and a gap", Budget(flushes=1, gaps=1), readers=1),
    Case("no shared tier", Budget(3, gaps=2), has_shared=False),
    Case("a session in two processes", Budget(evictions=1), processes=2, readers=1, has_session=True),
    Case("a session with a replica", Budget(), has_session=True, has_replica=True, readers=1),
    Case("a session that only reads", Budget(1), processes=2, has_session=True, session_writes=False),
    Case(
        "a process tier, events without versions",
        Budget(evictions=1, sweeps=1),
        unversioned=frozenset({1, 2}),
        readers=1,
    ),
)

PROTOCOL_AT_LENGTH: Final = (
    Case(
        "shared: all but the loss of all", Budget(2, evictions=1, rewinds=1, takeovers=1, refreshes=1), has_local=False
    ),
    Case("shared: three writes, two evictions, a restart", Budget(3, evictions=2, rewinds=1), has_local=False),
    Case("shared: two failovers, a restart", Budget(2, failovers=2, rewinds=1), has_local=False, readers=1),
    Case("shared: failover and flush", Budget(2, failovers=1, flushes=1), has_local=False),
    Case(
        "shared: failover, two consumers, a restart",
        Budget(2, failovers=1, rebalances=1, rewinds=1),
        has_local=False,
        readers=1,
    ),
    Case(
        "shared: three consumers, an eviction, a flush",
        Budget(2, rebalances=2, evictions=1, flushes=1),
        has_local=False,
        readers=1,
    ),
    Case(
        "shared: any order, an eviction, a restart", Budget(3, evictions=1, rewinds=1), has_local=False, reorders=True
    ),
    Case(
        "shared: replica, evictions, a failover",
        Budget(2, evictions=1, failovers=1),
        has_local=False,
        has_replica=True,
        readers=1,
    ),
    Case("local: evictions, a gap, a sweep", Budget(2, evictions=1, gaps=1, sweeps=1)),
    Case("local: two processes, a gap, a flush", Budget(1, flushes=1, gaps=1), processes=2),
    Case("local: two processes, two writes", Budget(2, evictions=1), processes=2),
    Case("local: failover, gap, sweep", Budget(2, failovers=1, gaps=1, sweeps=1), readers=1),
    Case("local: failover, two readers", Budget(1, failovers=1, sweeps=1)),
    Case("local: flush, restart, eviction", Budget(2, flushes=1, rewinds=1, evictions=1), readers=1),
    Case("local: no versions, two readers", Budget(2, evictions=1, sweeps=1), unversioned=frozenset({1, 2})),
    Case(
        "local: versions now and then, failover",
        Budget(2, failovers=1, sweeps=1),
        unversioned=frozenset({2}),
        readers=1,
    ),
    Case(
        "session: writes, two processes, evictions, a gap",
        Budget(2, evictions=1, gaps=1),
        processes=2,
        has_session=True,
        readers=1,
    ),
    Case("session: replica, another reader", Budget(2, evictions=1), has_session=True, has_replica=True),
    Case(
        "session: any order, two processes",
        Budget(2),
        processes=2,
        has_session=True,
        session_writes=False,
        reorders=True,
    ),
)

_SHARED: Final = {"has_local": False}

WITHOUT: Final = (
    _without("put_checks_floor", Budget(1), **_SHARED),
    _without("put_checks_lease", Budget(1, evictions=1), **_SHARED),
    _without("put_compares_lease", Budget(1, evictions=1), **_SHARED),
    _without("lease_lies_in_record", Budget(1, evictions=1), **_SHARED),
    _without("put_checks_epoch", Budget(2, failovers=1), **_SHARED),
    _without("read_checks_epoch", Budget(2, failovers=1), **_SHARED, readers=1),
    _without("nothing_below_floor", Budget(1), **_SHARED),
    _without("unversioned_cancels_lease", Budget(1), **_SHARED, unversioned=frozenset({1})),
    _without("deletion_is_a_bump", Budget(2, evictions=1, rebalances=1), **_SHARED, deleted=frozenset({1})),
    _without("replica_uncached", Budget(1, evictions=1), **_SHARED, has_replica=True),
    _without("replica_reaches_need", Budget(1), **_SHARED, has_replica=True, has_session=True, readers=1),
    _without("only_committed", Budget(1), **_SHARED, readers=1),
    _without("progress_with_records", Budget(1, failovers=1), **_SHARED, readers=1),
    _without("loss_is_noticed", Budget(1, failovers=1), **_SHARED, readers=1),
    _without("claims_after_restart", Budget(1, failovers=1, rewinds=1), **_SHARED, readers=1),
    _without("loss_voids_all", Budget(2, failovers=2), **_SHARED, readers=1),
    _without("local_floors", Budget(1)),
    _without("floor_on_shared", Budget(1)),
    _without("gap_closes", Budget(1, gaps=1)),
    _without("waits_for_shared", Budget(1, gaps=1)),
    _without("generation", Budget(1, gaps=1)),
    _without("opening_is_a_generation", Budget(1, gaps=1)),
    _without("epoch_closes", Budget(1, failovers=1, sweeps=1), readers=2),
    _without("sweep_waits_for_shared", Budget(1, sweeps=1)),
    _without("sweep_waits_for_fills", Budget(1, sweeps=1)),
    _without("unversioned_blocks", Budget(1), unversioned=frozenset({1})),
    _without("token_on_local", Budget(1), readers=1, has_session=True),
    _without("token_on_shared", Budget(1), readers=1, has_session=True),
    _without("token_learns", Budget(1), readers=2, processes=2, has_session=True, session_writes=False),
)
