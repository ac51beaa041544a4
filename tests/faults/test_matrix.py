"""Every step at which a relay may be killed or frozen, with one, three and five relays, on both majors of Postgres."""

from __future__ import annotations

import pytest

from relay.daemon.failpoints import NAMES
from tests.support import nemesis, scenario
from tests.support.kafka import fresh_topic
from tests.support.relay_process import SHORT
from tests.support.workload import Mix

pytestmark = pytest.mark.faults

SMALL = {"RELAY_DAEMON__ROWS_MAX": "20"}
TAKEOVER_SECONDS = float(SHORT["RELAY_DAEMON__TAKEOVER_SECONDS"])
FAST = Mix(per_second=100)
ROUNDS = range(2)
"""Each round draws a seed of its own."""

relays_of_all_sizes = pytest.mark.parametrize("relays", [1, 3, 5])


def at(point: str, action: str) -> str:
    """Armed for a passing at which there is something to lose."""
    passing = {"at_startup": 1, "in_parking": 2}.get(point, 5)
    return f"{point}={action}@{passing}"


@pytest.mark.parametrize("round_", ROUNDS)
@relays_of_all_sizes
@pytest.mark.parametrize("point", NAMES)
def test_a_relay_killed_at_any_step_keeps_the_promise(any_database, kafka, point, relays, round_):
    """Wherever a relay is killed, nothing is lost or reordered, and no more repeated than it had in flight."""
    parks = point == "in_parking"
    topic = fresh_topic(kafka, config={"max.message.bytes": "20000"} if parks else {})
    scenario.run(
        any_database,
        kafka.bootstrap,
        [topic],
        relays=relays,
        nemesis=nemesis.until_it_died,
        failpoints=at(point, "kill"),
        settings=SMALL,
        mix=Mix(per_second=60, large=0.04) if parks else FAST,
        parks=parks,
    )


@relays_of_all_sizes
@pytest.mark.parametrize("point", [name for name in NAMES if name not in ("at_startup", "in_parking")])
def test_a_relay_frozen_at_any_step_keeps_the_promise(any_database, kafka, point, relays):
    """Wherever a relay freezes until its lanes are taken away, and wakes up, nothing is lost or reordered."""
    scenario.run(
        any_database,
        kafka.bootstrap,
        [fresh_topic(kafka)],
        relays=relays,
        nemesis=nemesis.frozen_at_failpoint(TAKEOVER_SECONDS),
        failpoints=at(point, "stop"),
        settings=SHORT | SMALL,
        mix=FAST,
    )


@pytest.mark.parametrize("round_", ROUNDS)
@relays_of_all_sizes
def test_relays_killed_at_random_keep_the_promise(any_database, kafka, relays, round_):
    """Ten kills in a row, each at a random moment of a random relay."""
    topics = [fresh_topic(kafka), fresh_topic(kafka)]
    chaos = nemesis.kill_at_random(10)
    scenario.run(any_database, kafka.bootstrap, topics, relays=relays, nemesis=chaos, settings=SMALL, mix=FAST)


@relays_of_all_sizes
def test_relays_frozen_at_random_keep_the_promise(any_database, kafka, relays):
    """Three freezes of longer than the takeover time, each at a random moment of a random relay."""
    topics = [fresh_topic(kafka), fresh_topic(kafka)]
    chaos = nemesis.freeze_at_random(TAKEOVER_SECONDS + 1)
    scenario.run(any_database, kafka.bootstrap, topics, relays=relays, nemesis=chaos, settings=SHORT | SMALL, mix=FAST)
