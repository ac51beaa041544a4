"""What two databases publish that were one: a copy of a database, with a relay of its own, into the same Kafka.

Nothing fences the copy. What waited as it was made goes out twice under the same event ids, as after a crash. What is
written after that has versions that both databases count by themselves: docs/OPERATING.md says what to do.
"""

from __future__ import annotations

from collections import Counter
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from tests.support import postgres, scenario
from tests.support.relay_process import RelayProcess
from tests.support.topic import read_topic

TOUCH = "SELECT relay.touch('item', '1', 'updated', %s, %s::jsonb)"


@pytest.fixture
def clone_of(pg):
    """Copies a database of the shared server."""
    copies = []

    def clone(dsn: str) -> str:
        name = urlsplit(dsn).path.lstrip("/")
        copies.append(pg.dsn(f"{name}_clone"))
        with psycopg.connect(pg.dsn(), autocommit=True) as connection:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            connection.execute(statement.format(sql.Identifier(f"{name}_clone"), sql.Identifier(name)))
        return copies[-1]

    yield clone
    for dsn in copies:
        postgres.drop_database(pg, dsn)


def drain(dsn: str, bootstrap: str) -> None:
    with RelayProcess(dsn, bootstrap) as relay:
        scenario.wait_empty(dsn, 60)
        assert relay.wait_started().stop() == 0


def test_a_cloned_database_repeats_what_waited_and_counts_versions_for_itself(database, kafka, topic, clone_of):
    assert scenario.ask(database, TOUCH, topic, '{"of": "both"}') == 1
    clone = clone_of(database)
    assert scenario.ask(database, TOUCH, topic, '{"of": "original"}') == 2
    assert scenario.ask(clone, TOUCH, topic, '{"of": "clone"}') == 2
    drain(database, kafka.bootstrap)
    drain(clone, kafka.bootstrap)
    records = read_topic(kafka.bootstrap, topic)
    versions = [dict(record.headers)["version"] for record in records]
    assert versions == [b"1", b"2", b"1", b"2"]
    # The first is one event, published twice; the second are two events, which no consumer can order by version.
    assert records[0].event_id == records[2].event_id
    assert sorted(Counter(record.event_id for record in records).values()) == [1, 1, 2]
    assert records[0].value == records[2].value
    assert records[1].value != records[3].value
