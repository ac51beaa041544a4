"""What one check found, in words for a person and in names for a script."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from relay.errors import RelayError

State = Literal["ok", "warning", "failed", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `relay doctor`. Holds names of hosts, roles, sessions and topics, never content or secrets."""

    check: str
    state: State
    found: str
    code: str = ""
    fix: str = ""
    subject: str = ""
    """What it is about where a check is made more than once: the topic."""


def ok(check: str, found: str, *, subject: str = "") -> Finding:
    """As it should be."""
    return Finding(check, "ok", found, subject=subject)


def warning(check: str, found: str, code: str, fix: str, *, subject: str = "") -> Finding:
    """Relay works, but something is worse than it need be."""
    return Finding(check, "warning", found, code, fix, subject)


def failed(check: str, found: str, code: str, fix: str, *, subject: str = "") -> Finding:
    """Relay does not work, or not for some events."""
    return Finding(check, "failed", found, code, fix, subject)


def unknown(check: str, found: str, fix: str, *, subject: str = "") -> Finding:
    """Not to be told from here. No failure, and no reassurance."""
    return Finding(check, "unknown", found, "RLY-809", fix, subject)


def refused(check: str, error: RelayError) -> Finding:
    """A check that ended as the command itself would have ended."""
    return failed(check, error.message, error.code, error.fix)
