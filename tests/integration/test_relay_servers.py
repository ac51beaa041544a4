"""Floors belong to the server and the ids that they were proven on: a relay notices when either is another one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from relay.daemon import queries
from relay.schema.install import upgrade
from tests.support import scenario
from tests.support.commands import emit
from tests.support.pgbouncer import paused, pooled, program
from tests.support.postgres import fresh_database, private_server
from tests.support.proxy import TcpProxy
from tests.support.relay_process import RelayProcess, eventually
from tests.support.topic import read_topic

EVENTS = 60


def publish(dsn: str, topic: str, *, first: int = 0) -> None:
    """Writes events of sixty keys and waits until they have left."""
    with psycopg.connect(dsn, autocommit=True) as writer:
        for number in range(first, first + EVENTS):
            emit(writer, f"k{number % 60}", str(number), topic=topic)
    scenario.wait_empty(dsn, 30)


def sleeps(relay: RelayProcess) -> None:
    """Waits until all is proven: a relay falls asleep only then, and its floors are above every id."""
    eventually(lambda: relay.metric("relay_asleep") == 1, 30, "the relay to fall asleep")


def truncate(owner: psycopg.Connection) -> None:
    owner.execute("TRUNCATE relay.outbox RESTART IDENTITY")


def set_back(owner: psycopg.Connection) -> None:
    owner.execute("SELECT setval('relay.outbox_id_seq', 1, false)")


def recreate(owner: psycopg.Connection) -> None:
    owner.execute("DROP SCHEMA relay CASCADE")
    upgrade(owner.info.dsn)


@pytest.mark.parametrize("begin_again", [truncate, set_back, recreate])
def test_events_are_found_when_ids_have_begun_again(database, kafka, topic, begin_again: Callable):
    """Under a relay that stays connected and sleeps, and without a new connection having to tell it."""
    with RelayProcess(database, kafka.bootstrap) as relay:
        relay.wait_started()
        publish(database, topic)
        sleeps(relay)
        with psycopg.connect(database, autocommit=True) as owner:
            begin_again(owner)
        publish(database, topic, first=EVENTS)
        assert relay.metric("relay_floor_breaches_total") == 0
        assert relay.stop() == 0
    values = [int(record.value) for record in read_topic(kafka.bootstrap, topic)]
    assert sorted(values) == list(range(2 * EVENTS))


@pytest.fixture
def two_servers() -> Iterator[tuple[str, str]]:
    """A database of the same name on two servers: a primary, and what it is replaced with."""
    with private_server(18) as one, private_server(16) as other:
        old, new = fresh_database(one), fresh_database(other)
        name, given = urlsplit(old).path[1:], urlsplit(new).path[1:]
        if name != given:
            with psycopg.connect(new.replace(f"/{given}", "/postgres"), autocommit=True) as owner:
                owner.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(*map(sql.Identifier, (given, name))))
        yield old, new.replace(f"/{given}", f"/{name}")


@pytest.mark.skipif(program() is None, reason="PgBouncer is not installed (Debian: apt-get install pgbouncer)")
@pytest.mark.parametrize("is_idle", [True, False], ids=["asleep", "under load"])
def test_events_of_another_server_behind_the_same_pooler_are_found(two_servers, kafka, topic, is_idle):
    """The clients' connections stay where they are, and the sequence of the new server is behind."""
    old, new = two_servers
    port = urlsplit(old).port
    with TcpProxy(port) as way, pooled(old.replace(f":{port}/", f":{way.port}/")) as dsn:
        settings = {"RELAY_DAEMON__IDLE_SECONDS": "0.5"}
        with RelayProcess(dsn, kafka.bootstrap, settings=settings) as relay:
            relay.wait_started()
            publish(old, topic)
            publish(old, topic, first=EVENTS)
            sleeps(relay)
            if is_idle:
                with paused(dsn):
                    way.lead_to(urlsplit(new).port)
            else:
                publish(old, topic, first=2 * EVENTS)
                way.lead_to(urlsplit(new).port)
                way.cut()
            publish(new, topic, first=3 * EVENTS)
            if is_idle:
                # Nothing but the look itself has told it: that is what this test is about.
                assert not relay.events("database.lost"), relay.said()
            assert relay.metric("relay_floor_breaches_total") == 0
            assert relay.stop() == 0
    values = {int(record.value) for record in read_topic(kafka.bootstrap, topic)}
    assert values.issuperset(range(3 * EVENTS, 4 * EVENTS))


@pytest.mark.parametrize("version", [16, 18])
def test_every_kind_of_other_server_has_another_name(version):
    """Also one that has recovered from the crash of a process, which a pooler does not tell its clients of. Any role
    may ask."""
    with private_server(version) as server:
        dsn = fresh_database(server)
        with psycopg.connect(dsn, autocommit=True) as owner:
            owner.execute("CREATE ROLE plain LOGIN")
            owner.execute("GRANT USAGE ON SCHEMA relay TO plain")
            owner.execute("GRANT SELECT ON relay.outbox_id_seq TO plain")
            copy = f"{owner.info.dbname}_copy"
        plain = dsn.replace("postgres@", "plain@")
        with psycopg.connect(dsn.replace(urlsplit(dsn).path, "/postgres"), autocommit=True) as owner:
            names = sql.Identifier(copy), sql.Identifier(urlsplit(dsn).path[1:])
            owner.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))

        def name(of: str = plain) -> tuple[str, str]:
            with psycopg.connect(of, autocommit=True) as connection:
                return connection.execute(queries.SERVER).fetchone()[:2]

        first = name()
        assert name() == first
        assert name(plain.replace(urlsplit(dsn).path, f"/{copy}"))[1] != first[1]
        with psycopg.connect(dsn) as victim:
            os.kill(victim.info.backend_pid, signal.SIGKILL)
        crashed = eventually(lambda: quietly(name), 60, "the server to recover")
        assert crashed[0] != first[0]
        assert crashed[1] == first[1]
        server.restart()
        assert name()[0] not in (first[0], crashed[0])
        assert name()[1] == first[1]
        with psycopg.connect(dsn, autocommit=True) as owner:
            truncate(owner)
        assert name()[1] != first[1]


def quietly(ask: Callable[[], tuple[str, str]]) -> tuple[str, str] | None:
    """What it returns, None while there is no server."""
    try:
        return ask()
    except psycopg.OperationalError:
        return None


def test_statistics_that_are_reset_stop_nobody(database, kafka, topic):
    """Floors are void once, as after a crash, for every session alike."""
    with RelayProcess(database, kafka.bootstrap) as relay:
        relay.wait_started()
        publish(database, topic)
        with psycopg.connect(database, autocommit=True) as owner:
            owner.execute("SELECT pg_stat_reset_shared('bgwriter')")
        publish(database, topic, first=EVENTS)
        sleeps(relay)
        assert not relay.events("database.lost")
        assert relay.stop() == 0
