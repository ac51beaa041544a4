"""What loaders are told and give, and what reads give back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

T_co = TypeVar("T_co", covariant=True)

Tier = Literal["local", "shared", "source"]
"""Who answered: the process tier, the shared tier, or the loader."""


class Need(NamedTuple):
    """What a loader has to fulfil."""

    min_version: int
    """The version that the row has at least, on the primary. A replica that shows less is behind."""
    primary: bool
    """Read the primary: a replica was asked before and was behind, or the reader wants no less."""


@dataclass(frozen=True, slots=True)
class Versioned(Generic[T_co]):
    """A value and the version it had, read in one statement, or in one snapshot.

    None is a value too: there is no such entity. With the version of its deletion, or 0 if it never existed, the
    absence is cached like any other value.
    """

    value: T_co
    version: int
    cacheable: bool = True
    """False for what was read from a replica: it is served if it is new enough, and never kept."""


class Read(NamedTuple, Generic[T_co]):
    """A value, and how it came about."""

    value: T_co
    version: int
    tier: Tier
    age_seconds: float | None
    """Since the load of it began; None if that is unknown, because the server's clock was not heard of yet."""
    bound_seconds: float | None
    """For how long at most it may have been out of date; None as above."""
    is_stale: bool = False
    """Known to be out of date, or past its TTL: served because the source failed and the cache keeps old values."""
