"""Settling a unit in one transaction: delivered rows are removed, refused ones are handled by their topic's policy.

Usually all of it succeeds. After a refusal by the database, the next unit is settled with care: savepoints find the
rows that cannot be removed, and the others are removed without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from relay.core.event import Row
from relay.core.settlement import Settlement, settle, without
from relay.daemon.poison import Poison
from relay.daemon.publisher import Report
from relay.daemon.store import Store, Unit
from relay.daemon.tenure import Tenure

PROBES_MAX = 48
"""How many deletions one unit may try in order to find the rows that cannot be removed."""


class Settler:
    """Settles the units of one worker."""

    def __init__(self, poison: Poison) -> None:
        self._poison = poison

    def settle(
        self,
        store: Store,
        unit: Unit,
        *,
        rows: Sequence[Row],
        waiting: Sequence[Row],
        report: Report,
        tenure: Tenure,
        is_careful: bool,
    ) -> tuple[int, list[Row]]:
        """Settles a unit up to its commit, which is the caller's.

        Returns:
            How many rows were delivered and removed, and the rows that are stuck: the database lets them be neither
            removed nor parked.
        Raises:
            psycopg.Error, MovedError: nothing of the unit is settled.
        """
        outcomes = report.outcomes
        settlement = Settlement(rows, []) if outcomes is None else settle([Row(*row) for row in rows], outcomes)
        treated, stuck = self._poison.treat(store, settlement.refused, report, tenure, is_careful=is_careful)
        delivered = [*settlement.delivered, *treated]
        if is_careful:
            stuck += find_stuck(store, delivered)
            delivered = without(delivered, stuck)
        store.remove(delivered)
        if waiting:
            self._poison.park_waiting(store, unit, waiting)
        if unit.parked:
            overtaken = {(row[3], row[4]) for row in delivered if row[4] is not None}
            ids = [id_ for key, parked in unit.parked.items() if key in overtaken for id_ in parked]
            if ids:
                store.mark_overtaken(ids)
        return len(delivered), stuck


def find_stuck(store: Store, rows: Sequence[Row]) -> list[Row]:
    """Returns the rows whose removal the database refuses; all of them where it would take too many tries to tell."""
    stuck: list[Row] = []
    parts = [list(rows)] if rows else []
    probes = 0
    while parts:
        part = parts.pop()
        probes += 1
        if store.allows(partial(store.remove, part)):
            continue
        if len(part) == 1 or probes + len(parts) + 2 > PROBES_MAX:
            stuck += part
            continue
        middle = len(part) // 2
        parts += [part[middle:], part[:middle]]
    return stuck
