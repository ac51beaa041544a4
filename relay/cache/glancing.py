"""What a hit of the shared tier costs: records of the common kind, judged without taking them apart.

Common is a record that this cache has written in the present epoch, current, and not yet to be refreshed. Others are
looked at closely, by `Reader.see`, which alone says what a record means: whatever is found here, it would find as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from struct import Struct
from typing import Any, Final, NamedTuple

from relay.cache.codecs import BYTES_MAX
from relay.cache.plan import Codec
from relay.cache.values import Tier
from relay.core.record import FORMAT, HEADER_BYTES

_PREFIX: Final = Struct(">cBBBI")
HEADERS_MAX: Final = 20_000
"""Headers that are remembered, at 200 bytes each or so."""
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
        flags: of the records that it writes, but for those of absences.
        is_derived: a version is a digest, and either the right one or not.
    """

    def __init__(self, flags: int, codec: Codec | None, schema: int, *, is_derived: bool) -> None:
        self._prefix = _PREFIX.pack(b"R", FORMAT, flags, 0 if codec is None else codec.id, schema)
        self._decode: Callable[[bytes], Any] = bytes if codec is None else codec.decode
        self._decode_short: Callable[[bytes], Any] = getattr(codec, "decode_short", self._decode)
        self._is_derived = is_derived
        self._seen: tuple[bytes, dict[bytes, float]] = (b"", {})
        """An epoch, and until when records with these headers may be served in it."""

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
            or written + soft - at.now_ms <= load * at.eagerness
            or as_of < at.now - at.bound
            or (need and (version != need if self._is_derived else version < need))
        ):
            return None
        try:
            # Past the constructor of named tuples, which takes as long as what is above.
            return tuple.__new__(Found, (self._decode(data[HEADER_BYTES:]), version, "shared", as_of, False))
        except Exception:  # Bytes that cannot be read are a miss, whatever the codec says of them.
            return None

    def values(
        self, ids: Iterable[Any], records: Sequence[bytes | None], at: Moment
    ) -> tuple[dict[Any, Any], list[Any]]:
        """The values of many records, by id, and the ids of those at which one has to look closely.

        For those who need no version, have no bound, and want nothing but values. Everything that is done for each of a
        hundred hits counts: a header that was found fresh is remembered, and stays so until its end.
        """
        epoch, ends = self._seen
        if epoch != at.epoch or len(ends) > HEADERS_MAX:
            # Epoch and ends are replaced together: headers of one epoch must not be remembered in another one.
            ends = {}
            self._seen = at.epoch, ends
        end_of, now_ms, header = ends.get, at.now_ms, HEADER_BYTES
        is_short = max(map(len, filter(None, records)), default=0) < BYTES_MAX
        decode = self._decode_short if is_short else self._decode
        values: dict[Any, Any] = {}
        left: list[Any] = []
        for id_, data in zip(ids, records, strict=True):
            if data is not None:
                head = data[:header]
                if end_of(head, 0) > now_ms or self._end(head, at, ends) > now_ms:
                    try:
                        values[id_] = decode(data[header:])
                        continue
                    except Exception:  # noqa: S110  # As above.
                        pass
            left.append(id_)
        return values, left

    def _end(self, head: bytes, at: Moment, ends: dict[bytes, float]) -> float:
        """Until when what this header stands before may be served without a close look, by the server's clock."""
        if len(head) < HEADER_BYTES:
            return 0
        first, floor, version, written, soft, load = _unpack(head)
        if first != self._prefix + at.epoch or version < floor:
            return 0
        end: float = written + soft - load * at.eagerness
        ends[head] = end
        return end
