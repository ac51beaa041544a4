"""Nines that a sample supports: never more than it shows."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.nines import at_most, nines, upper_bound


@pytest.mark.parametrize(("samples", "expected"), [(0, 0.0), (30, 1.0), (300, 2.0), (3_000, 3.0), (300_000, 5.0)])
def test_clean_samples_follow_the_rule_of_three(samples, expected):
    """Three hundred clean ones are two nines, and none at all are none."""
    assert nines(0, samples) == expected
    if samples:
        assert upper_bound(0, samples) == pytest.approx(3 / samples, rel=0.06)


@pytest.mark.parametrize(
    ("violations", "samples", "bound"),
    [(1, 10, 0.3942), (2, 10, 0.5069), (5, 10, 0.7776), (9, 10, 0.9949), (1, 100, 0.0466), (10, 1000, 0.01688)],
)
def test_the_bound_is_that_of_the_tables(violations, samples, bound):
    """One-sided, 95 %: the 0.95 quantile of the beta distribution (k + 1, n - k)."""
    assert upper_bound(violations, samples) == pytest.approx(bound, rel=2e-3)


@given(st.integers(1, 60), st.data())
def test_the_distribution_is_the_binomial(samples, data):
    """Summed up term by term."""
    violations = data.draw(st.integers(0, samples - 1))
    rate = data.draw(st.floats(0.001, 0.999))
    summed = sum(math.comb(samples, k) * rate**k * (1 - rate) ** (samples - k) for k in range(violations + 1))
    assert at_most(violations, samples, rate) == pytest.approx(summed, abs=1e-9)


@settings(max_examples=50)
@given(st.integers(1, 10**9), st.data())
def test_the_bound_is_where_so_few_would_be_seen_once_in_twenty(samples, data):
    """For any sample, also of a thousand million; and more violations are fewer nines."""
    violations = data.draw(st.integers(0, min(samples - 1, 10**5)))
    bound = upper_bound(violations, samples)
    assert violations / samples < bound <= 1
    assert at_most(violations, samples, bound) == pytest.approx(0.05, rel=1e-4)
    assert nines(violations + 1, samples) <= nines(violations, samples)
    assert nines(violations, samples) <= -math.log10(bound) + 1e-6


def test_nothing_but_violations_is_no_nine():
    """And no division by zero."""
    assert upper_bound(7, 7) == 1.0
    assert nines(7, 7) == 0.0
