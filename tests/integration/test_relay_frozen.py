"""A relay that stands still for longer than its takeover time loses its lanes to others, and knows it when it wakes."""

from __future__ import annotations

import pytest

from tests.support import nemesis, scenario
from tests.support.kafka import fresh_topic
from tests.support.relay_process import SHORT, RelayProcess, eventually
from tests.support.workload import Mix

# One unit, so that no other worker is handing over rows in the moment in which its process stands still.
SETTINGS = {**SHORT, "RELAY_DAEMON__ROWS_MAX": "20", "RELAY_DAEMON__UNITS_IN_FLIGHT": "1"}
#: One relay with small units keeps up with them on a busy machine as well, while the other one is frozen.
SLOW = Mix(per_second=30)
SENDING = """\
SELECT count(*) FROM pg_stat_activity
WHERE application_name LIKE 'relay worker%' AND state = 'active' AND wait_event = 'ClientWrite'"""
MANY = """\
SELECT relay.emit_many(%s, (SELECT array_agg('k' || n %% 500) FROM generate_series(1, 8000) AS n), %s::bytea[],
                       array_fill('{}'::jsonb, ARRAY[8000]))"""
TAKEOVER_SECONDS = float(SHORT["RELAY_DAEMON__TAKEOVER_SECONDS"])


@pytest.mark.parametrize("point", ["after_claim", "after_produce", "in_commit"])
def test_the_lanes_of_a_frozen_relay_are_taken_over_and_it_sends_no_more_when_it_wakes(database, kafka, point):
    """Wherever a relay freezes, others take its lanes; awake again it knows, and neither order nor events suffer.

    A sample of the steps: tests/faults/test_matrix.py has all of them, with one, three and five relays.
    """
    taken_over = nemesis.frozen_at_failpoint(TAKEOVER_SECONDS)

    def frozen(run: scenario.Run) -> None:
        taken_over(run)
        run.fleet.relays[0].wait_event("database.lost")

    scenario.run(
        database,
        kafka.bootstrap,
        [fresh_topic(kafka)],
        relays=2,
        nemesis=frozen,
        settings=SETTINGS,
        failpoints=f"{point}={nemesis.stop_at(point)}@5",
        mix=SLOW,
    )


def test_a_relay_frozen_while_the_database_sends_it_rows_loses_its_lanes_as_well(database, kafka):
    """Rows that a frozen relay does not take in hold no lane for longer than its takeover time."""
    topic = fresh_topic(kafka)
    # A unit has to be larger than what the kernel's buffers take for a process that reads nothing.
    settings = {**SHORT, "RELAY_DAEMON__ROWS_MAX": "4000"}
    with RelayProcess(database, kafka.bootstrap, settings=settings) as frozen:
        frozen.wait_started()
        while not scenario.ask(database, SENDING):
            frozen.resume()
            if not scenario.ask(database, "SELECT EXISTS (SELECT FROM relay.outbox)"):
                scenario.ask(database, MANY, [topic] * 8000, ["x" * 4000] * 8000)
            frozen.pause()
        with RelayProcess(database, kafka.bootstrap, settings=settings) as successor:
            successor.wait_started()
            scenario.wait_empty(database, TAKEOVER_SECONDS + 30)
            assert frozen.is_stopped
            frozen.resume()
            frozen.wait_event("database.lost")
            assert successor.stop() == 0


def test_a_relay_frozen_almost_until_its_takeover_sends_no_more(database, kafka):
    """Past its fence and with its lanes still locked, a relay gives its unit back unsent: its time may be up."""
    # The fence stands at three quarters of it. What is left after the wait is for a machine that is slow to wake up.
    takeover_seconds = 6.0

    def almost(run: scenario.Run) -> None:
        frozen = run.fleet.relays[0]
        eventually(lambda: frozen.is_stopped, 30, "the relay to stop itself")
        run.losses += nemesis.UNITS
        run.fleet.wait_seconds(0.76 * takeover_seconds)
        frozen.resume()
        frozen.wait_event("relay.fenced")
        run.let_write(50)

    scenario.run(
        database,
        kafka.bootstrap,
        [fresh_topic(kafka)],
        nemesis=almost,
        settings=SETTINGS | {"RELAY_DAEMON__TAKEOVER_SECONDS": f"{takeover_seconds}"},
        failpoints="after_claim=stop@5",
        mix=SLOW,
    )
