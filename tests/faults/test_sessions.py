"""The database ends sessions while Kafka stalls, at every step of a unit: no key's log ends on an old event."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from relay.demo.postgres import EmbeddedPostgres
from tests.support import scenario
from tests.support.kafka import KafkaCluster, fresh_topic
from tests.support.postgres import fresh_database, private_server
from tests.support.relay_process import SHORT
from tests.support.stall import PATIENT, POINTS, Ending, Stall, settled
from tests.support.topic import read_topic
from tests.support.workload import Journal

pytestmark = pytest.mark.faults

ROUNDS = 3
STALLS = 8


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A server that may be restarted."""
    with private_server(18) as server:
        yield server


@pytest.fixture(scope="module")
def own_kafka() -> Iterator[KafkaCluster]:
    """A broker whose network may be frozen."""
    with KafkaCluster(proxied=True) as cluster:
        yield cluster


@pytest.mark.parametrize("how", ["terminate", "idle", "restart"])
@pytest.mark.parametrize("point", POINTS)
def test_a_relay_whose_sessions_end_while_kafka_stalls_keeps_the_order(own_postgres, own_kafka, point, how: Ending):
    """One relay. Its lanes are free while its records are on the wire, and it alone can claim them again."""
    seed = scenario.seed_of_run()
    draw = random.Random(f"{seed}/stall")
    topic, dsn = fresh_topic(own_kafka), fresh_database(own_postgres)
    journal = Journal()
    for number in range(ROUNDS):
        stall = Stall(
            server=own_postgres, dsn=dsn, cluster=own_kafka, topic=topic, point=point, how=how, draw=draw,
            settings=SHORT if number % 2 else PATIENT,
        )  # fmt: skip
        journal = journal.joined(stall.play(f"{'tar'[number % 3]}:{number}"))
    settled(own_kafka.bootstrap, topic)
    verdict = scenario.judge(journal, own_kafka.bootstrap, [topic])
    print(f"\nseed {seed}: {ROUNDS} stalls, {verdict.summary()}")
    assert verdict.ok, f"SEED={seed}\n{verdict.explain()}"


@pytest.mark.parametrize("both", [False, True], ids=["the first relay's network stalls", "kafka stalls for both"])
def test_what_lands_late_between_two_relays_loses_nothing_and_versions_mend_it(own_postgres, own_kafka, both):
    """Two relays. Records of the first may land behind those of its successor: Kafka fences nobody here.

    How often that happens is printed, not bounded. A consumer that compares versions ends on the newest event.
    """
    seed = scenario.seed_of_run()
    draw = random.Random(f"{seed}/stall")
    hits = 0
    for number in range(STALLS):
        topic, dsn = fresh_topic(own_kafka), fresh_database(own_postgres)
        stall = Stall(
            server=own_postgres, dsn=dsn, cluster=own_kafka, topic=topic, point="flushing", how="terminate", draw=draw,
            settings=PATIENT,
        )  # fmt: skip
        journal = stall.play_two(f"t:{number}", both=both)
        settled(own_kafka.bootstrap, topic)
        verdict = scenario.judge(journal, own_kafka.bootstrap, [topic])
        assert verdict.found.keys() <= {"ends_old", "suffix_broken"}, f"SEED={seed}\n{verdict.explain()}"
        assert applied(own_kafka.bootstrap, topic) == newest(journal), f"SEED={seed}"
        hits += not verdict.ok
    print(f"\nseed {seed}: in {hits} of {STALLS} stalls the log of a key ended on an event of the first relay")


def applied(bootstrap: str, topic: str) -> dict[bytes | None, int]:
    """What a consumer holds of each key that takes an event only if its version is above the one it has."""
    versions: dict[bytes | None, int] = {}
    for record in read_topic(bootstrap, topic):
        version = int(dict(record.headers)["version"] or b"")
        if version > versions.get(record.key, 0):
            versions[record.key] = version
    return versions


def newest(journal: Journal) -> dict[bytes | None, int]:
    """The last version of each key, as its writer knows it."""
    versions: dict[bytes | None, int] = {}
    for event in journal.written:
        versions[event.key] = max(event.sequence, versions.get(event.key, 0))
    return versions
