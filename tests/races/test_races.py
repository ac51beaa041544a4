"""The column of Relay in docs/COMPARISON-CACHES.md is what is played here; a row that goes stale fails."""

from __future__ import annotations

import pytest

from tests.races.ours import Relay
from tests.races.races import RACES, play
from tests.races.table import committed
from tests.support.redis import private_server

MOMENT = "stale for a moment"
EXPECTED = {place.race.__name__: "ok" for place in RACES}
EXPECTED |= {"writer_dies": MOMENT, "invalidated_before_commit": MOMENT}
"""There the row has changed and its event is still in the outbox: until it comes copies are older."""


@pytest.fixture(scope="module")
def server():
    with private_server() as own:
        yield own


@pytest.mark.parametrize("with_local", [False, True], ids=["shared", "both tiers"])
@pytest.mark.parametrize("place", RACES, ids=lambda place: place.race.__name__)
def test_relay_is_right_after_every_race_that_was_played(server, namespace, place, with_local):
    """No race leaves a stale copy in the shared tier, nor in the process tier before it, on a real Redis."""
    outcome = play(place.race, lambda source: Relay(source, server, namespace, with_local=with_local))
    assert outcome == EXPECTED[place.race.__name__]


def test_the_document_says_of_relay_what_is_played():
    """The column of Relay in the committed table has the outcome of every race."""
    assert committed() == {place.name: EXPECTED[place.race.__name__] for place in RACES}
