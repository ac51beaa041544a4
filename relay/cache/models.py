"""Codecs for objects with named fields: dataclasses by their annotations, and models of pydantic by pydantic.

A dataclass is written as a JSON object of its fields. Old bytes whose fields or types do not fit the class of today are
a miss, so a deployment that changes the class needs no new `schema`; one that changes what a field means does.
"""

from __future__ import annotations

import dataclasses
import types
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final, Generic, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from relay.cache.codecs import JsonCodec, refuse
from relay.errors import CacheError

T = TypeVar("T")


class Both(NamedTuple):
    """The two directions of one annotation, to what JSON has and back. Both raise for what does not fit."""

    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


class DataclassCodec(Generic[T]):
    """Instances of one dataclass. Its fields are what JSON has, dates and times, UUIDs, decimals, enumerations, bytes,
    other dataclasses, and lists, tuples, sets, dictionaries and optional ones of these.

    Raises:
        CacheError: RLY-902, if a field is annotated with something else.
    """

    id: Final = 4

    def __init__(self, kind: type[T]) -> None:
        self._both = _both(kind, (kind,))
        self._json = JsonCodec()

    def encode(self, value: T, /) -> bytes:
        """Raises:
        CacheError: RLY-901, if a field holds something else than its annotation says.
        """
        return self._json.encode(self._both.write(value))

    def decode(self, data: bytes, /) -> T:
        """Raises:
        ValueError, TypeError, KeyError, ArithmeticError: these bytes do not fit the class.
        """
        read: T = self._both.read(self._json.decode(data))
        return read


class PydanticCodec(Generic[T]):
    """What one type of pydantic describes: a model, or anything else that `TypeAdapter` takes."""

    id: Final = 5

    def __init__(self, kind: type[T]) -> None:
        from pydantic import TypeAdapter

        self._adapter = TypeAdapter(kind)

    def encode(self, value: T, /) -> bytes:
        """Raises:
        CacheError: RLY-901, if pydantic cannot write it.
        """
        try:
            return self._adapter.dump_json(value)
        except ValueError:
            refuse(value, "JSON by pydantic")

    def decode(self, data: bytes, /) -> T:
        """Raises:
        ValueError: these bytes do not fit the type.
        """
        return self._adapter.validate_json(data)


def _exactly(kind: type) -> Both:
    """For what JSON has itself. An exact type: a boolean is no integer."""

    def write(value: Any) -> Any:
        return value if type(value) is kind else refuse(value, f"a field of type {kind.__qualname__}")

    def read(found: Any) -> Any:
        if type(found) is not kind:
            raise ValueError("another type")
        return found

    return Both(write, read)


def _by_text(kind: type, write: Callable[[Any], str], read: Callable[[str], Any]) -> Both:
    def checked(value: Any) -> str:
        return write(value) if type(value) is kind else refuse(value, f"a field of type {kind.__qualname__}")

    return Both(checked, lambda found: read(_text(found)))


def _text(found: Any) -> str:
    if type(found) is not str:
        raise ValueError("not a text")
    return found


_SCALARS: Final[Mapping[Any, Both]] = {
    str: _exactly(str),
    int: _exactly(int),
    bool: _exactly(bool),
    float: _exactly(float),
    type(None): _exactly(type(None)),
    Any: Both(lambda value: value, lambda value: value),
    bytes: _by_text(bytes, lambda value: b64encode(value).decode(), lambda text: b64decode(text, validate=True)),
    datetime: _by_text(datetime, datetime.isoformat, datetime.fromisoformat),
    date: _by_text(date, date.isoformat, date.fromisoformat),
    time: _by_text(time, time.isoformat, time.fromisoformat),
    timedelta: Both(
        lambda value: [value.days, value.seconds, value.microseconds], lambda parts: timedelta(*map(int, parts))
    ),
    Decimal: _by_text(Decimal, str, Decimal),
    UUID: _by_text(UUID, str, UUID),
}


def _both(kind: Any, within: tuple[Any, ...]) -> Both:  # noqa: PLR0911 - a table, one line for each form
    """How an annotation is written and read. `within` are the classes that are being described."""
    if kind in _SCALARS:
        return _SCALARS[kind]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _by_text(kind, lambda value: value.name, lambda name: kind[name])
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _dataclass(kind, within)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        others = [other for other in arguments if other is not type(None)]
        if len(others) == 1:
            return _optional(_both(others[0], within))
    if origin in (list, set, frozenset) or (origin is tuple and arguments[1:] == (...,)):
        return _many(origin, _both(arguments[0], within))
    if origin is tuple:
        return _row([_both(argument, within) for argument in arguments])
    if origin is dict and arguments[0] is str:
        return _mapping(_both(arguments[1], within))
    raise CacheError(
        "RLY-902",
        f"the annotation {kind!r} in {within[-1].__qualname__} has no form in JSON",
        "use one of the annotations that DataclassCodec names, or PydanticCodec",
    )


def _dataclass(kind: Any, within: tuple[Any, ...]) -> Both:
    if kind in within[1:] or len(within) > 20:
        raise CacheError("RLY-902", f"{kind.__qualname__} contains itself", "use PydanticCodec")
    hints = get_type_hints(kind)
    fields = {field.name: _both(hints[field.name], (*within, kind)) for field in dataclasses.fields(kind) if field.init}

    def write(value: Any) -> dict[str, Any]:
        if type(value) is not kind:
            refuse(value, kind.__qualname__)
        return {name: both.write(getattr(value, name)) for name, both in fields.items()}

    def read(found: Any) -> Any:
        if type(found) is not dict or found.keys() != fields.keys():
            raise ValueError("other fields")
        return kind(**{name: both.read(found[name]) for name, both in fields.items()})

    return Both(write, read)


def _optional(both: Both) -> Both:
    return Both(
        lambda value: None if value is None else both.write(value),
        lambda found: None if found is None else both.read(found),
    )


def _many(kind: Any, both: Both) -> Both:
    def write(value: Any) -> list[Any]:
        if type(value) is not kind:
            refuse(value, f"a field of type {kind.__qualname__}")
        return [both.write(part) for part in value]

    return Both(write, lambda found: kind([both.read(part) for part in _list(found)]))


def _row(columns: list[Both]) -> Both:
    def write(value: Any) -> list[Any]:
        if type(value) is not tuple or len(value) != len(columns):
            refuse(value, "the annotated tuple")
        return [both.write(part) for both, part in zip(columns, value, strict=True)]

    return Both(write, lambda found: tuple(both.read(part) for both, part in zip(columns, _list(found), strict=True)))


def _mapping(both: Both) -> Both:
    def write(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            refuse(value, "a field of type dict")
        return {key: both.write(part) for key, part in value.items()}

    def read(found: Any) -> dict[str, Any]:
        if type(found) is not dict:
            raise ValueError("not a dictionary")
        return {key: both.read(part) for key, part in found.items()}

    return Both(write, read)


def _list(found: Any) -> list[Any]:
    if type(found) is not list:
        raise ValueError("not a list")
    return found
