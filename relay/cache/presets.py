"""Settings for the four classic domains: `@cache.entity("user", **presets.user_profile())`.

They are dictionaries: `{**presets.user_profile(), "hard_ttl": 60}` is a preset with another TTL.

* user profile: nothing below what was applied, refreshed before it expires. While the source fails, what is there,
  until its hard TTL; while the shared tier fails, the process tier and then the source.
* search results: at most as old as the TTL, and newer by stamps. While the source fails, the last result.
* feature flags: a few seconds old. While source and tiers fail, the last known value, marked as stale.
* balances: the primary, every time. While the source fails, an error.
"""

from __future__ import annotations

from relay.cache.settings import EntitySettings, ResultSettings
from relay.core.policy import Eventual, Strong


def user_profile() -> EntitySettings:
    """10 minutes, refreshed in the background after 8, both by chance a tenth longer or shorter."""
    return {
        "policy": Eventual(),
        "hard_ttl": 600.0,
        "soft_ttl": 480.0,
        "jitter": 0.1,
        "negative_ttl": 30.0,
        "early": 1.0,
    }


def search_results(ttl: float = 60.0, soft_ttl: float = 30.0) -> ResultSettings:
    """A minute, computed anew in the background after half of it; the last result is served while the source fails."""
    return {"policy": Eventual(), "ttl": ttl, "soft_ttl": soft_ttl, "jitter": 0.1, "early": 1.0, "keep": True}


def feature_flags(ttl: float = 30.0) -> EntitySettings:
    """Fail static: while neither tier nor source answers, the last known value is served, marked as stale."""
    return {
        "policy": Eventual(),
        "hard_ttl": ttl,
        "soft_ttl": ttl / 3,
        "jitter": 0.1,
        "negative_ttl": ttl / 3,
        "early": 1.0,
        "keep": True,
    }


def balances() -> EntitySettings:
    """No cache: every read goes to the primary. A read that may be a little old says so with a policy of its own."""
    return {"policy": Strong(), "hard_ttl": 60.0, "negative_ttl": 1.0, "keep": False, "local": False}
