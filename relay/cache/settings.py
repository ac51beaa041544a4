"""What may be said of a cache where it is declared. `Plan` explains each, and checks it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypedDict

from relay.cache.plan import Codec
from relay.core.policy import Policy


class CommonSettings(TypedDict, total=False):
    """Of both kinds. Times are in seconds."""

    policy: Policy
    jitter: float
    early: float
    keep: bool
    codec: Codec
    schema: int
    loads_max: int
    load_seconds: float
    wait_seconds: float


class EntitySettings(CommonSettings, total=False):
    """Of `entity`."""

    hard_ttl: float
    soft_ttl: float | None
    negative_ttl: float
    local: bool
    """False: nothing is kept in this process, the shared tier is asked every time."""
    load_many: Callable[..., Any]
    """Loads several at once for `many`: called with a dict of `Need` by id, returns a dict of `Versioned` by id. Ids
    that it leaves out are loaded one by one."""


class VersionedSettings(CommonSettings, total=False):
    """Of `versioned`."""

    hard_ttl: float
    """Of values and of versions. Values of earlier versions take memory until then."""
    soft_ttl: float | None
    """Of versions: after it they are asked for anew in the background."""
    negative_ttl: float
    local: bool
    """False: nothing is kept in this process."""


class ResultSettings(CommonSettings, total=False):
    """Of `derived`, but for what the results depend on: presets know nothing of that."""

    ttl: float
    soft_ttl: float | None


class DerivedSettings(ResultSettings, total=False):
    """Of `derived`."""

    depends: Callable[..., Iterable[str]]
    """The stamps of a result, from the arguments of the call: when one is renewed, the result is computed anew."""
