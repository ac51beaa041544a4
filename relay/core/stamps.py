"""Stamps: random values that change whenever something has changed that derived values depend on."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from relay.core.record import VERSION_MAX


def digest_of(stamps: Sequence[bytes | None]) -> int:
    """The "version" of what was computed under these stamps, from 1 to 2^53 - 1; 0 if one of them is missing.

    Digests are equal or not, and in no order.
    """
    digest = blake2b(digest_size=8)
    for stamp in stamps:
        if stamp is None:
            return 0
        digest.update(len(stamp).to_bytes(4, "big"))
        digest.update(stamp)
    return int.from_bytes(digest.digest(), "big") % VERSION_MAX + 1
