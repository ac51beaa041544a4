"""From a committed change to what another process reads: application, relay, Kafka, consumer, Redis, cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import psycopg
import pytest

from relay.demo.children import Child
from relay.demo.redis import EmbeddedRedis
from tests.support.cached_reader import CachedReader
from tests.support.redis import private_server
from tests.support.relay_process import RelayProcess, eventually

NAMESPACE = "demo"


class Way:
    """All parts of it."""

    def __init__(self, dsn: str, bootstrap: str, topic: str, redis: EmbeddedRedis) -> None:
        self.dsn, self.bootstrap, self.topic, self.redis = dsn, bootstrap, topic, redis
        self.applied = 0
        self._consumers: list[Child] = []
        with psycopg.connect(dsn) as connection:
            connection.execute("CREATE TABLE person (id int PRIMARY KEY, name text NOT NULL)")

    def start_consumer(self) -> None:
        """A new process of the same group."""
        self.applied = 0
        environ = {
            "DEMO_KAFKA": json.dumps({"bootstrap.servers": self.bootstrap, "session.timeout.ms": 6000}),
            "DEMO_TOPIC": self.topic,
            "DEMO_REDIS": self.redis.url,
        }
        self._consumers.append(Child(["relay.demo.consumer"], os.environ | environ, self._on_line))

    def kill_consumer(self) -> None:
        """kill -9."""
        self._consumers[-1].close()

    def reader(self, *, local: bool) -> CachedReader:
        """A service."""
        return CachedReader(
            database=self.dsn,
            bootstrap=self.bootstrap,
            topic=self.topic,
            redis=self.redis.url,
            namespace=NAMESPACE,
            local=local,
        )

    def write(self, id_: int, name: str) -> int:
        """A committed change and its event; the version."""
        with psycopg.connect(self.dsn) as connection:
            connection.execute(
                "INSERT INTO person VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET name = excluded.name", (id_, name)
            )
            row = connection.execute(
                "SELECT relay.touch('person', %s::text, topic => %s)", (id_, self.topic)
            ).fetchone()
        assert row is not None
        return row[0]

    def close(self) -> None:
        """Ends the processes."""
        for consumer in self._consumers:
            consumer.close()

    def _on_line(self, line: str) -> bool:
        if line.startswith("{"):
            self.applied = json.loads(line)["applied"]
        return line.startswith("{")


@pytest.fixture
def way(database, kafka, topic) -> Iterator[Way]:
    with private_server() as redis:
        way = Way(database, kafka.bootstrap, topic, redis)
        yield way
        way.close()


def reads(reader: CachedReader, id_: int, name: str, version: int, tier: str = "") -> None:
    """The reader gets this name in time, and an error never."""

    def holds() -> bool:
        found = reader.read(id_)
        assert "error" not in found, found
        return (found["value"], found["version"]) == (name, version) and tier in ("", found["tier"])

    eventually(holds, 60, f"a read of {name} from {tier or 'anywhere'}")


def test_a_committed_change_reaches_the_readers_of_other_processes_whatever_dies_on_the_way(way, kafka):
    """A cached read returns the new row, with the consumer killed, and Redis killed and emptied, on the way."""
    with RelayProcess(way.dsn, way.bootstrap) as relay, way.reader(local=True) as near, way.reader(local=False) as far:
        relay.wait_started()
        way.start_consumer()
        assert way.write(1, "Ada") == 1
        reads(near, 1, "Ada", 1, "local")
        reads(far, 1, "Ada", 1, "shared")
        assert way.write(1, "Grace") == 2
        reads(near, 1, "Grace", 2, "local")
        reads(far, 1, "Grace", 2, "shared")

        way.kill_consumer()
        assert way.write(1, "Barbara") == 3
        way.redis.kill()
        reads(far, 1, "Barbara", 3, "source")
        way.redis.start()
        reads(far, 1, "Barbara", 3, "source")

        way.start_consumer()
        reads(near, 1, "Barbara", 3, "local")
        reads(far, 1, "Barbara", 3, "shared")
        assert way.write(1, "Frances") == 4
        reads(near, 1, "Frances", 4, "local")
        reads(far, 1, "Frances", 4, "shared")
        assert relay.stop() == 0
