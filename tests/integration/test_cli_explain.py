"""`relay explain`: it says where an event is and what it waits for, and what cannot be known."""

from __future__ import annotations

import json
import os
import time
from uuid import uuid4

import psycopg
import pytest
from click.testing import CliRunner
from confluent_kafka import Producer
from psycopg import sql

from relay.cli.main import cli
from relay.daemon.floors import Floors
from relay.daemon.sightings import search
from relay.daemon.store import Store
from relay.database import connect
from relay.schema.grants import grants
from tests.support.commands import emit, park, relay
from tests.support.kafka import fresh_topic
from tests.support.topic import read_topic


@pytest.fixture
def owner(database):
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def ask(dsn: str, *arguments: str, bootstrap: str = "") -> dict:
    """The answer as a script gets it. What is found must not depend on how busy this machine is."""
    patient = () if "--seconds" in arguments else ("--seconds", "30")
    settings = {"RELAY_DATABASE_URL": dsn} | ({"RELAY_KAFKA_BOOTSTRAP_SERVERS": bootstrap} if bootstrap else {})
    nothing = dict.fromkeys((name for name in os.environ if name.startswith("RELAY_")), None)
    said = CliRunner().invoke(cli, ["explain", *arguments, *patient, "--json"], env={**nothing, **settings})
    assert said.exit_code == 0, said.output
    return json.loads(said.stdout)


def event_id(owner, id_: int) -> str:
    return str(owner.execute("SELECT event_id FROM relay.outbox WHERE id = %s", (id_,)).fetchone()[0])


def test_an_event_that_waits_and_nobody_publishes(database, owner):
    """Its lane, how many go before it, and that no relay is there."""
    first, second = emit(owner, "k", "x"), emit(owner, "k", "y")
    answer = ask(database, event_id(owner, second))
    assert answer["state"] == "waiting"
    waiting = answer["waiting"][0]
    assert (waiting["id"], waiting["before_in_lane"], answer["relays"]) == (second, 1, 0)
    assert any("No relay is connected" in sentence for sentence in answer["says"])
    both = ask(database, "--key", "k")
    assert [one["id"] for one in both["waiting"]] == [first, second]
    assert both["lane"] == waiting["lane"]
    text = relay("explain", "--key", "k", settings={"RELAY_DATABASE_URL": database}).stdout
    assert text.startswith("waiting\n")
    assert max(map(len, text.splitlines())) <= 80


def test_an_event_whose_lane_a_relay_holds(database, owner):
    """By the session's name, so that one knows which process."""
    event = event_id(owner, emit(owner, "k", "x"))
    with connect(database, "relay worker 0 host-1") as connection:
        store = Store(connection, Floors(64), rows_max=10, bytes_max=1 << 20, lanes_max=5, takeover_seconds=20)
        assert store.claim() is not None
        answer = ask(database, event)
        assert [holder["session"] for holder in answer["lane_holders"]] == ["relay worker 0 host-1"]
        assert any("held by relay worker 0 host-1 (pid" in sentence for sentence in answer["says"])
        store.abandon()
        assert ask(database, event)["lane_holders"] == []


def test_an_event_behind_a_parked_one(database, owner):
    """The parked event that blocks its key is named; the parked one itself is found as parked."""
    broken = emit(owner, "k", "x")
    event, behind = event_id(owner, broken), event_id(owner, emit(owner, "k", "y"))
    park(owner, broken, policy="block")
    answer = ask(database, behind)
    assert answer["blocked_by"] == broken
    assert any(f"Parked event {broken} blocks its key (RLY-704)" in sentence for sentence in answer["says"])
    answer = ask(database, event)
    assert answer["state"] == "parked"
    assert (answer["parked"][0]["id"], answer["parked"][0]["code"]) == (broken, "RLY-703")


def test_events_that_are_not_committed(database, owner):
    """Whoever holds the key is named, by emit and by touch; of a single event it is only known who writes at all."""
    owner.execute("SELECT relay.touch('user', '7')")
    owner.execute("DELETE FROM relay.outbox")
    with psycopg.connect(database, application_name="billing") as writer:
        event = writer.execute("SELECT relay.emit('t', 'k', 'x'::text)").fetchone()[0]
        writer.execute("SELECT relay.touch('user', '7')")
        for key in ("k", "user:7"):
            answer = ask(database, "--key", key)
            assert answer["state"] == "unknown"
            assert [holder["session"] for holder in answer["key_holders"]] == ["billing"]
            assert answer["key_holders"][0]["pid"] == writer.info.backend_pid
        assert ask(database, "--key", "another")["key_holders"] == []
        answer = ask(database, str(event))
        assert answer["state"] == "unknown"
        assert [holder["session"] for holder in answer["writers"]] == ["billing"]
        writer.rollback()
    answer = ask(database, str(event))
    assert (answer["state"], answer["writers"]) == ("unknown", [])


def test_an_event_that_was_published_is_found_at_its_place(database, kafka, owner):
    """Topic, partition and offset, as far back as one asks for; of a key only its own partition is looked at."""
    topic = fresh_topic(kafka)
    settings = {"RELAY_DATABASE_URL": database, "RELAY_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}
    events = {}
    for number in range(30):
        key = f"key-{number % 6}"
        events[event_id(owner, emit(owner, key, "x", topic=topic))] = key
    assert relay("run", "--drain", settings=settings).returncode == 0
    records = {record.event_id: record for record in read_topic(kafka.bootstrap, topic)}
    first = next(iter(events))
    answer = ask(database, first, "--topic", topic, bootstrap=kafka.bootstrap)
    assert answer["state"] == "published"
    places = [(record["partition"], record["offset"]) for record in answer["records"]]
    assert places == [(records[first].partition, records[first].offset)]
    assert ask(database, "--key", "key-3", "--topic", topic, bootstrap=kafka.bootstrap)["searches"][0][
        "partitions"
    ] == [next(record.partition for event, record in records.items() if events[event] == "key-3")]
    found = ask(database, "--key", "key-3", "--topic", topic, bootstrap=kafka.bootstrap)["records"]
    assert {record["event_id"] for record in found} == {event for event, key in events.items() if key == "key-3"}
    # Eight partitions, of each the newest record: the first event of its key is not among them.
    bounded = ask(database, first, "--topic", topic, "--records", "8", bootstrap=kafka.bootstrap)
    assert (bounded["state"], bounded["searches"][0]["complete"]) == ("unknown", False)
    # Neither settings nor outbox say in which topic to look.
    elsewhere = ask(database, first, bootstrap=kafka.bootstrap)
    assert (elsewhere["state"], elsewhere["says"][-1].rpartition(" ")[2]) == ("unknown", "--topic.")
    never = ask(database, str(uuid4()), "--topic", topic, bootstrap=kafka.bootstrap)
    assert (never["state"], never["searches"][0]["complete"], never["searches"][0]["records"]) == ("unknown", True, 30)
    assert not [sentence for sentence in never["says"] if "--topic" in sentence]


def test_records_are_listed_in_the_order_of_the_log(kafka):
    """Whatever their time stamps: those of one batch are equal, and clocks of relays differ."""
    topic = fresh_topic(kafka, partitions=2)
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    now = int(time.time() * 1000)
    for partition, earlier in ((1, 0), (1, 0), (1, 5000), (0, 60_000), (0, 1)):
        producer.produce(topic, b"x", b"k", partition=partition, timestamp=now - earlier)
    assert producer.flush(60) == 0
    properties = {"bootstrap.servers": kafka.bootstrap, "partitioner": "consistent"}
    done = search(properties, topic, event=None, key=b"k", records_max=100, seconds=60)
    assert done.complete
    assert [(record.partition, record.offset) for record in done.found] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


def test_a_topic_that_is_missing_and_a_kafka_that_is_away(database, kafka, owner):
    """Are reasons to wait, by their codes."""
    event = event_id(owner, emit(owner, "k", "x", topic="absent-for-ever"))
    assert any("(RLY-702)" in sentence for sentence in ask(database, event, bootstrap=kafka.bootstrap)["says"])
    away = ask(database, event, "--seconds", "0.5", bootstrap="127.0.0.1:1")
    assert away["searches"][0]["problem"] == "unreachable"
    assert any("(RLY-701)" in sentence for sentence in away["says"])


def test_a_monitor_is_told_what_it_may_not_see(database, owner):
    """The rest of the answer is there."""
    name = f"monitor-{database.rpartition('/')[2]}"
    owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    owner.execute(grants([("monitor", name)]))
    try:
        event = event_id(owner, emit(owner, "k", "x"))
        answer = ask(database.replace("postgres@", f"{name}@"), event)
        assert answer["state"] == "waiting"
        assert answer["hidden"] == ["parked events of its key"]
    finally:
        owner.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
        owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.mark.parametrize("arguments", [[], ["not-a-uuid"], [str(uuid4()), "--key", "k"]])
def test_one_thing_is_asked_for(arguments):
    assert relay("explain", *arguments).returncode == 2
