"""The database refuses to settle what Kafka has acknowledged: nothing is published again at full speed."""

from __future__ import annotations

import secrets

import psycopg

from tests.support import scenario
from tests.support.kafka import fresh_topic
from tests.support.relay_process import RelayProcess, eventually
from tests.support.topic import count_records, read_topic

EVENTS = 100

REFUSES = """\
CREATE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF OLD.topic = TG_ARGV[0] THEN {0} END IF; RETURN OLD; END $$"""
KINDS = {"raises": "RAISE EXCEPTION 'kept';", "skips": "RETURN NULL;"}


def keep(dsn: str, kind: str, topic: str) -> None:
    """A trigger of the application's that does not let events of the topic be removed."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(REFUSES.format(KINDS[kind]).encode())
        connection.execute(
            psycopg.sql.SQL(
                "CREATE TRIGGER keep BEFORE DELETE ON relay.outbox FOR EACH ROW EXECUTE FUNCTION public.keep({})"
            ).format(topic)
        )


def mend(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP TRIGGER keep ON relay.outbox")


def write(dsn: str, topic: str, events: int = EVENTS) -> None:
    scenario.ask(
        dsn,
        "SELECT count(relay.emit(%s, 'k' || n %% 7, 'v' || n::text)) FROM generate_series(1, %s) AS n",
        topic,
        events,
    )


def test_what_cannot_be_settled_is_published_again_after_a_pause_and_settled_once_it_can_be(database, kafka):
    """Each try publishes a unit once more, waits five seconds at least, and says why; mended, all of it is settled."""
    topic = fresh_topic(kafka)
    keep(database, "raises", topic)
    write(database, topic)
    with RelayProcess(database, kafka.bootstrap) as relay:
        relay.wait_event("unit.unsettled", count=2, seconds=90)
        tries = relay.events("unit.unsettled")
        assert all(event["retry_s"] >= 5 for event in tries)
        assert {event["code"] for event in tries} == {"RLY-705"}
        assert "RLY-705" in relay.get("/readyz")[1]
        # Two workers share the first try. One more may be under way.
        assert count_records(kafka.bootstrap, topic) <= EVENTS * (len(relay.events("unit.unsettled")) + 2)
        assert scenario.ask(database, "SELECT count(*) FROM relay.outbox") == EVENTS
        assert not relay.events("database.lost")
        mend(database)
        scenario.wait_empty(database, 150)
        eventually(lambda: "RLY-705" not in relay.get("/readyz")[1], 30, "the problem to be over")
        assert relay.stop() == 0


def test_rows_that_the_database_keeps_hold_up_their_own_topic_only(database, kafka):
    """With care the rows are found that cannot be removed; everything else of the same unit is settled."""
    kept, other = fresh_topic(kafka), fresh_topic(kafka)
    keep(database, "skips", kept)
    write(database, kept, 3)
    write(database, other)
    with RelayProcess(database, kafka.bootstrap) as relay:
        query = "SELECT count(*) FROM relay.outbox WHERE topic = %s"
        eventually(lambda: not scenario.ask(database, query, other), 120, "the other topic to be settled")
        write(database, other)
        eventually(lambda: not scenario.ask(database, query, other), 60, "the other topic to flow")
        assert scenario.ask(database, query, kept) == 3
        mend(database)
        scenario.wait_empty(database, 150)
        assert relay.stop() == 0
    for topic in (kept, other):
        last = {record.key: record for record in read_topic(kafka.bootstrap, topic)}
        assert len(last) == (3 if topic == kept else 7)


def test_an_event_that_cannot_be_parked_holds_up_its_own_topic_only(database, kafka):
    """Whatever the database has against a parked event, others are settled and nothing is published at full speed."""
    topic, other = fresh_topic(kafka, config={"max.message.bytes": "20000"}), fresh_topic(kafka)
    scenario.ask(database, "SELECT relay.emit(%s, 'k', %s::bytea)", topic, secrets.token_bytes(30_000))
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("ALTER TABLE relay.parked ADD CONSTRAINT refuses CHECK (key <> 'k')")
    write(database, other)
    with RelayProcess(database, kafka.bootstrap) as relay:
        eventually(
            lambda: not scenario.ask(database, "SELECT count(*) FROM relay.outbox WHERE topic = %s", other),
            120,
            "the other topic to be settled",
        )
        assert count_records(kafka.bootstrap, other) <= EVENTS * (len(relay.events("unit.unsettled")) + 1)
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("ALTER TABLE relay.parked DROP CONSTRAINT refuses")
        relay.wait_event("event.parked", seconds=150)
        reason = scenario.ask(database, "SELECT reason FROM relay.parked")
        assert "MSG_SIZE_TOO_LARGE" in reason
        assert relay.stop() == 0
