"""How one cache is to behave: its settings, checked once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from relay.core.policy import Eventual, Policy
from relay.errors import CacheError

NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,100}")


class Codec(Protocol):
    """Turns values into bytes and back. `decode` raises for what it did not write: such bytes are a miss."""

    @property
    def id(self) -> int: ...
    def encode(self, value: Any, /) -> bytes: ...
    def decode(self, data: bytes, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings of one cache. Times are in seconds.

    Args:
        hard_ttl: after which a value is gone.
        soft_ttl: after which it is loaded anew in the background while it is still served; None: never.
        jitter: by which fraction both are longer or shorter, by chance.
        negative_ttl: hard TTL of "there is no such entity".
        early: how eagerly values are refreshed before their soft TTL, by chance: 1 is the optimum, 0 never.
        keep: an invalidated or expired value may be served when the source fails, under `Eventual` only.
        schema: of the values. A value of another schema is a miss.
        loads_max: loads at once in this process.
        load_seconds: a load that takes longer is returned and not kept; also how long one waits for a place to load.
        wait_seconds: how long to wait for another process that is loading the key.
    """

    name: str
    codec: Codec | None = None
    policy: Policy = field(default_factory=Eventual)
    hard_ttl: float = 600.0
    soft_ttl: float | None = None
    jitter: float = 0.1
    negative_ttl: float = 30.0
    early: float = 1.0
    keep: bool = False
    schema: int = 1
    loads_max: int = 32
    load_seconds: float = 5.0
    wait_seconds: float = 2.5

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise _wrong(f"the name {self.name[:100]!r} is not made of letters, digits, dot, dash and underscore")
        if not 0 < self.hard_ttl <= 30 * 86400:
            raise _wrong(f"hard_ttl of {self.name} is not between 0 and 30 days")
        if self.soft_ttl is not None and not 0 < self.soft_ttl <= self.hard_ttl:
            raise _wrong(f"soft_ttl of {self.name} is not between 0 and hard_ttl")
        if not 0 <= self.jitter < 1:
            raise _wrong(f"jitter of {self.name} is not between 0 and 1")
        if self.negative_ttl <= 0 or self.early < 0 or self.load_seconds <= 0 or self.wait_seconds < 0:
            raise _wrong(f"a time of {self.name} is negative")
        if self.loads_max < 1:
            raise _wrong(f"loads_max of {self.name} allows no load at all")
        if not 0 <= self.schema < 2**32:
            raise _wrong(f"schema of {self.name} is not between 0 and 2^32")


def _wrong(what: str) -> CacheError:
    return CacheError("RLY-915", what, "see the settings of entity() and derived()")
