"""How values become bytes and back: bytes, text, JSON, dataclasses, models of pydantic. Never pickle.

A record names the codec that wrote its value, and readers with another one take it for a miss. What a codec reads is
what was written, type by type: a value that would come back as something else is refused when it is written, not when
somebody compares it with a fresh one. `decode` raises for what the codec did not write; callers take that for a miss.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from math import isfinite
from typing import Any, Final, NoReturn

from relay.errors import CacheError

DEPTH_MAX: Final = 100
"""Of lists and dictionaries in one another. The readers' parsers allow more, but not without end."""
BYTES_MAX: Final = 1 << 24
"""Of encoded values. The shared tier has a smaller limit of its own; this one bounds what is ever parsed."""


class BytesCodec:
    """Bytes as they are."""

    id: Final = 1

    def encode(self, value: bytes, /) -> bytes:
        """The same bytes."""
        return value if type(value) is bytes else refuse(value, "bytes")

    def decode(self, data: bytes, /) -> bytes:
        """The same bytes."""
        return data


class TextCodec:
    """Text in UTF-8."""

    id: Final = 2

    def encode(self, value: str, /) -> bytes:
        """Raises:
        CacheError: RLY-901.
        """
        return as_utf8(value) if type(value) is str else refuse(value, "text")

    def decode(self, data: bytes, /) -> str:
        """Raises:
        UnicodeDecodeError: these bytes are no text.
        """
        return data.decode()


class JsonCodec:
    """What JSON has: None, booleans, integers of 64 bits, finite floats, text, lists, dictionaries with text as keys.

    Written and read with orjson where it is installed, and with the standard library where not, to the same meaning.
    """

    id: Final = 3

    def __init__(self) -> None:
        self._dump, self.decode_short = _json()
        """The second is `decode` for what is known to be shorter than BYTES_MAX: a call less for each of many."""

    def encode(self, value: Any, /) -> bytes:
        """Raises:
        CacheError: RLY-901, if the value would come back as something else.
        """
        check_json(value, 0)
        return self._dump(value)

    def decode(self, data: bytes, /) -> Any:
        """Raises:
        ValueError, RecursionError: these bytes are no JSON, or are nested without end.
        """
        if len(data) > BYTES_MAX:
            raise ValueError("too long")
        return self.decode_short(data)


def check_json(value: Any, depth: int) -> None:
    """Goes through a value before it is written; costs little beside the load that made it.

    Raises:
        CacheError: RLY-901, for the first part that JSON does not have.
    """
    kind = type(value)
    if kind is str:
        as_utf8(value)
    elif kind is int:
        if not -(2**63) <= value < 2**63:
            refuse(value, "JSON (it is beyond 64 bits)")
    elif kind is float:
        if not isfinite(value):
            refuse(value, "JSON (it is not finite)")
    elif kind is list or kind is dict:
        if depth >= DEPTH_MAX:
            refuse(value, f"JSON (it is nested more than {DEPTH_MAX} deep)")
        for part in value if kind is list else value.values():
            check_json(part, depth + 1)
        if kind is dict:
            for key in value:
                if type(key) is not str:
                    refuse(key, "a key in JSON")
                as_utf8(key)
    elif value is not None and kind is not bool:
        refuse(value, "JSON")


def as_utf8(text: str) -> bytes:
    """Raises:
    CacheError: RLY-901, for half a surrogate pair.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        refuse(text, "UTF-8")


def refuse(value: object, what: str) -> NoReturn:
    """Says the type and never the value: it may be a secret."""
    kind = type(value)
    raise CacheError(
        "RLY-901",
        f"a value of type {kind.__module__}.{kind.__qualname__} cannot be written as {what}",
        "return what the cache's codec can write, or choose another codec",
    )


def _json() -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    try:
        import orjson
    except ImportError:
        return _dump_json, json.loads
    return orjson.dumps, orjson.loads


def _dump_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
