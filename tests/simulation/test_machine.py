"""Random walks over the code: a few hundred always, many with the faults."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.machine import CacheMachine

COMMON = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)


def test_no_walk_leaves_anything_stale() -> None:
    """Whatever befalls readers, consumers, feeds and Redis: nothing old stays, and no promise to a reader is broken."""
    run_state_machine_as_test(CacheMachine, settings=settings(COMMON, max_examples=150, derandomize=True))


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_no_long_walk_leaves_anything_stale() -> None:
    """The same, for long, and by another seed each time."""
    run_state_machine_as_test(CacheMachine, settings=settings(COMMON, max_examples=20_000, stateful_step_count=100))
