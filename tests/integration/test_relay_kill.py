"""A relay that is killed loses nothing, keeps the order and repeats at most what it had in flight."""

from __future__ import annotations

from tests.support import scenario
from tests.support.kafka import fresh_topic


def test_a_killed_relay_loses_nothing_and_keeps_the_order(database, kafka):
    """After kill -9 at a random moment everything committed is in the topic, in order, repeated within the bound."""
    topics = [fresh_topic(kafka), fresh_topic(kafka)]

    def kill_at_random(run: scenario.Run) -> None:
        for _ in range(3):
            run.let_write(run.draw.randrange(20, 80))
            run.fleet.relays[0].kill9()

    verdict = scenario.run(database, kafka.bootstrap, topics, nemesis=kill_at_random)
    assert verdict.committed > 100
