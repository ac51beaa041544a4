"""Kafka goes away, a topic is missing, an event is refused: what waits, what goes on, and in which order."""

from __future__ import annotations

import psycopg
import pytest

from tests.support import nemesis, scenario
from tests.support.kafka import fresh_topic
from tests.support.relay_process import SHORT, Fleet, RelayProcess, eventually
from tests.support.topic import read_topic
from tests.support.workload import Mix, Writers

LARGE = Mix(per_second=60, large=0.04)


def test_an_outage_of_all_brokers_costs_nothing_but_time(database, own_kafka):
    """While no broker answers, no transaction and no lane is held, nothing is parked, memory stays; then all flows."""
    topics = [fresh_topic(own_kafka), fresh_topic(own_kafka)]
    away = nemesis.outage(own_kafka, seconds=2)
    scenario.run(database, own_kafka.bootstrap, topics, relays=2, nemesis=away, settings=SHORT)


def test_a_missing_topic_holds_up_its_own_events_only(database, kafka):
    """Events of a topic that does not exist wait for it, repeated by nobody, while those of other topics flow."""
    there = fresh_topic(kafka)
    missing = there + "-missing"

    def create_late(run: scenario.Run) -> None:
        run.fleet.relays[0].wait_event("topic.paused")
        flowing = (
            "SELECT count(*) FROM relay.outbox WHERE topic = %s AND created_at < clock_timestamp() - interval '2 s'"
        )
        for _ in range(5):
            run.let_write(30)
            eventually(lambda: not scenario.ask(run.dsn, flowing, there), 30, "the other topic to flow")
        assert scenario.ask(run.dsn, "SELECT count(*) FROM relay.outbox WHERE topic = %s", missing) > 30
        assert scenario.ask(run.dsn, "SELECT count(*) FROM relay.parked") == 0
        kafka.create_topic(missing)
        for relay in run.fleet.relays:
            if relay.events("topic.paused"):
                relay.wait_event("topic.resumed")
        assert not [event for relay in run.fleet.relays for event in relay.events("kafka.lost")]

    scenario.run(database, kafka.bootstrap, [there, missing], relays=2, nemesis=create_late, clean=True)


def test_a_topic_that_is_deleted_and_created_again_is_taken_up_again(database, kafka):
    """Deleting a topic under a relay holds up its events; what is committed since is in the new topic, in order."""
    topics = [fresh_topic(kafka), fresh_topic(kafka)]
    seed = scenario.seed_of_run()
    first = Writers(database, seed, topics)
    settings = {**SHORT, "RELAY_KAFKA__TOPIC_METADATA_REFRESH_INTERVAL_MS": "1000"}
    with Fleet(database, kafka.bootstrap, 2, settings=settings) as fleet:
        first.start()
        eventually(lambda: first.committed > 50)
        first.stop()
        scenario.wait_empty(database, 30, fleet)
        kafka.delete_topic(topics[0])
        second = Writers(database, seed + 1, topics)
        second.start()
        eventually(lambda: second.committed > 100)
        eventually(lambda: any(relay.events("topic.paused") for relay in fleet.relays), 30, "the topic to be paused")
        kafka.create_topic(topics[0])
        eventually(lambda: second.committed > 200)
        second.stop()
        scenario.wait_empty(database, 30, fleet)
        assert fleet.stop() == [0, 0]
        seen = {event.event_id for event in first.journal.written}
        records = [record for topic in topics for record in read_topic(kafka.bootstrap, topic)]
        verdict = scenario.check(
            second.journal.written,
            [record for record in records if record.key is not None and record.event_id not in seen],
            step_back_max=200,
        )
        print(f"seed {seed}: {verdict.summary()}")
        assert verdict.ok, verdict.explain() + fleet.said()


@pytest.mark.parametrize("policy", ["park", "block", "topic"])
def test_an_event_that_its_topic_refuses_is_treated_by_policy(database, kafka, tmp_path, policy):
    """A refused event stops at most its own key: parked and overtaken, parked and waited for, or a dead letter."""
    topics = [fresh_topic(kafka, config={"max.message.bytes": "20000"}), fresh_topic(kafka)]
    kafka.create_topic(topics[0] + ".dead")
    file = tmp_path / "relay.toml"
    file.write_text(f'[topics."{topics[0]}"]\npoison = "{policy}"\n')
    seed = scenario.seed_of_run()
    writers = Writers(database, seed, topics, mix=LARGE)
    with Fleet(database, kafka.bootstrap, 2, settings={"RELAY_CONFIG": str(file)}) as fleet:
        writers.start()
        refused = "event.dead_lettered" if policy == "topic" else "event.parked"
        eventually(lambda: sum(len(relay.events(refused)) for relay in fleet.relays) >= 4, 30, refused)
        if policy == "block":
            waiting = "SELECT count(*) FROM relay.parked WHERE waits"
            eventually(lambda: scenario.ask(database, waiting), 30, "an event that waits")
        writers.stop()
        scenario.wait_empty(database, 30, fleet)
        aside = parked(database)
        dead = {record.event_id for record in read_topic(kafka.bootstrap, topics[0] + ".dead")}
        assert not dead if policy != "topic" else len(dead) >= 4 and not aside
        verdict = scenario.judge(
            writers.journal, kafka.bootstrap, topics, clean=True, parked=frozenset({*aside, *dead})
        )
        assert verdict.ok, verdict.explain() + fleet.said()
        waits = scenario.ask(database, "SELECT count(*) FROM relay.parked WHERE waits")
        assert waits > 0 if policy == "block" else waits == 0
        if policy != "block":
            return
        # The operator makes room, retries some and drops one; meanwhile writers go on with the same keys.
        broken = [id_ for id_, is_waiting in parked(database).values() if not is_waiting]
        dropped = next(event for event, (id_, _) in parked(database).items() if id_ == broken[0])
        kafka.alter_topic(topics[0], {"max.message.bytes": "1048588"})
        more = Writers(database, seed + 1, topics)
        more.start()
        # A relay knows a topic's limit for a while: replace them, as after any change of a topic's settings.
        for index in range(2):
            fleet.replace(index)
        for id_ in broken:
            unpark(database, id_, drop=id_ == broken[0])
        more.stop()
        scenario.wait_empty(database, 30, fleet)
        assert parked(database) == {}
        assert fleet.stop() == [0, 0]
        journal = writers.journal.joined(more.journal)
        verdict = scenario.judge(journal, kafka.bootstrap, topics, clean=True, parked=frozenset({dropped}))
        print(f"seed {seed}: {len(broken)} refused, {waits} waited, then {verdict.summary()}")
        assert verdict.ok, verdict.explain() + fleet.said()


@pytest.mark.parametrize("relays", [1, 3])
def test_a_relay_killed_while_it_parks_has_its_event_in_exactly_one_place(database, kafka, relays):
    """An event whose parking is interrupted is in the outbox or parked, and its key goes on in order."""
    topic = fresh_topic(kafka, config={"max.message.bytes": "20000"})
    writers = Writers(database, scenario.seed_of_run(), [topic], mix=LARGE)
    with Fleet(database, kafka.bootstrap, relays, failpoints="in_parking=kill@2") as fleet:
        writers.start()
        eventually(lambda: fleet.kills, 60, "the relay to die while it parks")
        writers.stop()
        scenario.wait_empty(database, 30, fleet)
        assert fleet.stop() == [0] * relays
        verdict = scenario.judge(
            writers.journal, kafka.bootstrap, [topic],
            repeats_max=400, step_back_max=200, parked=frozenset(parked(database)),
        )  # fmt: skip
        assert verdict.ok, verdict.explain() + fleet.said()


def test_the_largest_event_that_the_schema_takes_is_delivered(database, kafka):
    """An event of just the size that relay.emit allows is not refused by the relay's own producer."""
    topic = fresh_topic(kafka)
    with psycopg.connect(database) as connection:
        connection.execute(
            "SELECT relay.emit(%s, 'k', substr(%s::bytea, 1, relay.event_bytes_max() - 1 - 38))",
            [topic, bytes(1 << 20)],
        )
    with RelayProcess(database, kafka.bootstrap, arguments=("--drain",)) as relay:
        assert relay.wait_exit() == 0
        assert not relay.events("event.parked"), relay.said()
    assert len(read_topic(kafka.bootstrap, topic)) == 1


def parked(dsn: str) -> dict[str, tuple[int, bool]]:
    """Id and whether it waits for another one, by event id."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT event_id::text, id, waits FROM relay.parked ORDER BY id").fetchall()
    return {event_id: (id_, waits) for event_id, id_, waits in rows}


def unpark(dsn: str, id_: int, *, drop: bool) -> None:
    """As `relay parked retry` does: writers of the key go first, so it may take several tries."""

    def tried() -> bool:
        try:
            scenario.ask(dsn, "SELECT relay.unpark(%s, %s)", id_, drop)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            return False
        return True

    eventually(tried, 30, "the lock of the key")
