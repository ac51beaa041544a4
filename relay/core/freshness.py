"""Whether a copy may be served: versions, ages and times left are passed in, and so are the draws of chance.

A copy has two ends. Past the hard one it is gone. Past the soft one it is served, and refreshed behind the reader's
back; a little before it the same happens by chance, so that not all processes refresh in the same moment (XFetch:
Vattani, Chierichetti, Lowenstein, Optimal Probabilistic Cache Stampede Prevention, VLDB 2015).
"""

from __future__ import annotations

from enum import Enum
from math import log
from typing import NamedTuple

from relay.core.policy import Bounded, Policy, Strong


class Verdict(Enum):
    """What to do with a copy."""

    SERVE = "serve"
    REFRESH = "refresh"
    """Serve it, and load it anew meanwhile."""
    REFUSE = "refuse"


class Copy(NamedTuple):
    """What is known of a copy. Times are in seconds; None says that nobody knows, or that there is no such end."""

    version: int
    age: float | None
    """Since the moment as of which it is certified to have been the newest."""
    soft_left: float | None
    hard_left: float | None
    load: float
    """How long it took to load."""


def judge(copy: Copy, need: int, policy: Policy, beta: float, draw: float) -> Verdict:
    """Whether a reader who needs this version at least may have the copy under this policy.

    Args:
        beta: how eagerly to refresh early: 1 is the optimum of the paper, 0 never does.
        draw: of the uniform distribution over (0, 1].
    """
    if copy.version < need or isinstance(policy, Strong):
        return Verdict.REFUSE
    if copy.hard_left is not None and copy.hard_left <= 0:
        return Verdict.REFUSE
    if isinstance(policy, Bounded) and not is_within(copy.age, policy.seconds):
        return Verdict.REFUSE
    if copy.soft_left is not None and copy.soft_left <= early_by(copy.load, beta, draw):
        return Verdict.REFRESH
    return Verdict.SERVE


def is_within(age: float | None, bound: float) -> bool:
    """Whether a copy of this age keeps the bound. What is of unknown age does not."""
    return age is not None and age <= bound


def early_by(load: float, beta: float, draw: float) -> float:
    """How long before its soft end a copy is refreshed: most of the time by about as long as it takes to load."""
    return -log(draw) * load * beta if beta > 0 else 0.0


def jittered(seconds: float, jitter: float, draw: float) -> float:
    """The TTL, longer or shorter by at most this fraction: what was filled together does not expire together.

    Args:
        draw: of the uniform distribution over [0, 1].
    """
    return seconds * (1 + jitter * (2 * draw - 1))
