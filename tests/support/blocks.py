"""The blocks of the documents: what a reader copies, as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.support.documents import ROOT

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block."""

    file: str
    """From the root of the repository."""
    number: int
    """In its file, from 1."""
    language: str
    text: str

    @property
    def name(self) -> str:
        """As tables of blocks write it."""
        return f"{self.file}#{self.number}"


def blocks(file: Path) -> list[Block]:
    """Those of one document, in their order."""
    found = FENCED.findall(file.read_text(encoding="utf-8"))
    name = str(file.relative_to(ROOT))
    return [Block(name, number, language, text) for number, (language, text) in enumerate(found, 1)]


def block(name: str) -> Block:
    """One of them by its name."""
    file, _, number = name.partition("#")
    return blocks(ROOT / file)[int(number) - 1]


def of_section(file: str, heading: str) -> list[Block]:
    """The blocks between this heading and the next one of its level."""
    text = (ROOT / file).read_text(encoding="utf-8")
    start = text.index(f"\n## {heading}\n")
    end = text.find("\n## ", start + 1)
    first = len(FENCED.findall(text[:start]))
    count = len(FENCED.findall(text[start : end if end > 0 else None]))
    return blocks(ROOT / file)[first : first + count]
