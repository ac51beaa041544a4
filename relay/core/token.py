"""A session's token: what it wrote and saw, small enough for a cookie, and signed, so that nobody else can make one.

    bytes  field
    1      format, 1
    4      when it was issued, in seconds of Unix time
    4      until when the session has forgotten something, or 0: see `Floors.forgotten_until`
    1      how many floors follow, at most 32
    20     each: fingerprint of the entity (8), version, highest bit set for a write (8), end (4)
    32     HMAC-SHA256 of all before it, and of the namespace

in base64url, at most 1,000 characters. Entities are named by fingerprints: an id may have a kilobyte, and a cookie is
no place for it. A fingerprint is not secret: whoever guesses an id can tell whether it is meant.

A floor holds until the worst lag of the feed and a margin have passed. Whoever reads later finds the change in the
cache itself, or none of it: then the feed is later than was promised, and that promise ends here.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

FORMAT: Final = 1
FLOORS_MAX: Final = 32
CHARACTERS_MAX: Final = 2048
"""A longer text is refused before it is decoded."""
KEY_BYTES_MIN: Final = 16
_HEAD: Final = struct.Struct(">BIIB")
_FLOOR: Final = struct.Struct(">8sQI")
_TICKET: Final = struct.Struct(">B16s8sI")
_TICKET_FORMAT: Final = 128
_MAC_BYTES: Final = 32
_WRITTEN: Final = 1 << 63
_TIME_MAX: Final = 2**32 - 1


class Floor(NamedTuple):
    """The least version of one entity that the session may be given."""

    version: int
    until: int
    """In seconds of Unix time."""
    is_write: bool
    """The session wrote it; else it saw it."""


@dataclass(frozen=True, slots=True)
class Floors:
    """What a session knows: floors by fingerprint."""

    by_entity: Mapping[bytes, Floor] = field(default_factory=dict)
    forgotten_until: int = 0
    """Until then it had floors that are no longer in here: of an entity that is missing, only the primary will do."""


NOTHING: Final = Floors()


class Refusal(Enum):
    """Why a token is taken for an empty session."""

    OVERSIZED = "oversized"
    MALFORMED = "malformed"
    FORGED = "forged"
    """Or signed with a key that is no longer in use, or for another namespace."""
    EXPIRED = "expired"


def fingerprint(entity: str, id: str) -> bytes:  # noqa: A002
    """The 8 bytes by which tokens name an entity."""
    return hashlib.blake2b(f"{entity}:{id}".encode(), digest_size=8, person=b"relay").digest()


def merged(one: Floors, other: Floors) -> Floors:
    """Both sessions in one: the greater version of each entity, for the longer time."""
    by_entity = dict(one.by_entity)
    for name, floor in other.by_entity.items():
        known = by_entity.get(name)
        by_entity[name] = floor if known is None else higher(known, floor)
    return Floors(by_entity, max(one.forgotten_until, other.forgotten_until))


def higher(one: Floor, other: Floor) -> Floor:
    """One floor that holds what both hold."""
    if one.version != other.version:
        top = max(one, other)
        return top._replace(until=max(one.until, other.until))
    return Floor(one.version, max(one.until, other.until), one.is_write or other.is_write)


def trimmed(floors: Floors, now: int, floors_max: int = FLOORS_MAX) -> Floors:
    """Without what holds no longer, and with the newest `floors_max` of the rest, writes before reads.

    What is left out is not lost: until it would have ended, `forgotten_until` sends entities that are missing here to
    the primary.
    """
    alive = [(name, floor) for name, floor in floors.by_entity.items() if floor.until > now]
    alive.sort(key=lambda pair: (pair[1].is_write, pair[1].until, pair[0]), reverse=True)
    forgotten = max((floor.until for _, floor in alive[floors_max:]), default=0)
    return Floors(
        dict(alive[:floors_max]), max(forgotten, floors.forgotten_until if floors.forgotten_until > now else 0)
    )


def signed(floors: Floors, key: bytes, namespace: str, now: int) -> str:
    """The token of a session, at most 1,000 characters. Beyond 32 floors it forgets, as `trimmed` says."""
    kept = trimmed(floors, now)
    parts = [_HEAD.pack(FORMAT, min(now, _TIME_MAX), min(kept.forgotten_until, _TIME_MAX), len(kept.by_entity))]
    parts += [
        _FLOOR.pack(name, floor.version | (_WRITTEN if floor.is_write else 0), min(floor.until, _TIME_MAX))
        for name, floor in kept.by_entity.items()
    ]
    body = b"".join(parts)
    return urlsafe_b64encode(body + _mac(body, key, namespace)).rstrip(b"=").decode("ascii")


def verified(text: str, keys: Sequence[bytes], namespace: str, now: int) -> Floors | Refusal:
    """The session of a token that one of `keys` has signed. Whatever else it is, it is no exception.

    Args:
        keys: the newest first; those that were in use before are there until their tokens have ended.
    """
    body = _verified_body(text, keys, namespace)
    return body if isinstance(body, Refusal) else _floors(body, now)


class Ticket(NamedTuple):
    """What a client carries of a session that is kept on the server."""

    name: bytes
    """16 random bytes."""
    addition: bytes
    """8 random bytes that the store keeps together with what was added last: without them, it has lost that."""
    until: int
    """When the last floor ends, in seconds of Unix time."""


def signed_ticket(ticket: Ticket, key: bytes, namespace: str) -> str:
    """The text of a ticket: 84 characters."""
    body = _TICKET.pack(_TICKET_FORMAT, ticket.name, ticket.addition, min(ticket.until, _TIME_MAX))
    return urlsafe_b64encode(body + _mac(body, key, namespace)).rstrip(b"=").decode("ascii")


def verified_ticket(text: str, keys: Sequence[bytes], namespace: str, now: int) -> Ticket | Refusal:
    """The ticket that one of `keys` has signed, as `verified`."""
    body = _verified_body(text, keys, namespace)
    if isinstance(body, Refusal):
        return body
    if len(body) != _TICKET.size or body[0] != _TICKET_FORMAT:
        return Refusal.MALFORMED
    _, *fields = _TICKET.unpack(body)
    ticket = Ticket(*fields)
    return ticket if ticket.until > now else Refusal.EXPIRED


def _verified_body(text: str, keys: Sequence[bytes], namespace: str) -> bytes | Refusal:
    if len(text) > CHARACTERS_MAX:
        return Refusal.OVERSIZED
    raw = _decoded(text)
    if raw is None or len(raw) < _HEAD.size + _MAC_BYTES:
        return Refusal.MALFORMED
    body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    # All keys are tried, and compared in constant time: how long it takes says nothing of how near a guess was.
    matches = [hmac.compare_digest(mac, _mac(body, key, namespace)) for key in keys]
    return body if any(matches) else Refusal.FORGED


def _floors(body: bytes, now: int) -> Floors | Refusal:
    """What a body holds that we have signed: of an older or newer format, perhaps."""
    form, _, forgotten_until, count = _HEAD.unpack_from(body)  # a body is never shorter: see _verified_body
    if form != FORMAT or count > FLOORS_MAX or len(body) != _HEAD.size + count * _FLOOR.size:
        return Refusal.MALFORMED
    by_entity = {
        name: Floor(version & ~_WRITTEN, until, bool(version & _WRITTEN))
        for name, version, until in _FLOOR.iter_unpack(body[_HEAD.size :])
        if until > now
    }
    if not by_entity and forgotten_until <= now:
        return Refusal.EXPIRED if count or forgotten_until else NOTHING
    return Floors(by_entity, forgotten_until if forgotten_until > now else 0)


def _decoded(text: str) -> bytes | None:
    try:
        data = text.encode("ascii")
        raw = urlsafe_b64decode(data + b"=" * (-len(data) % 4))
    except ValueError:  # UnicodeEncodeError and binascii.Error are ValueErrors.
        return None
    # One session has one text: the decoder overlooks characters that are none of its own, and stray last bits.
    return raw if urlsafe_b64encode(raw).rstrip(b"=") == data else None


def _mac(body: bytes, key: bytes, namespace: str) -> bytes:
    # The length keeps the end of a namespace from being taken for the beginning of a body.
    name = namespace.encode()
    return hmac.digest(key, b"relay session token\0" + len(name).to_bytes(4, "big") + name + body, "sha256")
