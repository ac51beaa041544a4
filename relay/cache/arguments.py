"""A digest of the arguments of a call: the same for the same values, in every process and on every day.

Each value is written with its type and its length, so that 1 and "1", or ("a", "b") and ("ab",), differ. Dictionaries
and sets are sorted by what was written of their members. Nothing depends on `hash`, which differs between processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

DEPTH_MAX: Final = 32
_PLAIN: Final = (bool, int, float, Decimal, UUID, datetime, date, time, timedelta)


def digest_of_arguments(arguments: Mapping[str, Any]) -> str:
    """32 hexadecimal digits.

    Args:
        arguments: by name, defaults filled in.

    Raises:
        TypeError: a value of a type of which nobody can say here when two are the same.
    """
    return blake2b(_written(dict(arguments), 0), digest_size=16).hexdigest()


def _written(value: Any, depth: int) -> bytes:  # noqa: PLR0911
    if depth > DEPTH_MAX:
        raise TypeError("arguments are nested too deeply")
    kind = type(value)
    if value is None:
        return _framed("none", b"")
    if kind is str:
        return _framed("str", value.encode("utf-8", "surrogatepass"))
    if kind is bytes:
        return _framed("bytes", value)
    if kind in _PLAIN:
        return _framed(kind.__name__, repr(value).encode())
    if isinstance(value, Enum):
        return _framed(f"enum {kind.__module__}.{kind.__qualname__}", value.name.encode())
    if is_dataclass(value) and not isinstance(value, type):
        parts = [_written((field.name, getattr(value, field.name)), depth + 1) for field in fields(value)]
        return _framed(f"dataclass {kind.__module__}.{kind.__qualname__}", b"".join(parts))
    if isinstance(value, Mapping):
        pairs = [_written(pair, depth + 1) for pair in value.items()]
        return _framed("mapping", b"".join(sorted(pairs)))
    if isinstance(value, AbstractSet):
        return _framed("set", b"".join(sorted(_written(member, depth + 1) for member in value)))
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview)):
        # A tuple and a list with the same members ask for the same.
        return _framed("sequence", b"".join(_written(member, depth + 1) for member in value))
    raise TypeError(f"a {kind.__name__} cannot be told from another one")


def _framed(kind: str, data: bytes) -> bytes:
    return f"{kind}:{len(data)}:".encode() + data
