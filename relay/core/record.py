"""A cache record as it lies in the shared tier: a header of 64 bytes, and the encoded value behind it.

One record holds the value, the floor below which no value may be served, and the lease of whoever is filling it, so
that all three live and die together: a floor that can be evicted apart from its lease lets an old fill in.

    offset  bytes  field
    0       1      the letter R
    1       1      format of the header, 1
    2       1      flags
    3       1      codec of the value
    4       4      schema of the value, chosen by its cache
    8       8      epoch in which the record was written
    16      8      floor: the newest version of which an event was applied
    24      8      version of the value (derived records: digest of the stamps it was computed under)
    32      8      lease: a random token, or zeros
    40      8      when the lease ends, in milliseconds of the server's clock
    48      8      when the value was written, in milliseconds of the server's clock
    56      4      soft TTL in milliseconds from then on; 0: there is none
    60      4      how long loading took, in milliseconds
    64             the value

All numbers are big-endian. Versions stay below 2^53, because Lua counts in doubles. Times are the server's, read by the
scripts: the clocks of the processes that read are never compared.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

HEADER: Final = struct.Struct(">cBBBI8sQQ8sQQII")
HEADER_BYTES: Final = 64
FORMAT: Final = 1
VERSION_MAX: Final = 2**53 - 1
NO_LEASE: Final = bytes(8)

HAS_VALUE: Final = 1
"""The record holds a value; without it, it is a tombstone or a lease."""
NEGATIVE: Final = 2
"""The value is that there is none: the entity did not exist at this version."""
UNKNOWN: Final = 4
"""An event of this entity could not be applied: nobody may serve or fill it until it can."""
DERIVED: Final = 8
"""`version` is a digest of stamps, and `floor` means nothing."""
KEEP: Final = 16
"""An invalidated value stays, for readers that may have it when the source fails."""


class Record(NamedTuple):
    """A decoded record. `payload` is empty unless `flags` has HAS_VALUE and not NEGATIVE."""

    flags: int
    codec: int
    schema: int
    epoch: bytes
    floor: int
    version: int
    lease: bytes
    lease_until_ms: int
    written_at_ms: int
    soft_ms: int
    load_ms: int
    payload: bytes

    @property
    def has_value(self) -> bool:
        """Whether there is a value or a certain absence in it, whatever its version."""
        return bool(self.flags & HAS_VALUE)

    @property
    def is_current(self) -> bool:
        """Whether its value is not below its own floor. Says nothing of epochs."""
        return bool(self.flags & HAS_VALUE) and self.version >= self.floor and not self.flags & UNKNOWN


def decode_record(data: bytes | None) -> Record | None:
    """The record, or None for what is absent, foreign, truncated or of another format: all of them are misses."""
    if data is None or len(data) < HEADER_BYTES or data[:2] != b"R\x01":
        return None
    return Record._make((*HEADER.unpack_from(data)[2:], data[HEADER_BYTES:]))


def encode_record(record: Record) -> bytes:
    """The bytes of a record."""
    return HEADER.pack(b"R", FORMAT, *record[:-1]) + record.payload
