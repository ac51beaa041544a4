"""How many nines a sample supports: the upper end of what the true rate of violations may be, with 95 % confidence.

Zero violations in n samples do not show a rate of zero, but one below 3/n (the rule of three); with k of them it is the
exact bound of Clopper and Pearson, one-sided. Nines are the negative logarithm of that bound: 3,000 clean samples show
three, and nobody has five nines without 300,000.

The samples are taken for independent. Those of one key in one moment are not: spread them.
"""

from __future__ import annotations

import math
from typing import Final

CONFIDENCE: Final = 0.95
_ROUNDS: Final = 200


def upper_bound(violations: int, samples: int, confidence: float = CONFIDENCE) -> float:
    """The rate that the true one is below with this confidence; 1 without samples.

    Args:
        violations: from 0 to `samples`.
    """
    if samples <= 0 or violations >= samples:
        return 1.0
    if violations == 0:
        return -math.expm1(math.log1p(-confidence) / samples)
    low, high = violations / samples, 1.0
    # P(at most k violations) falls as the rate rises; the bound is where it is 1 - confidence.
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        if at_most(violations, samples, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
        if high - low <= 1e-12 * high:
            break
    return high


def at_most(violations: int, samples: int, rate: float) -> float:
    """The probability of at most so many violations: the distribution function of the binomial, below all samples."""
    return _incomplete_beta(samples - violations, violations + 1, 1 - rate)


def nines(violations: int, samples: int) -> float:
    """Nines that the sample supports, rounded down to a tenth: 3.0 is 99.9 %. 0.0 without samples."""
    return max(0.0, math.floor(-10 * math.log10(upper_bound(violations, samples)) + 1e-9) / 10)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b), by its continued fraction (Lentz), for 0 <= x <= 1."""
    if x <= 0 or x >= 1:
        return min(1.0, max(0.0, x))
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    # The fraction converges fast on this side of the mean, and the function is symmetric.
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    return math.exp(log_front) * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + term * d, tiny)
            c = _away_from_zero(1 + term / c, tiny)
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
