"""A relay that is killed loses nothing, keeps the order and repeats at most what it had in flight."""

from __future__ import annotations

import pytest

from relay.daemon.failpoints import NAMES
from tests.support import nemesis, scenario
from tests.support.kafka import fresh_topic
from tests.support.workload import Mix

POINTS = [name for name in NAMES if name != "in_parking"]
"""`in_parking` is passed only by an event that Kafka refuses: tests/integration/test_relay_kafka.py."""

SAMPLE = [(point, (1, 3)[index % 2]) for index, point in enumerate(POINTS)]
"""Each step once, alone and with others in turn. tests/faults/test_matrix.py has all of them with all numbers."""


def test_a_killed_relay_loses_nothing_and_keeps_the_order(database, kafka):
    """After kill -9 at random moments all that was committed is in the topic, in order, repeated within the bound."""
    topics = [fresh_topic(kafka), fresh_topic(kafka)]
    verdict = scenario.run(database, kafka.bootstrap, topics, nemesis=nemesis.kill_at_random())
    assert verdict.committed >= 60


@pytest.mark.parametrize(("point", "relays"), SAMPLE)
def test_a_relay_killed_at_any_step_keeps_the_promise(database, kafka, point, relays):
    """Wherever in its work a relay is killed, nothing is lost or reordered, and others or its successor go on."""
    scenario.run(
        database,
        kafka.bootstrap,
        [fresh_topic(kafka)],
        relays=relays,
        nemesis=nemesis.until_it_died,
        failpoints=f"{point}=kill" if point == "at_startup" else f"{point}=kill@4",
        mix=Mix(per_second=100),
    )
