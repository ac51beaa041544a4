"""How long things live in the shared tier, and how large a value may be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TierLimits:
    """Lifetimes are in milliseconds. All processes of a namespace should have the same."""

    lease_ms: int = 6_000
    """Longer than a load may take: whoever comes after it loads as well."""
    grace_ms: int = 1_000
    """A record that holds nothing but a lease lives this much longer than the lease."""
    tombstone_ms: int = 600_000
    """A floor without a value. Losing it does no harm, because the lease that it guards goes with it."""
    unknown_ms: int = 86_400_000
    """A record of which an event could not be applied."""
    stamp_ms: int = 86_400_000
    """A stamp, after a lease named it last."""
    value_bytes_max: int = 1 << 20
