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
_unpack: Final = Struct(">16sQQ16xQII").unpack_from
"""The first 16 bytes, floor, version, when it was written, soft TTL and load time of a record."""


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
    bound: float
    """The age that the policy accepts, in seconds."""
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

    def glance(self, data: bytes | None, need: int, at: Moment) -> Found | None:
        """What is found in a record, None if one has to look closely.

        Args:
            need: the version that it must have, at least; 0 for any.
        """
        if data is None or len(data) < HEADER_BYTES:
            return None
        first, floor, version, written, soft, load = _unpack(data)
        as_of = at.now - (at.now_ms - written + load) / 1000
        if (
            first != self._prefix + at.epoch
            or version < floor
            or not written <= at.now_ms < written + soft - load * at.eagerness
            or as_of < at.now - at.bound
            or (need and (version != need if self._is_derived else version < need))
        ):
            return None
        try:
            # Past the constructor of named tuples, which takes as long as what is above.
            return tuple.__new__(Found, (self._decode(data[HEADER_BYTES:]), version, "shared", as_of, False))
        except Exception:  # Bytes that cannot be read are a miss, whatever the codec says of them.
            return None

    def values(self, records: Iterable[tuple[Any, bytes | None]], at: Moment) -> tuple[dict[Any, Any], list[Any]]:
        """The values of many records, by id, and the ids of those at which one has to look closely.

        For those who need no version, have no bound, and want nothing but values: of 100 hits, everything that is made
        for each of them costs as much as a tenth of the round trip.
        """
        head, now_ms, eagerness = self._prefix + at.epoch, at.now_ms, at.eagerness
        unpack, decode, header = _unpack, self._decode, HEADER_BYTES
        values: dict[Any, Any] = {}
        left: list[Any] = []
        for id_, data in records:
            if data is not None:
                try:
                    first, floor, version, written, soft, load = unpack(data)
                    if first == head and version >= floor and written <= now_ms < written + soft - load * eagerness:
                        values[id_] = decode(data[header:])
                        continue
                except Exception:  # noqa: S110  # What is too short or cannot be read is a miss, as above.
                    pass
            left.append(id_)
        return values, left
