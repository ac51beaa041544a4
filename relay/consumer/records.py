"""From a record of the Kafka client to a change."""

from __future__ import annotations

from typing import Any

from relay.core.change import Change, Limits, Malformed, decode, entity_of_key


def decode_record(record: Any, limits: Limits) -> Change | Malformed:
    """As `decode`; the client decodes the names of headers, and fails if they are no text."""
    try:
        headers = record.headers()
    except UnicodeDecodeError:
        return Malformed("a header is invalid", *(entity_of_key(record.key()) or (None, None)))
    return decode(record.key(), record.value(), headers, limits)
