"""The table in the document, between two marks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.races.ours import Relay
from tests.races.races import RACES

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "COMPARISON-CACHES.md"
MARKED: Final = re.compile(r"(<!-- played by `make races` -->\n).*?(<!-- end -->)", re.DOTALL)


def write(columns: Mapping[str, Sequence[str]]) -> None:
    """Puts what was played into the document."""
    lines = [["", "race", *columns], ["---"] * (len(columns) + 2)]
    for row, place in enumerate(RACES):
        lines.append([place.number, place.name, *(outcomes[row] for outcomes in columns.values())])
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    DOCUMENT.write_text(MARKED.sub(lambda found: f"{found[1]}\n{table}\n{found[2]}", DOCUMENT.read_text()))


def committed() -> dict[str, str]:
    """Relay's outcome by race, as the document says."""
    found = MARKED.search(DOCUMENT.read_text())
    assert found is not None, "the document has lost its marks"
    lines = [[cell.strip() for cell in line.split("|")] for line in found[0].splitlines() if line.startswith("|")]
    head, _, *rows = lines
    name, column = head.index("race"), head.index(Relay.name)
    return {row[name]: row[column] for row in rows}
