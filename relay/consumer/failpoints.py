"""The places of a consumer at which a test may kill, stop or fail it: `relay.failpoints`."""

from __future__ import annotations

from relay.failpoints import declare, failpoint

__all__ = ["NAMES", "failpoint"]

NAMES = declare(
    "consumer_before_apply",
    "consumer_after_apply",
    "consumer_between_effects",
    "consumer_before_commit",
    "consumer_after_commit",
    "consumer_before_epoch",
    "consumer_after_epoch",
)
