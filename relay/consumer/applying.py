"""Applying to the shared tier, and the epochs: who begins one, and when.

A new epoch voids whatever the tier holds. It begins when nobody can say any more what the tier has missed:

* the tier is closed: it was flushed, evicted, or is empty;
* it forgot progress that it had acknowledged: a failover or a restart lost writes;
* events cannot be read: a group without offsets, offsets out of range, a topic that was made anew.

The offsets at which reading goes on are fixed before the epoch begins. What was committed before them is then in the
primary when anything is loaded in the new epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from relay.cache.tiers import Bump, Position, SharedTier, TierError
from relay.consumer.failpoints import failpoint
from relay.consumer.lane import Lane

TRIES: Final = 5
"""Others may begin epochs at the same time. Each try finds the newest; five in a row say that something is wrong."""


class Applier:
    """One consumer's view of the shared tier. Belongs to the polling thread.

    Args:
        tier: the shared tier.
        on_epoch: told the cause when this consumer begins an epoch.
    """

    def __init__(self, tier: SharedTier, on_epoch: Callable[[str], None]) -> None:
        self._tier = tier
        self._on_epoch = on_epoch
        self._cause: str | None = None
        self.epoch: bytes | None = None

    @property
    def owes_epoch(self) -> bool:
        """Whether an epoch has to begin. Offsets that lie behind a gap must not be committed before it has."""
        return self._cause is not None

    def owe_epoch(self, cause: str) -> None:
        """A new epoch has to begin before anything else is applied."""
        self._cause = cause

    def apply(self, bumps: Sequence[Bump], lanes: Sequence[Lane], owned: Sequence[Lane]) -> None:
        """Applies the events up to `read` of these lanes. When it returns, the tier has acknowledged them.

        Args:
            lanes: those that the batch is from.
            owned: all lanes of this consumer: their positions go into a new epoch, should one begin.

        Raises:
            TierError: nothing is known to be applied; try again.
        """
        for _ in range(TRIES):
            if self._cause is not None:
                self._open(self._cause, owned)
            applied = self._tier.apply(bumps, (), [lane.position() for lane in lanes])
            if applied.epoch is None:
                self._cause = "closed"
            elif applied.lost:
                self._cause = "lost writes"
            else:
                self.epoch = applied.epoch
                for lane in lanes:
                    lane.applied = lane.read
                return
        raise TierError("epochs", "others keep beginning epochs")

    def _open(self, cause: str, owned: Sequence[Lane]) -> None:
        """The positions are those of what is applied: no claim about events that are yet to come."""
        positions = [Position(lane.topic, lane.partition, lane.applied, lane.applied) for lane in owned]
        failpoint("consumer_before_epoch")
        self.epoch = self._tier.open(cause, positions)
        failpoint("consumer_after_epoch")
        self._cause = None
        self._on_epoch(cause)
