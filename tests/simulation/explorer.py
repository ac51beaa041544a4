"""Walks through every interleaving of a model, breadth first: the first violation it meets has a shortest trace."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

StateT = TypeVar("StateT", bound=Hashable)


class Move(NamedTuple):
    """One indivisible deed in a trace: of whom (reader, process or consumer), which version it was about, and in which
    process a read begins."""

    deed: str
    who: int | None = None
    version: int | None = None
    outcome: str = ""
    where: int | None = None

    def __str__(self) -> str:
        """The move as a reader of traces wants it, as in "reader 0 puts v1: accepted"."""
        actor, _, rest = self.deed.partition(" ")
        who = "" if self.who is None else f" {self.who}"
        version = "" if self.version is None else f" v{self.version}"
        outcome = f": {self.outcome}" if self.outcome else ""
        where = "" if self.where is None else f" in process {self.where}"
        return f"{actor}{who} {rest}{version}{where}{outcome}"


class Outcome(NamedTuple):
    """What an exploration found. `trace` is empty if nothing is violated."""

    violation: str | None
    trace: tuple[Move, ...]
    states: int
    moves: int


Successors = Callable[[StateT], Iterable[tuple[Move, StateT, str | None]]]


class TooManyStatesError(Exception):
    """The model has more states than the case was meant to have: nothing has been shown."""


class Explorer(Generic[StateT]):
    """Explores from `initial`. `successors` yields each move with the state after it, and what is wrong with the move
    itself; `violation` says what is wrong with a state."""

    def __init__(
        self,
        initial: StateT,
        successors: Successors[StateT],
        violation: Callable[[StateT], str | None],
        *,
        states_max: int = 10_000_000,
    ) -> None:
        self._came_by: dict[StateT, tuple[StateT, Move] | None] = {initial: None}
        self._frontier = deque([initial])
        self._successors = successors
        self._violation = violation
        self._states_max = states_max

    def run(self) -> Outcome:
        """Explores until something is violated or there is nothing left.

        Raises:
            TooManyStatesError: There are more than `states_max` states.
        """
        moves = 0
        came_by, frontier = self._came_by, self._frontier
        while frontier:
            state = frontier.popleft()
            for move, after, wrong in self._successors(state):
                moves += 1
                if wrong is None and after in came_by:
                    continue
                wrong = wrong or self._violation(after)
                if wrong is not None:
                    return Outcome(wrong, (*self._way_to(state), move), len(came_by), moves)
                came_by[after] = (state, move)
                frontier.append(after)
            if len(came_by) > self._states_max:
                raise TooManyStatesError(f"more than {self._states_max} states")
        return Outcome(None, (), len(came_by), moves)

    def _way_to(self, state: StateT) -> tuple[Move, ...]:
        way: list[Move] = []
        step = self._came_by[state]
        while step is not None:
            state, move = step
            way.append(move)
            step = self._came_by[state]
        return tuple(reversed(way))
