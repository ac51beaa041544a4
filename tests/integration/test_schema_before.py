"""This code on the schema before: relays may be rolled out first, and the schema is upgraded under them."""

from __future__ import annotations

import random

import psycopg
import pytest

from relay.daemon import parked as desk
from relay.database import connect
from relay.schema.install import upgrade
from relay.schema.steps import VERSION, script
from tests.support.commands import emit, outbox, park, relay
from tests.support.postgres import bare_database, drop_database
from tests.support.relay_process import RelayProcess, eventually


@pytest.fixture
def before(pg):
    """A database at the schema version before this code's."""
    dsn = bare_database(pg)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(script(upto=VERSION - 1))
    yield dsn
    drop_database(pg, dsn)


def test_a_relay_publishes_and_parks_before_and_after_the_upgrade(before, kafka, topic):
    """Without a restart; what was parked before goes back after it."""
    kafka.alter_topic(topic, {"max.message.bytes": "2000"})
    # Too large however Kafka compresses it.
    large = "".join(random.Random(5).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=60_000))
    with psycopg.connect(before, autocommit=True) as writer:

        def parked() -> int:
            return writer.execute("SELECT count(*) FROM relay.parked").fetchone()[0]

        with RelayProcess(before, kafka.bootstrap) as process:
            process.wait_started()
            for count in (1, 2):
                emit(writer, f"good{count}", "x", topic=topic)
                emit(writer, f"bad{count}", large, topic=topic)
                eventually(lambda count=count: parked() == count and not outbox(writer), 60, "the event to be parked")
                assert relay("parked", "list", settings={"RELAY_DATABASE_URL": before}).returncode == 0
                if count == 1:
                    assert upgrade(before) == [VERSION]
            assert process.stop() == 0
            assert not process.events("database.lost"), process.said()
        with connect(before, "relay parked") as operator:
            result = desk.retry_all(operator, None, even_if_overtaken=True)
        assert (len(result.treated), result.refused) == (2, [])
        assert outbox(writer) == [large, large]


def test_an_operator_treats_parked_events_before_the_upgrade(before):
    with psycopg.connect(before, autocommit=True) as writer, connect(before, "relay parked") as operator:
        ids = [emit(writer, "k", "1"), emit(writer, "k", "2")]
        park(writer, ids[0], policy="block")
        park(writer, ids[1], policy="block", waits=True)
        assert desk._blocker(operator, ids[1]) == ids[0]
        assert desk.retry(operator, ids[0], even_if_overtaken=False).moved == 2
        assert outbox(writer) == ["1", "2"]
