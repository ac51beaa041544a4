"""Starting and stopping: a signal drains, a second one does not wait, and a rolling restart repeats nothing."""

from __future__ import annotations

from relay.database import connect
from relay.demo.server import free_port
from tests.support import scenario
from tests.support.kafka import fresh_topic
from tests.support.relay_process import FOR_TESTS, SHORT, RelayProcess, eventually
from tests.support.topic import read_topic
from tests.support.workload import Mix, Writers

#: Nothing but a second signal ends a relay with these before the test is over.
PATIENT = {
    "RELAY_DAEMON__PUBLISH_TIMEOUT_SECONDS": "100",
    "RELAY_DAEMON__TAKEOVER_SECONDS": "200",
    "RELAY_DAEMON__SHUTDOWN_SECONDS": "150",
}


def test_sigterm_settles_what_is_in_flight_and_exits_0(database, kafka):
    """A relay told to stop under load ends with 0 within seconds, and its successor repeats nothing."""
    topics = [fresh_topic(kafka)]

    def stop_and_start(run: scenario.Run) -> None:
        for _ in range(3):
            run.let_write(50)
            stopped_in = run.fleet.replace(0)
            assert stopped_in < float(FOR_TESTS["RELAY_DAEMON__PUBLISH_TIMEOUT_SECONDS"])

    scenario.run(database, kafka.bootstrap, topics, nemesis=stop_and_start, clean=True)


def test_a_rolling_restart_under_load_repeats_nothing(database, kafka):
    """Replacing one relay after another while writers write loses, repeats and reorders nothing."""
    topics = [fresh_topic(kafka), fresh_topic(kafka)]

    def roll(run: scenario.Run) -> None:
        for index in range(3):
            run.let_write(30)
            run.fleet.replace(index)
        run.let_write(30)

    scenario.run(database, kafka.bootstrap, topics, relays=3, nemesis=roll, clean=True)


def test_a_second_sigterm_ends_a_relay_that_waits_for_kafka_at_once(database, own_kafka):
    """While a frozen broker holds up its unit, a stopping relay waits, and a second signal ends it; nothing is lost."""
    topic = fresh_topic(own_kafka)
    writers = Writers(database, scenario.seed_of_run(), [topic], mix=Mix(per_second=100))
    with RelayProcess(database, own_kafka.bootstrap, settings=PATIENT) as relay:
        relay.wait_started()
        writers.start()
        relay.wait_event("unit.settled")
        own_kafka.pause(0)
        eventually(lambda: scenario.ask(database, scenario.HELD_UP), 30, "a unit to be held up")
        relay.term()
        relay.wait_event("relay.stopping")
        # Held up by the broker: without a second signal it would stay for the publish time-out.
        assert relay.is_running
        relay.term()
        assert relay.wait_exit(30) == 128 + 15
        own_kafka.resume(0)
        writers.stop()
    with RelayProcess(database, own_kafka.bootstrap) as successor:
        successor.wait_started()
        scenario.wait_empty(database, 30)
        assert successor.stop() == 0
    verdict = scenario.judge(writers.journal, own_kafka.bootstrap, [topic], repeats_max=400, step_back_max=200)
    assert verdict.ok, verdict.explain()


def test_a_stop_while_the_brokers_are_gone_ends_in_time(database):
    """A relay that is stopped while no broker answers exits 0 after its publish time-out, and its events stay."""
    settings = {**SHORT, "RELAY_DAEMON__SHUTDOWN_SECONDS": "5"}
    writers = Writers(database, scenario.seed_of_run(), ["nowhere"], transactions_max=5)
    with RelayProcess(database, f"127.0.0.1:{free_port()}", settings=settings) as relay:
        relay.wait_started()
        writers.start()
        eventually(lambda: scenario.ask(database, "SELECT count(*) FROM relay.outbox"))
        relay.term()
        assert relay.wait_exit() == 0
        writers.stop()
    committed = [event for event in writers.journal.written if event.outcome == "committed"]
    keyless = [event for event, outcome in writers.journal.keyless.values() if outcome == "committed"]
    assert scenario.ask(database, "SELECT count(*) FROM relay.outbox") == len(committed) + len(keyless)


def test_a_sleeping_relay_is_woken_by_a_commit_again_and_again(database, kafka):
    """A relay with nothing to do sleeps, and each first commit after that wakes it, long before its next look."""
    topic = fresh_topic(kafka)
    with RelayProcess(database, kafka.bootstrap, settings={"RELAY_DAEMON__IDLE_SECONDS": "60"}) as relay:
        for round_ in range(3):
            eventually(lambda: relay.metric("relay_asleep") == 1, 30, f"the relay to fall asleep, time {round_ + 1}")
            scenario.ask(database, "SELECT relay.emit(%s, 'k', 'v'::text)", topic)
            scenario.wait_empty(database, 30)
        assert relay.stop() == 0


def test_waiting_for_a_notification_in_vain_leaves_the_connection_open(database):
    """The watch keeps its connection while it sleeps; losing it there, it would wake and sleep in turn for ever."""
    with connect(database, "relay watch") as connection:
        connection.execute("LISTEN relay_wake")
        for _ in range(2):
            assert list(connection.notifies(timeout=0.05, stop_after=1)) == []
        connection.execute("NOTIFY relay_wake")
        assert [notification.channel for notification in connection.notifies(timeout=30, stop_after=1)] == [
            "relay_wake"
        ]


def test_drain_ends_when_the_outbox_is_empty(database, kafka):
    """`--drain` publishes what is there, in order and once, and exits 0 by itself."""
    topic = fresh_topic(kafka)
    writers = Writers(database, scenario.seed_of_run(), [topic], mix=Mix(per_second=1000), transactions_max=100)
    writers.start()
    eventually(lambda: not writers.is_alive, 60, "the writers to finish")
    writers.stop()
    with RelayProcess(database, kafka.bootstrap, arguments=("--drain",)) as relay:
        assert relay.wait_exit() == 0
    assert scenario.ask(database, "SELECT count(*) FROM relay.outbox") == 0
    verdict = scenario.judge(writers.journal, kafka.bootstrap, [topic], clean=True)
    assert verdict.ok, verdict.explain()
    assert len(read_topic(kafka.bootstrap, topic)) >= verdict.committed
