"""What a hit of the shared tier costs: records of the common kind, judged without taking them apart.

Common is a record that this cache has written in the present epoch, current, and not yet to be refreshed. Others are
looked at closely, by `Reader.see`, which alone says what a record means: whatever is found here, it would find as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any, Final, NamedTuple

from relay.cache.values import Tier
from relay.core.record import FORMAT, HEADER_BYTES

_PREFIX: Final = Struct(">cBBBI")
_FRESH: Final = Struct(">QQ16xQII")
"""Floor, version, when it was written, soft TTL and load time of a record, from byte 16 on."""


class Found(NamedTuple):
    """A value as the protocol passes it around. `as_of` is a moment of the clock of this process."""

    value: Any
    version: int
    tier: Tier
    as_of: float | None
    is_stale: bool = False


class Moment(NamedTuple):
    """What all records of one look are compared with."""

    epoch: bytes
    now: float
    now_ms: float
    """The same moment by the server's clock."""
    bound_ms: float
    """The age that the policy accepts."""
    eagerness: float
    """How many times its load time before its soft end a value is to be refreshed."""


class Glancer:
    """Of one cache.

    Args:
        flags, codec, schema: of the records that it writes.
        is_derived: a version is a digest, and either the right one or not.
    """

    def __init__(
        self, flags: int, codec: int, schema: int, decode: Callable[[bytes], Any], *, is_derived: bool
    ) -> None:
        self._prefix = _PREFIX.pack(b"R", FORMAT, flags, codec, schema)
        self._decode = decode
        self._is_derived = is_derived

    def glance(self, records: Iterable[bytes | None], needs: Iterable[int], at: Moment) -> list[Found | None]:
        """What is found in each record, None where one has to look closely.

        Args:
            needs: the version that each record must have, at least; 0 for any.
        """
        epoch, now, now_ms, bound_ms, eagerness = at
        head, decode, is_derived = self._prefix + epoch, self._decode, self._is_derived
        # Past the constructor of named tuples, which takes as long as all the rest.
        unpack, new, header = _FRESH.unpack_from, tuple.__new__, HEADER_BYTES
        found: list[Found | None] = []
        add = found.append
        for data, need in zip(records, needs, strict=False):
            if data is None or data[:16] != head or len(data) < header:
                add(None)
                continue
            floor, version, written_ms, soft_ms, load_ms = unpack(data, 16)
            since = now_ms - written_ms if now_ms > written_ms else 0
            age_ms = since + load_ms
            if version < floor or age_ms > bound_ms or since + load_ms * eagerness >= soft_ms:
                add(None)
                continue
            if need and (version != need if is_derived else version < need):
                add(None)
                continue
            try:
                value = decode(data[header:])
            except Exception:  # Bytes that cannot be read are a miss, whatever the codec says of them.
                add(None)
                continue
            add(new(Found, (value, version, "shared", now - age_ms / 1000, False)))
        return found
