"""Brokers die, freeze, lose their leaders, refuse and forget: events wait, and go on in order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tests.support import nemesis, scenario
from tests.support.kafka import KafkaCluster, fresh_topic
from tests.support.relay_process import FOR_TESTS, SHORT, eventually
from tests.support.workload import Mix

pytestmark = pytest.mark.faults

SETTINGS = SHORT | {"RELAY_DAEMON__ROWS_MAX": "20"}
FAST = Mix(per_second=100)
#: With the default publish time-out, well above the three seconds after which this cluster replaces a broker. With two
#: seconds, three of six verdicts found a key whose log went back to one given-up event and on without a
#: gap-free repeat: a living leader appends what a client has given up, now and then behind what another has sent since.
#: That is "Not guaranteed", and so these tests do not look at requests that are given up during a failover.
FAILOVER = {"RELAY_DAEMON__ROWS_MAX": "100"}
SLOW = Mix(per_second=30)

relays_of_all_sizes = pytest.mark.parametrize("relays", [1, 3, 5])


@pytest.fixture
def own_kafka() -> Iterator[KafkaCluster]:
    """A broker that may be hurt."""
    with KafkaCluster() as cluster:
        yield cluster


@pytest.fixture
def three_brokers() -> Iterator[KafkaCluster]:
    """Three brokers, two of which must have a record before it counts."""
    with KafkaCluster(3) as cluster:
        yield cluster


def abandoned(run: scenario.Run, seconds: float) -> None:
    """While partitions have no leader, each worker gives up one unit after another."""
    publish_timeout = float(FOR_TESTS["RELAY_DAEMON__PUBLISH_TIMEOUT_SECONDS"])
    run.losses += len(run.fleet.relays) * nemesis.UNITS * (1 + int(seconds / publish_timeout))


@relays_of_all_sizes
def test_a_minute_without_brokers_costs_nothing_but_time(database, own_kafka, relays):
    """For a minute nothing is held, parked or piled up; then order is kept and the rate is back within seconds."""
    topics = [fresh_topic(own_kafka), fresh_topic(own_kafka)]
    away = nemesis.outage(own_kafka, seconds=60)
    scenario.run(database, own_kafka.bootstrap, topics, relays=relays, nemesis=away, settings=SHORT, drain_seconds=30)


@pytest.mark.parametrize("round_", range(2))
@relays_of_all_sizes
def test_a_killed_leader_loses_no_acknowledged_event(database, three_brokers, relays, round_):
    """With two of three replicas in sync, any broker may die under load, and the next leader has everything."""
    topics = [fresh_topic(three_brokers), fresh_topic(three_brokers)]

    def kill_leaders(run: scenario.Run) -> None:
        for topic in topics:
            run.let_write(100)
            victim = three_brokers.leader(topic, run.draw.randrange(8))
            three_brokers.kill(victim)
            abandoned(run, 12)
            # Two brokers are enough: the events of all partitions flow before the third is back.
            nemesis.flows(run.dsn, 30)
            run.let_write(50)
            three_brokers.start_broker(victim)
            three_brokers.up()
            nemesis.flows(run.dsn, 30)

    scenario.run(
        database, three_brokers.bootstrap, topics, relays=relays, nemesis=kill_leaders, settings=FAILOVER, mix=SLOW
    )


@relays_of_all_sizes
def test_a_frozen_leader_is_left_behind(database, three_brokers, relays):
    """A leader that freezes with its connections open is given up, and relays go on with its successor."""
    topics = [fresh_topic(three_brokers)]

    def freeze_leader(run: scenario.Run) -> None:
        run.let_write(100)
        victim = three_brokers.leader(topics[0], 0)
        three_brokers.pause(victim)
        abandoned(run, 40)
        try:
            run.fleet.wait_seconds(5)
            nemesis.flows(run.dsn, 40)
        finally:
            three_brokers.resume(victim)
        three_brokers.up()
        run.let_write(50)

    scenario.run(
        database, three_brokers.bootstrap, topics, relays=relays, nemesis=freeze_leader, settings=FAILOVER, mix=SLOW
    )


@relays_of_all_sizes
def test_a_broker_that_stutters_costs_nothing(database, own_kafka, relays):
    """Freezes that are shorter than the publish time-out repeat nothing and reorder nothing."""
    topics = [fresh_topic(own_kafka)]

    def stutter(run: scenario.Run) -> None:
        for _ in range(5):
            run.let_write(run.draw.randrange(20, 80))
            own_kafka.pause(0)
            run.fleet.wait_seconds(0.2 + run.draw.random())
            own_kafka.resume(0)

    scenario.run(database, own_kafka.bootstrap, topics, relays=relays, nemesis=stutter, mix=FAST, clean=True)


@relays_of_all_sizes
def test_a_producer_that_has_died_for_good_is_replaced(database, relays):
    """A right that is taken away kills an idempotent producer for good; given back, a new one goes on in order."""
    authorized = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with KafkaCluster(properties=authorized) as cluster:
        topics = [fresh_topic(cluster)]

        def revoke(run: scenario.Run) -> None:
            run.let_write(50)
            with writing_denied(cluster):
                dies_for_good(cluster.bootstrap, fresh_topic(cluster))
                for relay in run.fleet.relays:
                    starts = relay.starts
                    relay.kill9()
                    eventually(lambda relay=relay, starts=starts: relay.starts > starts)
                    relay.wait_event("kafka.lost", seconds=30)
                run.let_write(50)
            for relay in run.fleet.relays:
                relay.wait_event("kafka.back", seconds=20)
                # A worker notices its dead producer in its next unit, which may begin only now.
                relay.wait_event("producer.rebuilt", seconds=30)
            run.let_write(50)
            nemesis.flows(run.dsn)

        scenario.run(database, cluster.bootstrap, topics, relays=relays, nemesis=revoke, settings=SETTINGS, mix=FAST)


def dies_for_good(bootstrap: str, topic: str) -> None:
    """Returns when a new idempotent producer has died: without that, the relays would only wait for a right."""
    producer = Producer(
        {"bootstrap.servers": bootstrap, "enable.idempotence": True, "log_level": 0, "error_cb": lambda _error: None}
    )

    def is_dead() -> bool:
        try:
            producer.produce(topic)
            producer.poll(0.1)
        except KafkaException as error:
            return bool(error.args[0].code() == KafkaError._FATAL)
        return False

    eventually(is_dead, 30, "a producer to die for good")


@contextlib.contextmanager
def writing_denied(cluster: KafkaCluster) -> Iterator[None]:
    """Nobody may have a producer id: that needs the right to write, to the cluster or to any topic."""
    client = AdminClient({"bootstrap.servers": cluster.bootstrap})

    def binding(kind: ResourceType, name: str, operation: AclOperation, permission: AclPermissionType) -> AclBinding:
        return AclBinding(kind, name, ResourcePatternType.LITERAL, "User:*", "*", operation, permission)

    allow, deny = AclPermissionType.ALLOW, AclPermissionType.DENY
    bindings = [
        binding(ResourceType.BROKER, "kafka-cluster", AclOperation.ALL, allow),
        binding(ResourceType.TOPIC, "*", AclOperation.ALL, allow),
        binding(ResourceType.BROKER, "kafka-cluster", AclOperation.IDEMPOTENT_WRITE, deny),
        binding(ResourceType.TOPIC, "*", AclOperation.WRITE, deny),
    ]
    for result in client.create_acls(bindings).values():
        result.result()
    try:
        yield
    finally:
        denied = [
            AclBindingFilter(kind, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, deny)
            for kind in (ResourceType.BROKER, ResourceType.TOPIC)
        ]
        for result in client.delete_acls(denied).values():
            result.result()


@relays_of_all_sizes
def test_topics_that_come_and_go_hold_up_their_own_events_only(database, kafka, relays):
    """A missing topic is waited for; nothing is parked and no event of another topic waits."""
    there = fresh_topic(kafka)
    missing = there + "-missing"

    def create_late(run: scenario.Run) -> None:
        eventually(lambda: any(relay.events("topic.paused") for relay in run.fleet.relays), 20, "a paused topic")
        run.let_write(200)
        run.fleet.relays[0].kill9()
        run.let_write(200)
        flowing = nemesis.WAITING + " AND topic = %s"
        eventually(lambda: not scenario.ask(run.dsn, flowing, there), 10, "the other topic to flow")
        assert not scenario.parked_events(run.dsn)
        kafka.create_topic(missing)
        nemesis.flows(run.dsn)

    settings = {"RELAY_DAEMON__ROWS_MAX": "20"}
    scenario.run(
        database, kafka.bootstrap, [there, missing], relays=relays, nemesis=create_late, settings=settings, mix=FAST
    )


@pytest.mark.parametrize("policy", ["park", "topic"])
@relays_of_all_sizes
def test_events_that_are_too_large_stop_nobody_while_relays_die(any_database, kafka, tmp_path, policy, relays):
    """While relays are killed again and again, each refused event ends in one place, and all others arrive in order."""
    topic = fresh_topic(kafka, config={"max.message.bytes": "20000"})
    kafka.create_topic(topic + ".dead")
    file = tmp_path / "relay.toml"
    file.write_text(f'[topics."{topic}"]\npoison = "{policy}"\n')
    dead_letters = [topic + ".dead"] if policy == "topic" else []
    scenario.run(
        any_database,
        kafka.bootstrap,
        [topic],
        relays=relays,
        nemesis=nemesis.kill_at_random(8),
        settings={"RELAY_DAEMON__ROWS_MAX": "20", "RELAY_CONFIG": str(file)},
        mix=Mix(per_second=60, large=0.04),
        parks=True,
        dead_letters=dead_letters,
    )
