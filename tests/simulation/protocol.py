"""The guards of the protocol, each of which can be taken out, and what may happen in a case.

A guard belongs here only if taking it out lets something stale stay: `cases.py` shows it, one case for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Guards:
    """What the protocol does, as it should. A case takes one of them out."""

    # The shared tier.
    put_checks_floor: bool = True
    """A put below the floor of its record is refused."""
    put_checks_lease: bool = True
    """A put without the lease that its record holds is refused."""
    put_compares_lease: bool = True
    """It has to be the very lease, not just some lease."""
    lease_lies_in_record: bool = True
    """Evicting a record takes its lease along."""
    put_checks_epoch: bool = True
    """A put under a lease of an earlier epoch is refused."""
    read_checks_epoch: bool = True
    """A record of an earlier epoch is a miss."""
    nothing_below_floor: bool = True
    """An applied event takes older values out of reach: they are dropped, or the read compares them with the floor."""
    unversioned_cancels_lease: bool = True
    """An event without a version takes the lease away too, for there is no floor that would refuse the put."""
    deletion_is_a_bump: bool = True
    """A deletion leaves no negative value: only a load knows that there is nothing."""
    replica_uncached: bool = True
    """What was read from a replica is put nowhere."""
    replica_reaches_need: bool = True
    """What was read from a replica is served only if it reaches what the read needs."""
    # The stream and its consumer.
    only_committed: bool = True
    """Events are published after their transactions have committed."""
    progress_with_records: bool = True
    """Records and progress are written by one call."""
    loss_is_noticed: bool = True
    """A consumer whose acknowledged progress has vanished begins a new epoch."""
    claims_after_restart: bool = True
    """A consumer that starts claims the offset it starts at as acknowledged."""
    loss_voids_all: bool = True
    """It begins a new epoch also if the epoch has changed meanwhile, rather than registering anew in what it finds."""
    # The process tier.
    local_floors: bool = True
    """A process remembers the versions of the events it saw, and puts nothing below them."""
    floor_on_shared: bool = True
    """Nor does it serve what the shared tier has below them."""
    gap_closes: bool = True
    """A gap in the feed empties the tier."""
    waits_for_shared: bool = True
    """It opens again only when the shared tier has applied everything up to where the feed joined."""
    generation: bool = True
    """A fill that began before the tier was closed and opened is refused, however open it is when the fill ends."""
    opening_is_a_generation: bool = True
    """So is a fill that began while it was closed: asking whether it is open when the fill ends is too late."""
    epoch_closes: bool = True
    """A change of the shared tier's epoch closes the tier."""
    sweep_waits_for_shared: bool = True
    """Floors are forgotten only when the shared tier has applied their events."""
    sweep_waits_for_fills: bool = True
    """Floors are forgotten only when no fill that began before them is under way."""
    unversioned_blocks: bool = True
    """After an event without a version nothing is put until the shared tier has applied it, and no older fill ever."""
    # Sessions.
    token_on_local: bool = True
    """A session takes no entry of the process tier below its token."""
    token_on_shared: bool = True
    """A session takes no record below its token."""
    token_learns: bool = True
    """What a session has seen goes into its token."""


class Budget(NamedTuple):
    """How often each thing may still happen."""

    writes: int = 2
    evictions: int = 0
    flushes: int = 0
    failovers: int = 0
    rewinds: int = 0
    """The consumer dies, or its partition moves, and it begins again where the group's offset is."""
    rebalances: int = 0
    """Another consumer takes over; the one before goes on applying what it has read."""
    takeovers: int = 0
    """A lease runs out, and another reader gets one."""
    refreshes: int = 0
    """A reader takes a lease although there is a usable value."""
    gaps: int = 0
    sweeps: int = 0


@dataclass(frozen=True, slots=True)
class Case:
    """What one exploration allows."""

    name: str
    budget: Budget
    guards: Guards = Guards()
    readers: int = 2
    processes: int = 1
    """Reader i lives in process i modulo this."""
    has_shared: bool = True
    has_local: bool = True
    has_session: bool = False
    """Reader 0 is a session, which may read in any process."""
    session_writes: bool = True
    """It is the session that wrote, and it reads its own writes; otherwise it only must not go back in time."""
    has_replica: bool = False
    commits_early: bool = False
    """The consumer commits offsets of events that it has not applied yet."""
    reorders: bool = False
    """Events may be published in any order."""
    unversioned: frozenset[int] = frozenset()
    """Versions whose events do not say so."""
    deleted: frozenset[int] = frozenset()
    """Versions at which the entity does not exist."""
