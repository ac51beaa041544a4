"""Topics are in nobody's way: one without a leader or replicas waits alone, and refuses only its own records."""

from __future__ import annotations

import threading

import psycopg
import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, Consumer, TopicPartition

from relay.core.event import Row
from relay.daemon.sender import Sender
from tests.support import scenario
from tests.support.kafka import KafkaCluster, fresh_topic
from tests.support.relay_process import FOR_TESTS, SHORT, RelayProcess, eventually
from tests.support.topic import read_topic

OLD = "SELECT count(*) FROM relay.outbox WHERE topic = %s AND created_at < clock_timestamp() - interval '2 s'"


@pytest.fixture(scope="module")
def brokers():
    """Three brokers, of which the second may go away: the other two still elect a controller."""
    with KafkaCluster(3, replication_factor=1, min_insync_replicas=1) as cluster:
        yield cluster


def topic_on(cluster: KafkaCluster, broker: int, name: str, partitions: int = 4) -> str:
    """A topic whose partitions are all on one broker."""
    cluster.create_topic_on(name, [[broker]] * partitions)
    return name


@pytest.mark.parametrize("trouble", ["no leader", "replicas in sync"])
def test_a_topic_that_cannot_be_written_holds_up_no_other(database, brokers, trouble):
    """Its events wait and the log names it, with the reason; those of other topics flow before, during and after."""
    good = topic_on(brokers, 0, f"good-{trouble[:2]}")
    if trouble == "no leader":
        bad = topic_on(brokers, 1, "bad-leader")
    else:
        bad = "bad-replicas"
        brokers.create_topic_on(bad, [[0, 1]], {"min.insync.replicas": "2"})
    stop = threading.Event()

    def write() -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            n = 0
            while not stop.wait(0.02):
                n += 1
                for topic in (good, bad):
                    connection.execute("SELECT relay.emit(%s, %s, 'v'::text)", (topic, f"k{n % 50}"))

    writer = threading.Thread(target=write)
    with RelayProcess(database, brokers.bootstrap, settings=FOR_TESTS) as relay:
        relay.wait_started()
        writer.start()
        try:
            eventually(lambda: relay.events("unit.settled"), 30, "the relay to publish")
            brokers.stop(1)
            relay.wait_event("topic.paused", seconds=60)
            # What was in flight when the broker went away may wait for its time-out once.
            eventually(lambda: not scenario.ask(database, OLD, good), 60, "the good topic to flow")
            written = scenario.ask(database, "SELECT last_value FROM relay.outbox_id_seq")
            eventually(lambda: scenario.ask(database, "SELECT last_value FROM relay.outbox_id_seq") > written + 200, 60)
            eventually(lambda: not scenario.ask(database, OLD, good), 30, "the good topic to go on flowing")
            assert scenario.ask(database, "SELECT count(*) FROM relay.outbox WHERE topic = %s", bad) > 50
            paused = [event for event in relay.events("topic.paused") if event["topic"] == bad]
            assert any(trouble in event["reason"] for event in paused), paused
        finally:
            stop.set()
            writer.join()
            brokers.start_broker(1)
        scenario.wait_empty(database, 90)
        assert relay.stop() == 0
    written = scenario.ask(database, "SELECT last_value FROM relay.outbox_id_seq")
    records = [record for topic in (good, bad) for record in read_topic(brokers.bootstrap, topic)]
    assert len({record.event_id for record in records}) == written


def test_a_record_without_a_key_is_refused_by_a_compacted_topic_and_takes_no_neighbour_along(database, kafka):
    """What a topic refuses is known before it is sent: refused records go alone, and a key stops at its first one."""
    topic = fresh_topic(kafka, 1, {"cleanup.policy": "compact", "max.message.bytes": "100000"})
    with psycopg.connect(database) as connection:
        connection.execute("SELECT relay.emit(%s, 'k', '00'::text)", (topic,))
        for _ in range(20):
            connection.execute("SELECT relay.emit(%s, NULL, 'no key'::text)", (topic,))
        connection.execute("SELECT relay.emit(%s, 'k', '01' || repeat('x', 150000))", (topic,))
        connection.execute("SELECT relay.emit(%s, 'k', '02'::text)", (topic,))
        connection.execute("SELECT count(relay.emit(%s, 'n' || n, 'v'::text)) FROM generate_series(1, 200) n", (topic,))
    with RelayProcess(database, kafka.bootstrap) as relay:
        scenario.wait_empty(database, 60)
        assert relay.stop() == 0
    records = [record for record in read_topic(kafka.bootstrap, topic) if record.key is not None]
    assert [record.value[:2] for record in records if record.key == b"k"] == [b"00", b"01", b"02"]
    assert len(records) == 203
    assert scenario.ask(database, "SELECT count(*) FROM relay.parked WHERE key IS NULL") == 20
    assert scenario.ask(database, "SELECT count(*) FROM relay.parked") == 20


def test_a_record_has_the_time_that_its_sender_is_given(kafka):
    """It is the database's: a host whose clock is wrong has nothing refused for it."""
    topic, at = fresh_topic(kafka, 1), 1_600_000_000_000
    sender = Sender({"bootstrap.servers": kafka.bootstrap}, batch_bytes=1_000_000, is_exact=True)
    assert sender.produce([Row(0, 1, b"", topic, b"k", "", b"id", b"v", None)], at) == 1
    eventually(lambda: sender.flush(1) or not sender.pending, 30, "the record to be answered")
    assert not sender.failures
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "time", "auto.offset.reset": "earliest"})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        message = eventually(lambda: consumer.poll(1), 30, "the record")
    finally:
        consumer.close()
    assert message.timestamp() == (TIMESTAMP_CREATE_TIME, at)


def test_a_session_that_ended_between_the_claim_and_the_first_record_sends_nothing(database, kafka):
    """No clock says that the lanes are gone: the database is asked right before sending."""
    topic = fresh_topic(kafka)
    scenario.ask(database, "SELECT count(relay.emit(%s, 'k', n::text)) FROM generate_series(1, 50) AS n", topic)
    settings = {**SHORT, "RELAY_DAEMON__TAKEOVER_SECONDS": "60", "RELAY_DAEMON__UNITS_IN_FLIGHT": "1"}
    held = RelayProcess(database, kafka.bootstrap, settings=settings, failpoints="after_claim=sleep:8")
    with held, RelayProcess(database, kafka.bootstrap, settings=settings) as other:
        other.pause()
        held.wait_started()
        eventually(lambda: scenario.ask(database, scenario.HELD_UP), 30, "the unit to be claimed")
        scenario.ask(
            database,
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'relay worker%'",
        )
        other.resume()
        scenario.wait_empty(database, 30)
        held.wait_event("database.lost", seconds=60)
        assert held.stop() == 0
        assert other.stop() == 0
    assert len(read_topic(kafka.bootstrap, topic)) == 50
