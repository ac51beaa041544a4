"""Fixtures: each part starts when the first test asks for it, once per session, and ends with the session.

A killed pytest leaves nothing behind either: every server hangs on a lifeline (`relay.demo.postgres`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

from relay.demo import server
from relay.demo.postgres import EmbeddedPostgres
from relay.demo.redis import EmbeddedRedis
from tests.support import postgres, redis, scratch

scratch.use_memory()

# A port stays a server's own while that is down, which nobody but its process knows.
server.ports = server.ports[
    int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
]

# How long an example takes says how busy the machine is, and nothing about the program.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def pg() -> Iterator[EmbeddedPostgres]:
    """The shared Postgres 18. Not to be killed."""
    yield postgres.server(18)
    postgres.close_servers()


@pytest.fixture(scope="session")
def pg16() -> Iterator[EmbeddedPostgres]:
    """The shared Postgres 16. Not to be killed."""
    yield postgres.server(16)
    postgres.close_servers()


@pytest.fixture
def database(pg) -> Iterator[str]:
    """The DSN of a fresh, migrated database."""
    dsn = postgres.fresh_database(pg)
    yield dsn
    postgres.drop_database(pg, dsn)


@pytest.fixture(params=[16, 18], ids=["pg16", "pg18"])
def any_database(request) -> Iterator[str]:
    """As `database`, once on each major: for anything that depends on what Postgres does."""
    server = request.getfixturevalue("pg" if request.param == 18 else "pg16")
    dsn = postgres.fresh_database(server)
    yield dsn
    postgres.drop_database(server, dsn)


@pytest.fixture(scope="session")
def kafka():
    """The shared single broker. Not to be killed."""
    from tests.support import kafka

    yield kafka.shared_cluster()
    kafka.close_shared_cluster()


@pytest.fixture(scope="session")
def spare_kafka():
    """The broker of `own_kafka`, for all tests that take it."""
    from tests.support.kafka import KafkaCluster

    with KafkaCluster() as cluster:
        yield cluster


@pytest.fixture
def own_kafka(spare_kafka):
    """A broker that may be killed and frozen; the next test gets it back whole."""
    yield spare_kafka
    spare_kafka.repair()


@pytest.fixture
def topic(kafka) -> str:
    """A fresh topic with 8 partitions."""
    from tests.support.kafka import fresh_topic

    return fresh_topic(kafka)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """The shared Redis. Not to be killed, flushed or filled."""
    yield redis.shared_server()
    redis.close_shared_server()


@pytest.fixture
def redis_url(redis_server) -> str:
    """Where the shared Redis listens."""
    return redis_server.url


@pytest.fixture
def namespace() -> str:
    """A namespace of the shared Redis that nobody has used."""
    return redis.fresh_namespace()
