"""The places of the daemon at which a test may kill, stop or fail it: `relay.failpoints`."""

from __future__ import annotations

from relay.failpoints import FailpointError, arm, declare, failpoint, is_armed

__all__ = ["NAMES", "FailpointError", "arm", "failpoint", "is_armed"]

NAMES = declare(
    "at_startup",
    "after_claim",
    "after_produce",
    "after_ack",
    "after_delete",
    "in_commit",
    "in_parking",
    "after_commit",
)
