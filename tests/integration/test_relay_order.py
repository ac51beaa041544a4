"""Order per key with several relays: they share lanes with no configuration, and a clean stop repeats nothing."""

from __future__ import annotations

import pytest

from tests.support import scenario
from tests.support.kafka import fresh_topic
from tests.support.relay_process import eventually


@pytest.mark.parametrize("relays", [1, 2, 5])
def test_relays_publish_each_key_in_commit_order_and_nothing_twice(database, kafka, relays):
    """Any number of relays publishes all that was committed once, nothing that was rolled back, each key in order."""
    topics = [fresh_topic(kafka), fresh_topic(kafka)]

    def until_all_have_worked(run: scenario.Run) -> None:
        run.let_write(150)
        for relay in run.fleet.relays:
            eventually(lambda relay=relay: relay.events("unit.settled"), 30, "each relay to publish something")

    verdict = scenario.run(database, kafka.bootstrap, topics, relays=relays, nemesis=until_all_have_worked, clean=True)
    assert verdict.committed >= 150
    assert verdict.repeated == 0


def test_strict_topics_keep_the_order_as_well(database, kafka, tmp_path):
    """With `order = "strict"` one event per key is on its way at a time, and the log is the same."""
    topic = fresh_topic(kafka)
    file = tmp_path / "relay.toml"
    file.write_text('[topics."*"]\norder = "strict"\n')
    scenario.run(
        database,
        kafka.bootstrap,
        [topic],
        relays=2,
        nemesis=lambda run: run.let_write(150),
        clean=True,
        settings={"RELAY_CONFIG": str(file)},
    )
