"""What is broken now in a run of random faults, and when each of it is to be mended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Mending:
    """Faults that last are begun and noted here; `mend` ends those whose time has come."""

    counts: Counter[str] = field(default_factory=Counter)
    mends: list[tuple[float, str, Callable[[], None]]] = field(default_factory=list)

    def is_free(self, *names: str) -> bool:
        """Whether none of these is broken now."""
        return not {name for _, name, _ in self.mends} & set(names)

    def later(self, seconds: float, name: str, mend: Callable[[], None]) -> None:
        """Has this called after so many seconds; the name is not free until then."""
        self.mends.append((time.monotonic() + seconds, name, mend))

    def mend(self, *, all_of_it: bool = False) -> None:
        """Mends what is due."""
        now = time.monotonic()
        due = sorted((mend for mend in self.mends if all_of_it or mend[0] <= now), key=lambda mend: mend[0])
        self.mends = [mend for mend in self.mends if mend not in due]
        for _, _, act in due:
            act()
