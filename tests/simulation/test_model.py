"""The protocol holds in every interleaving explored, and fails as soon as any one of its guards is taken out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest

from tests.simulation.cases import PROTOCOL, PROTOCOL_AT_LENGTH, WITHOUT
from tests.simulation.explorer import Outcome
from tests.simulation.model import explore
from tests.simulation.protocol import Case, Guards

Shown = Callable[[Case, Outcome], None]


def _name(case: Case) -> str:
    return case.name


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    """Prints how much was explored past the capture: a pass means as much as the number of states behind it."""

    def show(case: Case, outcome: Outcome) -> None:
        with capsys.disabled():
            print(f"\n{case.name}: {outcome.states} states, {outcome.moves} moves", end=" ")

    return show


def _nothing_is_violated(outcome: Outcome) -> None:
    assert outcome.violation is None, "\n".join([*map(str, outcome.trace), outcome.violation or ""])


@pytest.mark.parametrize("case", PROTOCOL, ids=_name)
def test_nothing_stale_stays_and_no_session_goes_back(case: Case) -> None:
    """In every interleaving whatever is older than the database has something on its way that takes it away."""
    _nothing_is_violated(explore(case, states_max=100_000))


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", PROTOCOL_AT_LENGTH, ids=_name)
def test_nothing_stale_stays_at_length(case: Case, shown: Shown) -> None:
    """Nor does it with more of everything."""
    outcome = explore(case)
    shown(case, outcome)
    _nothing_is_violated(outcome)


@pytest.mark.parametrize("case", WITHOUT, ids=_name)
def test_every_guard_is_needed(case: Case) -> None:
    """Without the guard something stale stays or is served; with it, under the same budget, nothing does."""
    assert explore(case).violation is not None
    _nothing_is_violated(explore(replace(case, guards=Guards())))


def test_no_guard_is_left_untried() -> None:
    """There is a case for each guard of the model."""
    assert [case.name for case in WITHOUT] == [f"without {guard.name}" for guard in fields(Guards)]
