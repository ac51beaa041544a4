"""What a reader may see: the four policies, and which copies each of them accepts.

| policy | process tier | shared tier | when the source fails |
|---|---|---|---|
| `Eventual` | yes, until its TTL | yes | the last value, if the cache keeps one |
| `Bounded(seconds)` | if certified within the bound | the same | an error, never beyond the bound |
| `Session` | if not below what the session wrote or saw | the same | an error |
| `Strong` | no | no | an error |

A copy is certified as of the moment in which its loading from the primary began. No feed makes that moment later: it
has what was published, and a commit may still wait in the outbox.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Eventual:
    """Any copy that is not below what its tier has applied."""


@dataclass(frozen=True, slots=True)
class Bounded:
    """A copy that was the newest one at some moment within the last `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Session:
    """Read-your-writes and monotonic reads: nothing below what this session wrote or has seen."""


@dataclass(frozen=True, slots=True)
class Strong:
    """The primary, every time."""


Policy = Eventual | Bounded | Session | Strong
