"""The event as the relay holds it between the outbox and Kafka, and the bytes of its headers."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

SEPARATOR = "\x1f"
"""Between names and values of packed headers; the schema refuses it inside of either."""


class Row(NamedTuple):
    """One row of the outbox, in the order of the columns of `queries.READ`: a row becomes this without a copy."""

    lane: int
    id: int
    ctid: bytes
    topic: str
    key: bytes | None
    headers: str
    event_id: bytes
    payload: bytes | None
    large_bytes: int | None
    """Set for a row that is fetched apart because of its size, within the unit's bytes: the bytes of its payload. Until
    it has been fetched, those of key, headers and payload."""


class Outcome(Enum):
    """What became of one row of a unit. `UNKNOWN` has its own name: it may have arrived."""

    DELIVERED = "delivered"
    HELD = "held"
    """Not sent, because an earlier row of its key has to be settled first."""
    UNKNOWN = "unknown"
    """Sent or queued, and not acknowledged: Kafka is not available. Nobody's fault, no attempt."""
    TOPIC = "topic"
    """The topic cannot be written at present: missing, or not allowed."""
    REFUSED = "refused"
    """Kafka refuses this very event."""


def row_bytes(row: Row) -> int:
    """What the event weighs in a Kafka record, a little more rather than less. Takes plain tuples as well."""
    _, _, _, _, key, headers, _, payload, large_bytes = row
    size = large_bytes if large_bytes is not None else len(payload or b"")
    return size + len(key or b"") + len(headers) + 128
