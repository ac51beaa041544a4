"""Many entity changes in one round trip.

The columns of the changes travel as five texts, joined by the unit separator, which no id or name may hold: a driver
builds an array element by element in Python, which for 10,000 changes takes longer than the database needs for them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload
from uuid import UUID

from relay.errors import EventError
from relay.outbox.events import Json, encode_headers, entity_change, is_unicode, json_member
from relay.outbox.sessions import AnyAsyncSession, AnySession, Request, run
from relay.outbox.trace import current_trace

SEPARATOR = "\x1f"

# Takes the locks of all entities' rows in entity_version, sorted, by its primary key, then draws the ids in the order
# of the arrays.
TOUCH_MANY = """
SELECT relay.touch_many(
    pg_catalog.string_to_array(CAST(:entities AS pg_catalog.text), pg_catalog.chr(31)),
    pg_catalog.string_to_array(CAST(:ids AS pg_catalog.text), pg_catalog.chr(31)),
    pg_catalog.string_to_array(CAST(:actions AS pg_catalog.text), pg_catalog.chr(31)),
    pg_catalog.string_to_array(CAST(:topics AS pg_catalog.text), pg_catalog.chr(31), ''),
    CAST(pg_catalog.string_to_array(CAST(:payloads AS pg_catalog.text), pg_catalog.chr(31), '')
         AS pg_catalog.jsonb[]),
    CAST(CAST(:headers AS pg_catalog.text) AS pg_catalog.jsonb)
)
"""


@dataclass(frozen=True, slots=True)
class Change:
    """One entity change for `touch_many`. Its repr leaves out the payload."""

    entity: str
    id: str | int | UUID
    action: str = "updated"
    topic: str | None = None
    payload: Json = field(default=None, repr=False)


@overload
def touch_many(
    session: AnySession, changes: Iterable[Change], *, headers: Mapping[str, str] | None = None
) -> list[int]: ...
@overload
def touch_many(
    session: AnyAsyncSession, changes: Iterable[Change], *, headers: Mapping[str, str] | None = None
) -> Awaitable[list[int]]: ...
def touch_many(
    session: AnySession | AnyAsyncSession, changes: Iterable[Change], *, headers: Mapping[str, str] | None = None
) -> list[int] | Awaitable[list[int]]:
    """As `touch`, for many changes in one round trip, all or none; events follow the order of the changes.

    The entities are locked sorted by name and id, so two calls with the same entities cannot deadlock each other. An
    entity may occur several times: each occurrence is a version of its own.

    Args:
        headers: for all of the events.

    Returns:
        The new versions, in the order of the changes.

    Raises:
        EventError: as `touch`. None of the events was written.
        SchemaError, GrantError: as `touch`.
    """
    columns = Columns()
    for one in changes:
        names = entity_change(one.entity, one.id, one.action, one.topic)
        columns.add(names["entity"] or "", names["id"] or "", names["action"] or "", names["topic"], one.payload)
    parameters = {**columns.joined(), "headers": encode_headers(headers, current_trace())}
    return run(session, Request(TOUCH_MANY, parameters, list))


class Columns:
    """Changes column by column, as they travel."""

    def __init__(self) -> None:
        self.entities: list[str] = []
        self.ids: list[str] = []
        self.actions: list[str] = []
        self.topics: list[str] = []
        self.payloads: list[str] = []

    def add(self, entity: str, id: str, action: str, topic: str | None, payload: Json) -> None:  # noqa: A002
        """One change more. No text is no payload, and the default topic."""
        if topic == "":
            raise EventError("RLY-101", "the topic is empty", "name a topic, or None for the default")
        self.entities.append(entity)
        self.ids.append(id)
        self.actions.append(action)
        self.topics.append(topic or "")
        self.payloads.append("" if payload is None else json_member(payload) or "")

    def extend(self, entity: str, topic: str | None, changes: Mapping[str, tuple[str, Json]]) -> None:
        """Changes of one entity: ids with action and payload."""
        self.entities += [entity] * len(changes)
        self.ids += changes
        self.actions += [action for action, _ in changes.values()]
        self.topics += [topic or ""] * len(changes)
        self.payloads += ["" if payload is None else json_member(payload) or "" for _, payload in changes.values()]

    def joined(self) -> dict[str, str | None]:
        """The parameters of the statements.

        Raises:
            EventError: RLY-101, 102, 103 or 105 for a text that holds the separator or what Postgres cannot store.
        """
        return {
            "entities": _joined(self.entities, "RLY-102", "an entity name"),
            "ids": _joined(self.ids, "RLY-103", "an entity id"),
            "actions": _joined(self.actions, "RLY-105", "an action"),
            "topics": _joined(self.topics, "RLY-101", "a topic") if any(self.topics) else None,
            "payloads": SEPARATOR.join(self.payloads) if any(self.payloads) else None,
        }


def _joined(texts: Sequence[str], code: str, what: str) -> str:
    """One text of all. Looks at the whole, since a look at each costs more than all the rest."""
    joined = SEPARATOR.join(texts)
    if joined.count(SEPARATOR) >= max(1, len(texts)) or "\x00" in joined or not is_unicode(joined):
        raise EventError(code, f"{what} holds a control character or half of a surrogate pair", "remove that character")
    return joined
