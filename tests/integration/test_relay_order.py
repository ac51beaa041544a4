"""Order per key with several relays: they share lanes with no configuration, and a clean stop repeats nothing."""

from __future__ import annotations

import pytest

from tests.support import scenario
from tests.support.kafka import fresh_topic
from tests.support.relay_process import RelayProcess, eventually
from tests.support.workload import Mix, Writers


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


def test_a_backlog_of_large_events_is_cut_into_small_units_and_none_is_skipped(database, kafka):
    """Events that do not fit into a unit's bytes wait for a later one, in order, wherever the floors have risen to."""
    topic = fresh_topic(kafka)
    writers = Writers(
        database,
        scenario.seed_of_run(),
        [topic],
        mix=Mix(per_second=1000, late=0, large=0.5),
        transactions_max=100,
    )
    writers.start()
    eventually(lambda: not writers.is_alive, 60, "the writers to finish")
    writers.stop()
    settings = {"RELAY_DAEMON__BYTES_MAX": "300000"}
    with RelayProcess(database, kafka.bootstrap, settings=settings) as relay:
        relay.wait_started()
        scenario.wait_empty(database, 30)
        assert relay.metric("relay_floor_breaches_total") == 0
        assert relay.stop() == 0
        assert max(event["rows"] for event in relay.events("unit.settled")) <= 200
    verdict = scenario.judge(writers.journal, kafka.bootstrap, [topic], clean=True)
    assert verdict.ok, verdict.explain()
