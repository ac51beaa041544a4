"""What is known of one partition that a consumer owns: how far it is applied, acknowledged, done and committed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from relay.cache.tiers import Position
from relay.core.change import Change, Malformed


class Task(NamedTuple):
    """An event that needs more than the built-in effects: hooks, or to be set aside."""

    offset: int
    event: Change | Malformed
    record: Any
    """As the client handed it over."""
    stays_unknown: bool
    """Its entity was marked as unknown when this event was applied, and its hooks have to unmark it."""


@dataclass(slots=True, eq=False)
class Lane:
    """One owned partition. `tasks` is shared with the hooks, under their lock; all else belongs to the polling thread.

    applied <= read, and `done` is below the first task that waits. Only what is done is committed.
    """

    topic: str
    partition: int
    applied: int
    """Built-in effects of all events below are in the shared tier."""
    read: int
    """All events below were fetched."""
    committed: int = -1
    topic_id: str = ""
    tasks: deque[Task] = field(default_factory=deque)
    busy: bool = False
    """It is in the hands of a worker, or waits for one."""
    revoked: bool = False
    is_paused: bool = False
    end: int | None = None
    """The end of the partition when it was last asked for."""

    @property
    def done(self) -> int:
        """The offset to commit: everything below is applied, and its hooks have ended."""
        tasks = self.tasks
        try:
            return min(tasks[0].offset, self.applied)
        except IndexError:
            return self.applied

    @property
    def lag(self) -> int | None:
        """Events that are not applied yet, as of the last look at the end."""
        return None if self.end is None else max(0, self.end - self.applied)

    def position(self) -> Position:
        """What to tell the tier along with the events from `applied` up to `read`."""
        return Position(self.topic, self.partition, self.applied, self.read)
