"""A change of an entity as it comes from Kafka: decoded within limits, or refused with a reason; never an error.

What the relay publishes says everything in its headers, and the value is not looked at. Events of others are read from
their JSON value. An event without a version still says that something has changed: it invalidates whatever there is.

    header or JSON field   means
    entity, id             which entity; also read from the key `entity:id`, if there is no value
    version                raised with every change; absent in events of others
    action                 "deleted" is a deletion, as is an event without a value
    ts, event_id           when and which, for people and for metrics
    envelope               1 or absent; anything else is a format that is not known here
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from relay.core.record import VERSION_MAX

DELETED: Final = "deleted"

Headers = Sequence[tuple[str, bytes | None]]
"""As the Kafka client hands them out."""


class Limits(NamedTuple):
    """What an event may have at most; looked at before anything is decoded."""

    value_bytes: int = 1_048_576
    headers: int = 100
    depth: int = 64
    """Nesting of a JSON value that is decoded."""


LIMITS: Final = Limits()


class Change(NamedTuple):
    """A change of one entity."""

    entity: str
    id: str
    action: str
    version: int | None
    """None: somebody else's event, which does not say. What is cached of the entity goes."""
    ts: str | None
    event_id: str | None
    value: bytes | None
    """The event's value as it came. None: a deletion."""

    @property
    def is_deletion(self) -> bool:
        """Whether the entity is gone."""
        return self.value is None or self.action == DELETED

    def document(self, depth_max: int = 64) -> Any:
        """The value, decoded from JSON; what `touch(payload=...)` was given is under "payload".

        Raises:
            ValueError: there is no value, it is no JSON, or nested deeper than `depth_max`.
        """
        if self.value is None:
            raise ValueError("the event has no value")
        return parse_json(self.value, depth_max)


class Malformed(NamedTuple):
    """An event that says nothing that could be applied. If its key tells the entity, that is in `entity` and `id`."""

    reason: str
    """One of few constant texts: nothing of the event is in it."""
    entity: str | None
    id: str | None


class _RefusedError(Exception):
    """The reason why an event is malformed."""


_OWN: Final = frozenset({"entity", "id", "action", "version", "ts", "event_id", "envelope"})
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}\Z")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_TOKEN: Final = re.compile(rb'(?s)"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]')
"""Strings, closed or not, and brackets. Possessive, so that it is linear in whatever it is given."""


def decode(
    key: bytes | None, value: bytes | None, headers: Headers | None, limits: Limits = LIMITS
) -> Change | Malformed:
    """The change that a record tells of. Raises nothing, whatever the bytes are."""
    try:
        fields = _fields(value, headers, limits)
        entity, id_, version = fields.get("entity"), fields.get("id"), fields.get("version")
        if entity is not None and id_ is not None and version is not None:
            action = fields.get("action")
            ts, event_id = fields.get("ts"), fields.get("event_id")
            return Change(
                _entity(entity), _id(id_), "updated" if action is None else _action(action), _version(version),
                None if ts is None else _text(ts), None if event_id is None else _text(event_id), value,
            )  # fmt: skip
        return _from_value(key, value, fields, limits)
    except _RefusedError as refusal:
        entity_id = entity_of_key(key)
        return Malformed(str(refusal), *(entity_id or (None, None)))


def entity_of_key(key: bytes | None) -> tuple[str, str] | None:
    """The entity and id of a key `entity:id`, or None for another kind of key."""
    try:
        entity, colon, id_ = (key or b"").partition(b":")
        return (_entity(entity), _id(id_)) if colon else None
    except _RefusedError:
        return None


def parse_json(value: bytes, depth_max: int) -> Any:
    """JSON, unless it is nested deeper than `depth_max`.

    Raises:
        ValueError: it is no JSON, or too deep.
    """
    if value.count(b"[") + value.count(b"{") > depth_max:
        _check_depth(value, depth_max)
    try:
        return json.loads(value)
    except RecursionError:  # the limit of the caller may be above that of the interpreter
        raise ValueError("the value is nested too deeply") from None


def _check_depth(value: bytes, depth_max: int) -> None:
    depth = 0
    for match in _TOKEN.finditer(value):
        first = value[match.start()]
        if first in b"[{":
            depth += 1
            if depth > depth_max:
                raise ValueError("the value is nested too deeply")
        elif first in b"]}":
            depth -= 1


def _fields(value: bytes | None, headers: Headers | None, limits: Limits) -> dict[str, bytes | None]:
    """The headers, after a look at all limits that need no decoding."""
    if value is not None and len(value) > limits.value_bytes:
        raise _RefusedError("the value is too large")
    if not headers:
        return {}
    if len(headers) > limits.headers:
        raise _RefusedError("there are too many headers")
    fields = dict(headers)
    if len(fields) != len(headers):
        names = [name for name, _ in headers if name in _OWN]
        if len(names) != len(set(names)):
            raise _RefusedError("a header is there twice")
    envelope = fields.get("envelope")
    if envelope is not None and envelope != b"1":
        raise _RefusedError("the envelope is of an unknown version")
    return fields


def _from_value(key: bytes | None, value: bytes | None, fields: dict[str, bytes | None], limits: Limits) -> Change:
    """For events whose headers do not say everything. What the headers do say, holds."""
    document = _document(value, fields, limits)
    text = {name: _text(raw) for name in _OWN if (raw := fields.get(name)) is not None}
    merged = {name: document[name] for name in _OWN if document.get(name) is not None} | text
    if merged.get("envelope", 1) not in (1, "1"):
        raise _RefusedError("the envelope is of an unknown version")
    of_key = entity_of_key(key) if "entity" not in merged and "id" not in merged and value is None else None
    entity, id_ = of_key or (merged.get("entity"), merged.get("id"))
    if entity is None or id_ is None:
        raise _RefusedError("it names no entity")
    if not isinstance(entity, str):
        raise _RefusedError("the entity is invalid")
    if isinstance(id_, int) and not isinstance(id_, bool):
        id_ = _decimal(id_)
    if not isinstance(id_, str):
        raise _RefusedError("the id is invalid")
    action, version = merged.get("action", "updated"), merged.get("version")
    return Change(
        _entity(_utf8(entity)),
        _id(_utf8(id_)),
        _action(_utf8(action) if isinstance(action, str) else b""),
        None if version is None else _version(_decimal(version).encode()),
        _short(merged.get("ts")),
        _short(merged.get("event_id")),
        value,
    )


def _document(value: bytes | None, fields: dict[str, bytes | None], limits: Limits) -> dict[str, Any]:
    """The JSON object of the value. An entity in the headers makes do with a value in whatever format."""
    if value is None:
        return {}
    try:
        document = parse_json(value, limits.depth)
    except ValueError as error:
        if fields.get("entity") is not None and fields.get("id") is not None:
            return {}
        deep = "the value is nested too deeply"
        raise _RefusedError(deep if str(error) == deep else "the value is no JSON") from None
    return document if isinstance(document, dict) else {}


def _decimal(number: object) -> str:
    if isinstance(number, str):
        return number if number.isascii() else ""
    if isinstance(number, int) and not isinstance(number, bool) and -1 < number <= VERSION_MAX:
        return str(number)
    return ""


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and nobody can store
        return b""


def _short(text: object) -> str | None:
    return text if isinstance(text, str) and len(text) <= 64 else None


@lru_cache(maxsize=1024)
def _entity(raw: bytes) -> str:
    """Few different ones come again and again."""
    if len(raw) <= 128 and raw.isascii() and _NAME.match(text := raw.decode()):
        return text
    raise _RefusedError("the entity is invalid")


@lru_cache(maxsize=256)
def _action(raw: bytes) -> str:
    if len(raw) <= 64 and raw.isascii() and _NAME.match(text := raw.decode()):
        return text
    raise _RefusedError("the action is invalid")


def _id(raw: bytes) -> str:
    if 0 < len(raw) <= 1024:
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise _RefusedError("the id is invalid") from None
        if not _CONTROL.search(text):
            return text
    raise _RefusedError("the id is invalid")


def _version(raw: bytes) -> int:
    if len(raw) <= 16 and raw.isdigit() and (version := int(raw)) <= VERSION_MAX:
        return version
    raise _RefusedError("the version is invalid")


def _text(raw: bytes) -> str:
    if len(raw) <= 1024:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            pass
    raise _RefusedError("a header is invalid")
