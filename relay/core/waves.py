"""In which order the rows of a unit may be sent, so that one that fails cannot be overtaken by its own key.

Most rows go at once: many are in flight, the idempotent producer keeps them in order. Rows that may fail alone, because
they are larger than what their topic allows uncompressed, and rows of topics with `order = "strict"`, go one at a time
per key, each after the acknowledgement of the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relay.core.event import Row


@dataclass(frozen=True, slots=True)
class Waves:
    """Indexes of rows: those that go at once, and the queues of those that go one after another."""

    together: list[int]
    queues: list[list[int]]


def plan(rows: Sequence[Row], is_strict: Callable[[str], bool], is_risky: Callable[[Row], bool]) -> Waves:
    """Splits a unit. A key with a risky row goes together up to that row, and one by one from there."""
    together: list[int] = []
    queues: dict[tuple[str, bytes | None, int], list[int]] = {}
    for index, row in enumerate(rows):
        topic, key = row[3], row[4]
        # Rows without a key owe no order: a risky one among them is a queue of its own.
        name = (topic, key, -1 if key is not None else index)
        if name in queues:
            queues[name].append(index)
        elif is_strict(topic) or is_risky(row):
            queues[name] = [index]
        else:
            together.append(index)
    return Waves(together, list(queues.values()))
