"""The Lua scripts, read from their files once, and the calls of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")
Word = str | bytes | int

_FOLDER = Path(__file__).parent / "scripts"
_SHARED = (_FOLDER / "shared.lua").read_text()


class Script(NamedTuple):
    """A script as the server knows it. It is sent as its digest, and as its text to a server that forgot it."""

    text: str
    digest: str


def _script(name: str) -> Script:
    text = _SHARED + (_FOLDER / f"{name}.lua").read_text()
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


LEASE = _script("lease")
PUT = _script("put")
RELEASE = _script("release")
APPLY = _script("apply")
OPEN = _script("open")
PROGRESS = _script("progress")


class Call(NamedTuple, Generic[T]):
    """What to send, and what the reply means."""

    script: Script
    words: tuple[Word, ...]
    """The number of keys, the keys, the arguments."""
    parse: Callable[[Any], T]

    def by_digest(self) -> tuple[Word, ...]:
        """The command for a server that knows the script."""
        return ("EVALSHA", self.script.digest, *self.words)

    def by_text(self) -> tuple[Word, ...]:
        """The command for any server. It remembers the script."""
        return ("EVAL", self.script.text, *self.words)


def call(script: Script, keys: list[str], arguments: list[Word], parse: Callable[[Any], T]) -> Call[T]:
    """Puts the words together."""
    return Call(script, (len(keys), *keys, *arguments), parse)
