"""What lies in the shared tier: the epoch, how far events have been applied, and what entries cost. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from relay.cache.tiers import Progress
from relay.core.names import record_name
from relay.core.record import NEGATIVE, Record, decode_record
from relay.daemon.verification.sources import Walk

SCANS_MAX: Final = 50
KINDS: Final = ("entry", "absence", "tombstone", "lease", "void")
"""A value; a certain absence; a floor without a value; a lease of who loads; of an earlier epoch, or foreign."""


@dataclass(slots=True)
class Kind:
    """Records of one kind in the sample, and the memory that Redis says they take."""

    records: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Survey:
    """A sample of the records, by what they are."""

    kinds: dict[str, Kind] = field(default_factory=lambda: {name: Kind() for name in KINDS})
    is_whole: bool = False
    """All of Redis was walked through: the sample is all there is."""


def survey(client: Any, namespace: str, epoch: bytes | None, records_max: int) -> Survey:
    """Looks at up to `records_max` records.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    found, walk = Survey(), Walk(client, namespace)
    prefix = f"relay:{{{namespace}}}:"
    for _ in range(SCANS_MAX):
        keys = [prefix + record_name(*name) for name in walk.names()]
        with client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.get(key)
                pipeline.memory_usage(key)
            replies = pipeline.execute()
        for data, size in zip(replies[::2], replies[1::2], strict=True):
            kind = found.kinds[kind_of(decode_record(data), epoch)]
            kind.records += 1
            kind.bytes += size or 0
        found.is_whole = walk.rounds > 0
        if found.is_whole or sum(kind.records for kind in found.kinds.values()) >= records_max:
            break
    return found


def kind_of(record: Record | None, epoch: bytes | None) -> str:
    """Which of KINDS it is."""
    if record is None or record.epoch != epoch:
        return "void"
    if record.is_current:
        return "absence" if record.flags & NEGATIVE else "entry"
    return "lease" if any(record.lease) and not record.floor else "tombstone"


def behind(progress: Progress, ends: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int | None]:
    """Events of each partition that are not applied yet; None where nothing was ever applied in this epoch."""
    return {
        place: max(0, end - progress.offsets[place]) if place in progress.offsets else None
        for place, end in ends.items()
    }


def total(lags: Iterable[int | None]) -> int:
    """Of those that are known."""
    return sum(lag or 0 for lag in lags)
