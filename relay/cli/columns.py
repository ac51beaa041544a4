"""Names in columns: a terminal has 80, a pipe has as many as it takes, since whatever reads it wants whole names."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def is_narrow() -> bool:
    """Whether a person looks at what is written, in a terminal."""
    return sys.stdout.isatty()


def shortened(text: str, width: int) -> str:
    """Returns the end of a name that does not fit a terminal: a topic's may have 249 characters, and its end tells more
    than its beginning."""
    return text if len(text) <= width or not is_narrow() else "..." + text[3 - width :]


def columns(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    """Rows as lines.

    Args:
        rows: the headings first.
        widths: of each column in a terminal; elsewhere each is as wide as it needs to be.
    """
    cut = [[shortened(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    least = [0 if not is_narrow() else width for width in widths]
    wide = [max(least[number], *(len(row[number]) for row in cut)) for number in range(len(widths))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, wide, strict=True)).rstrip() for row in cut]
