"""What an event is, and its way into the types of the SQL functions. Pure: no session, no clock.

Python refuses only what the database cannot judge: values that are no text or no JSON, and texts that Postgres cannot
store. Names, sizes and limits are judged by the SQL functions alone, so that every language gets the same answer.
No message repeats a payload, a key or a header's value: errors end in logs that more people read than the table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from uuid import UUID

from relay.errors import EventError

Payload: TypeAlias = bytes | str | dict[str, Any] | list[Any] | None
"""Bytes as they are, a text, a JSON document, or None: a tombstone, with which log compaction drops the key."""

Json: TypeAlias = dict[str, Any] | list[Any] | str | int | float | None

DEPTH_MAX = 200
"""How deep the search for an offending member goes; it runs only after the encoder has refused."""

_PATH_MAX = 200
_ID_FIX = "pass the id as str, int or UUID, for example str(...)"


@dataclass(frozen=True, slots=True)
class Event:
    """One event for `emit_many`. Its repr leaves out payload and headers."""

    topic: str
    key: str | None
    payload: Payload = field(repr=False)
    headers: Mapping[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An event in the types of the SQL functions; headers are the text of a JSON object."""

    topic: str
    key: str | None
    payload: bytes | None = field(repr=False)
    headers: str = field(repr=False)


def encode(event: Event, trace: Mapping[str, str]) -> Encoded:
    """The event as the database takes it; `trace` are the headers of the current span, if there is one.

    Raises:
        EventError: RLY-101, 106, 107, 109 or 110; the database has not been asked.
    """
    payload, content_type = _payload(event.payload)
    return Encoded(_topic(event.topic), _key(event.key), payload, encode_headers(event.headers, trace, content_type))


def entity_change(entity: str, id: str | int | UUID, action: str, topic: str | None) -> dict[str, str | None]:  # noqa: A002
    """The names of an entity change as texts. An id is converted, since databases number entities; a key is not.

    Raises:
        EventError: RLY-101, 102, 103 or 105; the database has not been asked.
    """
    return {
        "entity": _text(entity, "RLY-102", "the entity name", "pass the name as str"),
        "id": _entity_id(id),
        "action": _text(action, "RLY-105", "the action", "pass the action as str"),
        "topic": None if topic is None else _topic(topic),
    }


def encode_headers(given: Mapping[str, str] | None, trace: Mapping[str, str], content_type: str | None = None) -> str:
    """The headers as the text of a JSON object. What the user gave wins over what Relay would add.

    Raises:
        EventError: RLY-106 for a name, RLY-107 for a value that is no text.
    """
    if given is not None and not isinstance(given, Mapping):
        raise EventError("RLY-106", f"headers are of type {_name(given)}", "pass a mapping of str to str")
    merged: dict[str, str] = {}
    for name, value in (given or {}).items():
        plain = _text(name, "RLY-106", "a header name", "use 1 to 128 of the characters A-Z a-z 0-9 _ . -")
        merged[plain] = _text(value, "RLY-107", f"the value of header {_cut(ascii(plain))}", "pass it as str")
    if content_type is not None:
        merged.setdefault("content-type", content_type)
    if "traceparent" not in merged:
        # A tracestate belongs to its traceparent, so both are taken or neither; the user's tracestate stays.
        merged = {**trace, **merged}
    return json.dumps(merged)


def json_member(payload: Json) -> str | None:
    """The payload of an entity change, which travels inside of its JSON value.

    Raises:
        EventError: RLY-110, with the path of the member that is at fault.
    """
    if payload is None:
        return None
    text = _json(payload)
    # Postgres' jsonb, unlike JSON, has no NUL. Its own error would repeat the document.
    if "\\u0000" in text:
        for path, leaf in _leaves(payload):
            if isinstance(leaf, str) and "\x00" in leaf:
                raise EventError("RLY-110", f"the payload holds a NUL character at {path}", "remove that character")
    return text


def _topic(topic: str) -> str:
    return _text(topic, "RLY-101", "the topic", "pass the topic's name as str")


def _key(key: str | None) -> str | None:
    """The key. Other types than str are not converted: what reads 7 here and '7' there would be two keys to Kafka."""
    if key is None:
        return None
    return _text(key, "RLY-109", "the key", "convert it where you can see it: key=str(...)")


def _entity_id(id: object) -> str:  # noqa: A002
    if isinstance(id, str):
        return _text(id, "RLY-103", "the entity id", _ID_FIX)
    if isinstance(id, bool) or not isinstance(id, int | UUID):
        raise EventError("RLY-103", f"the entity id is of type {_name(id)}", _ID_FIX)
    try:
        return str(id) if isinstance(id, UUID) else str(int(id))
    except ValueError:
        pass  # Python refuses to print more than 4,300 digits
    raise EventError("RLY-103", "the entity id is a number of too many digits", "an id has 1 to 1024 bytes")


def _text(value: object, code: str, what: str, fix: str) -> str:
    """The value as an exact str: drivers take an Enum that is also a str by the name of its member."""
    if not isinstance(value, str):
        raise EventError(code, f"{what} is of type {_name(value)}, not str", fix)
    if "\x00" in value or not is_unicode(value):
        raise EventError(code, f"{what} holds a NUL character or half of a surrogate pair", "remove that character")
    return str.__str__(value)


def _payload(payload: object) -> tuple[bytes | None, str | None]:
    match payload:
        case None:
            return None, None
        case bytes():
            return bytes(payload), "application/octet-stream"
        case str():
            if not is_unicode(payload):
                raise EventError("RLY-110", "the payload holds half of a surrogate pair", "pass valid text or bytes")
            return payload.encode(), "text/plain; charset=utf-8"
        case dict() | list():
            return _json(payload).encode(), "application/json"
    raise EventError(
        "RLY-110", f"the payload is of type {_name(payload)}", "pass bytes, str, a dict, a list, or None as tombstone"
    )


def _json(payload: object) -> str:
    """Compact JSON. Refused outside of the handler, because the encoder's own errors repeat what they refuse."""
    if (text := _dumps(payload)) is not None:
        return text
    path, why = next(
        ((path, _why(leaf)) for path, leaf in _leaves(payload) if not _is_json(leaf)), ("$", "nested too deep")
    )
    raise EventError("RLY-110", f"the payload is no JSON at {path}: {why}", "convert that member to a JSON type")


def _dumps(value: object) -> str | None:
    """The value as JSON, or None where JSON or UTF-8 has no form for it."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return None
    return text if is_unicode(text) else None


def _leaves(value: object, path: str = "$", depth: int = 0) -> Iterator[tuple[str, object]]:
    """Every leaf of a document, and every member's name, with its path. What nests too deep comes as a leaf."""
    if depth > DEPTH_MAX or not isinstance(value, dict | list | tuple):
        yield path, value
    elif isinstance(value, dict):
        for name, child in value.items():
            step = path + _step(name)
            yield f"the name of {_cut(step)}", name
            yield from _leaves(child, _cut(step), depth + 1)
    else:
        for position, child in enumerate(value):
            yield from _leaves(child, _cut(f"{path}[{position}]"), depth + 1)


def _is_json(leaf: object) -> bool:
    return (leaf is None or isinstance(leaf, str | int | float)) and _dumps(leaf) is not None


def _why(leaf: object) -> str:
    if isinstance(leaf, dict | list):
        return f"nested deeper than {DEPTH_MAX} levels, or containing itself"
    return f"a value of type {_name(leaf)} that has no form in JSON"


def _step(name: object) -> str:
    if isinstance(name, str):
        return f".{name}" if name.isidentifier() else f"[{name!a}]"
    return f"[{_name(name)}]"


def _cut(text: str) -> str:
    return text if len(text) <= _PATH_MAX else text[:_PATH_MAX] + "..."


def is_unicode(text: str) -> bool:
    """Whether UTF-8 has a form for it: a Python str may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(value: object) -> str:
    return type(value).__name__
