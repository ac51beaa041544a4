"""The three ways to write an event, each one statement and one round trip.

The statements name the schema of every type, so that nothing in the session's search_path stands in for one, and cast
every parameter, so that each driver sends it as what it is.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Iterable, Mapping
from typing import overload
from uuid import UUID

from relay.core.event import SEPARATOR
from relay.outbox.events import Event, Json, Payload, encode, encode_headers, entity_change, json_member
from relay.outbox.sessions import AnyAsyncSession, AnySession, Request, run
from relay.outbox.trace import current_trace

# Takes the lock of the key (an advisory lock, until the transaction ends), then draws the id.
EMIT = """
SELECT CAST(relay.emit(
    CAST(:topic AS pg_catalog.text),
    CAST(:key AS pg_catalog.text),
    CAST(:payload AS pg_catalog.bytea),
    CAST(CAST(:headers AS pg_catalog.text) AS pg_catalog.jsonb)
) AS pg_catalog.text)
"""

# Takes the locks of all keys, sorted, then draws the ids in the order of the arrays. No parameter is an array: how the
# text of one is read depends on settings of the session (array_nulls), and how bytes in it are written on others
# (standard_conforming_strings).
EMIT_MANY = """
SELECT CAST(relay.emit_many(
    ARRAY(SELECT t.one FROM pg_catalog.json_array_elements_text(CAST(:topics AS pg_catalog.json))
                            WITH ORDINALITY AS t (one, position) ORDER BY t.position),
    ARRAY(SELECT k.one FROM pg_catalog.json_array_elements_text(CAST(:keys AS pg_catalog.json))
                            WITH ORDINALITY AS k (one, position) ORDER BY k.position),
    CAST(pg_catalog.string_to_array(CAST(:payloads AS pg_catalog.text), ',', '') AS pg_catalog.bytea[]),
    CAST(pg_catalog.string_to_array(CAST(:headers AS pg_catalog.text), pg_catalog.chr(31)) AS pg_catalog.jsonb[]),
    CAST(:lock_keys AS pg_catalog.bool)
) AS pg_catalog.text[])
"""

# Takes the lock of the entity's row in entity_version, by its primary key, then draws the id.
TOUCH = """
SELECT relay.touch(
    CAST(:entity AS pg_catalog.text),
    CAST(:id AS pg_catalog.text),
    CAST(:action AS pg_catalog.text),
    CAST(:topic AS pg_catalog.text),
    CAST(CAST(:payload AS pg_catalog.text) AS pg_catalog.jsonb),
    CAST(CAST(:headers AS pg_catalog.text) AS pg_catalog.jsonb)
)
"""


@overload
def emit(
    session: AnySession, topic: str, *, key: str | None, payload: Payload, headers: Mapping[str, str] | None = None
) -> UUID: ...
@overload
def emit(
    session: AnyAsyncSession,
    topic: str,
    *,
    key: str | None,
    payload: Payload,
    headers: Mapping[str, str] | None = None,
) -> Awaitable[UUID]: ...
def emit(
    session: AnySession | AnyAsyncSession,
    topic: str,
    *,
    key: str | None,
    payload: Payload,
    headers: Mapping[str, str] | None = None,
) -> UUID | Awaitable[UUID]:
    """The event is published if, and only if, the session's transaction commits, after all earlier ones of its key.

    A Session is flushed first. The key is locked until the transaction ends, so writers of one key wait for each other.

    Args:
        key: what order is owed to; None owes none, and spreads the events over all lanes.
        payload: bytes, a text, a JSON document as dict or list, or None for a tombstone. The header `content-type`
            says which, unless you set it. 1,000,000 bytes with key and headers, unless the database says otherwise.
        headers: names and texts. Of a current OpenTelemetry span, `traceparent` and `tracestate` are added.

    Returns:
        The event's id, which consumers see in the header `event_id`.

    Raises:
        EventError: RLY-101, 104, 106 to 112: the event was refused. Roll back: the transaction may be unable to go on.
        SchemaError, GrantError: the database is not prepared, for anyone or for this role.

    Source: GUARANTEES, order per key.
    """
    event = encode(Event(topic, key, payload, headers), current_trace())
    parameters = {"topic": event.topic, "key": event.key, "payload": event.payload, "headers": event.headers}
    return run(session, Request(EMIT, parameters, UUID))


@overload
def emit_many(session: AnySession, events: Iterable[Event], *, lock_keys: bool = True) -> list[UUID]: ...
@overload
def emit_many(
    session: AnyAsyncSession, events: Iterable[Event], *, lock_keys: bool = True
) -> Awaitable[list[UUID]]: ...
def emit_many(
    session: AnySession | AnyAsyncSession, events: Iterable[Event], *, lock_keys: bool = True
) -> list[UUID] | Awaitable[list[UUID]]:
    """As `emit`, for many events in one round trip, in their order, all or none.

    Args:
        lock_keys: False where the transaction already holds the locks of the entities' rows, of all writers of these
            keys: those locks keep the order then. With True any number of keys can be locked: beyond 1,000 by
            rows of a table, because all sessions of the server share the room for other locks.

    Returns:
        The events' ids, in the order of the events.

    Raises:
        EventError: as `emit`. None of the events was written.
        SchemaError, GrantError: as `emit`.
    """
    trace = current_trace()
    encoded = [encode(event, trace) for event in events]
    parameters = {
        "topics": json.dumps([event.topic for event in encoded], ensure_ascii=False),
        "keys": json.dumps([event.key for event in encoded], ensure_ascii=False),
        # A tombstone is nothing between two commas; an empty payload is a backslash and an x.
        "payloads": ",".join("" if event.payload is None else f"\\x{event.payload.hex()}" for event in encoded),
        "headers": SEPARATOR.join(event.headers for event in encoded),
        "lock_keys": lock_keys,
    }
    return run(session, Request(EMIT_MANY, parameters, _uuids))


@overload
def touch(
    session: AnySession,
    entity: str,
    id: str | int | UUID,
    action: str = "updated",
    *,
    topic: str | None = None,
    payload: Json = None,
    headers: Mapping[str, str] | None = None,
) -> int: ...
@overload
def touch(
    session: AnyAsyncSession,
    entity: str,
    id: str | int | UUID,
    action: str = "updated",
    *,
    topic: str | None = None,
    payload: Json = None,
    headers: Mapping[str, str] | None = None,
) -> Awaitable[int]: ...
def touch(
    session: AnySession | AnyAsyncSession,
    entity: str,
    id: str | int | UUID,  # noqa: A002
    action: str = "updated",
    *,
    topic: str | None = None,
    payload: Json = None,
    headers: Mapping[str, str] | None = None,
) -> int | Awaitable[int]:
    """The entity has a new version, and an event that says so, if and only if the session's transaction commits.

    A Session is flushed first. The entity's version is locked until the transaction ends: versions and events of one
    entity follow the order of commits. The event's key is `entity:id` and its value is
    `{"entity","id","action","version","ts"}`, with `"payload"` if you give one.

    That lock is not the lock of `emit`: order is owed among touches, and among emits, of one key, not between them.

    Args:
        id: converted with str(): 7 and "7" are one entity.
        topic: `relay.changes` unless you name another.
        payload: any JSON value; None adds none.

    Returns:
        The new version, counted from 1. A deletion is a version too: the count goes on if the entity comes back.

    Raises:
        EventError: RLY-101 to 107, 110 to 112: refused. Roll back: the transaction may be unable to go on.
        SchemaError, GrantError: as `emit`.

    Source: GUARANTEES, order per key.
    """
    parameters = {
        **entity_change(entity, id, action, topic),
        "payload": json_member(payload),
        "headers": encode_headers(headers, current_trace()),
    }
    return run(session, Request(TOUCH, parameters, int))


def _uuids(texts: list[str] | None) -> list[UUID]:
    """The ids; SQL aggregates no events to NULL."""
    return [UUID(text) for text in texts or ()]
