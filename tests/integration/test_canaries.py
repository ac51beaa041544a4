"""Payloads, keys, header values and secrets are in no log line, error, metric, probe or report, whatever goes wrong.

Each of them is a canary here: a word that occurs nowhere else. Everything that the programs say is kept and searched
for them, as text, in hexadecimal and in base64. The one place that shows content is `relay parked show --reveal`, which
somebody has to ask for; it is the proof that the canaries were there to be found.
"""

from __future__ import annotations

import base64
import random
import string
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from tests.support import postgres, scenario
from tests.support.commands import relay as command
from tests.support.kafka import fresh_topic
from tests.support.proxy import TcpProxy
from tests.support.relay_process import SHORT, RelayProcess, eventually

PAYLOAD, KEY, HEADER, ENTITY_ID, PASSWORD, SASL, SSL_KEY = (
    f"canary{name}8f31" for name in ("payload", "key", "header", "entityid", "password", "sasl", "sslkey")
)
CANARIES = (PAYLOAD, KEY, HEADER, ENTITY_ID, PASSWORD, SASL, SSL_KEY)
NO_KAFKA = "127.0.0.1:1"

#: Plain connections, so librdkafka does not need these; it holds them all the same, and may talk about them.
SECRETS: Mapping[str, str] = {
    "RELAY_LOG__LEVEL": "debug",
    "RELAY_KAFKA__SASL_USERNAME": "u",
    "RELAY_KAFKA__SASL_PASSWORD": SASL,
    "RELAY_KAFKA__SSL_KEY_PASSWORD": SSL_KEY,
}


def found(text: str) -> set[str]:
    """The canaries in it."""
    lowered = text.lower()
    return {
        canary for canary in CANARIES if canary in text or canary.encode().hex() in lowered or _base64(canary) in text
    }


def _base64(canary: str) -> str:
    """What is in every base64 text that holds the canary at a multiple of three."""
    return base64.b64encode(canary.encode()[: len(canary) // 3 * 3]).decode()


def said_by(*relays: RelayProcess) -> str:
    """All that these processes wrote, at every start."""
    files = (file for relay in relays for file in sorted(relay.log_file.parent.glob("*.*")))
    return "\n".join(file.read_text(errors="replace") for file in files)


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    """A database on a server that asks for the password."""
    with postgres.private_server() as server:
        plain = postgres.fresh_database(server)
        with closing(psycopg.connect(server.dsn(), autocommit=True)) as connection:
            connection.execute(sql.SQL("CREATE ROLE app SUPERUSER LOGIN PASSWORD {}").format(sql.Literal(PASSWORD)))
            hba = Path(connection.execute("SHOW hba_file").fetchone()[0])
            hba.write_text("host all app all scram-sha-256\n" + hba.read_text())
            connection.execute("SELECT pg_reload_conf()")
        yield plain.replace("postgres@", f"app:{PASSWORD}@")
        postgres.drop_database(server, plain)


def write(dsn: str, *topics: str, size: int = 0) -> None:
    """Events that hold canaries in every part; `size` more bytes that no compression makes smaller."""
    noise = "".join(random.Random(7).choices(string.ascii_letters + string.digits, k=size))
    with psycopg.connect(dsn) as connection:
        for topic in topics:
            connection.execute(
                "SELECT relay.emit(%s, %s, %s::text, jsonb_build_object('note', %s::text))",
                [topic, KEY, PAYLOAD + noise, HEADER],
            )
            connection.execute("SELECT relay.touch('user', %s, 'updated', %s)", [ENTITY_ID, topic])


def empty(dsn: str) -> None:
    """Forgets what the test before left in the outbox."""
    with psycopg.connect(dsn) as connection:
        connection.execute("TRUNCATE relay.outbox")


def probe(relay: RelayProcess) -> str:
    """What it tells over HTTP."""
    return "".join(relay.get(path)[1] for path in ("/metrics", "/readyz", "/livez"))


def report(settings: Mapping[str, str], id_: int | None = None) -> str:
    """What an operator reads, but for what is revealed on request."""
    commands = [("status",), ("parked", "list"), ("config", "check")]
    said = [command(*words, *more, settings=settings) for words in commands for more in ((), ("--json",))]
    if id_ is not None:
        said += [command("parked", "show", str(id_), *more, settings=settings) for more in ((), ("--json",))]
    assert all(one.returncode == 0 for one in said), [one.stderr for one in said]
    return "".join(one.stdout + one.stderr for one in said)


def test_a_day_of_work_tells_no_content(dsn, kafka, tmp_path):
    """Publishing, parking, blocking, dead letters, a lost database, and everything an operator looks at meanwhile."""
    small = {"max.message.bytes": "2000"}
    parks, blocks, dead = (fresh_topic(kafka, config=small) for _ in range(3))
    flows = fresh_topic(kafka)
    kafka.create_topic(f"{dead}.dead")
    file = tmp_path / "relay.toml"
    file.write_text(f'[topics."{blocks}"]\npoison = "block"\n[topics."{dead}"]\npoison = "topic"\n')
    port = urlsplit(dsn).port
    with TcpProxy(port) as proxy:
        through = dsn.replace(f":{port}/", f":{proxy.port}/")
        settings = {**SHORT, **SECRETS, "RELAY_CONFIG": str(file)}
        with RelayProcess(through, kafka.bootstrap, settings=settings) as relay:
            relay.wait_started()
            said = probe(relay)
            write(dsn, flows, flows)
            write(dsn, parks, blocks, dead, size=20_000)
            relay.wait_event("event.parked", 2, seconds=30)
            relay.wait_event("event.dead_lettered", seconds=30)
            write(dsn, parks, blocks, flows + "-missing", flows)
            relay.wait_event("topic.paused", seconds=30)
            waits = "SELECT count(*) FROM relay.parked WHERE waits"
            eventually(lambda: scenario.ask(dsn, waits), 30, "an event that waits")
            said += probe(relay)
            proxy.refuse()
            proxy.cut()
            relay.wait_event("database.lost")
            said += probe(relay)
            proxy.accept()
            relay.wait_event("database.back")
            id_ = scenario.ask(dsn, "SELECT min(id) FROM relay.parked WHERE topic = %s", parks)
            environment = {**settings, "RELAY_DATABASE_URL": dsn, "RELAY_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}
            said += report(environment, id_)
            revealed = command("parked", "show", str(id_), "--reveal", settings=environment).stdout
            retried = command("parked", "retry", "--all", "--json", settings=environment)
            dropped = command("parked", "drop", "--all", "--yes", settings=environment)
            said += retried.stdout + retried.stderr + dropped.stdout + dropped.stderr
            assert relay.stop() == 0
            said += said_by(relay)
    for name in ("unit.settled", "unit.held", "event.parked", "event.dead_lettered", "topic.paused", "database.lost"):
        assert f'"event": "{name}"' in said
    assert found(said) == set()
    assert found(revealed) == {PAYLOAD, KEY, HEADER}


def test_an_outage_of_kafka_tells_no_content(dsn):
    """Brokers that are not there have librdkafka complain; none of it is ours to pass on."""
    empty(dsn)
    settings = {**SHORT, **SECRETS}
    with RelayProcess(dsn, NO_KAFKA, settings=settings) as relay:
        relay.wait_started()
        write(dsn, "t")
        relay.wait_event("kafka.lost")
        said = probe(relay)
        assert relay.stop() == 0
        said += said_by(relay)
    assert "RLY-701" in said
    assert found(said) == set()
    assert scenario.ask(dsn, "SELECT count(*) FROM relay.outbox") == 2


@pytest.mark.parametrize("place", ["after_claim", "after_produce", "after_ack", "in_commit"])
def test_a_failure_that_nobody_foresaw_tells_where_and_not_what(dsn, kafka, place):
    """A worker that fails with rows in its hands writes no traceback and no text of the error; exit status 1."""
    empty(dsn)
    write(dsn, fresh_topic(kafka))
    with RelayProcess(dsn, kafka.bootstrap, settings=SECRETS, failpoints=f"{place}=raise") as relay:
        assert relay.wait_exit() == 1
        failed = relay.events("worker.failed")
        said = said_by(relay)
    assert [event["kind"] for event in failed] == ["FailpointError"]
    assert "Traceback" not in said
    assert found(said) == set()


WRONG: dict[str, tuple[tuple[str, ...], Callable[[str], dict[str, str]]]] = {
    "host": (("status",), lambda dsn: {"RELAY_DATABASE_URL": dsn.replace("127.0.0.1", "no-such-host.invalid")}),
    "port": (("status",), lambda dsn: {"RELAY_DATABASE_URL": dsn.replace(f":{urlsplit(dsn).port}/", ":1/")}),
    "database": (("status",), lambda dsn: {"RELAY_DATABASE_URL": dsn + "x"}),
    "login": (("status",), lambda dsn: {"RELAY_DATABASE_URL": dsn.replace(PASSWORD, PASSWORD + "x")}),
    "upgrade": (("db", "upgrade"), lambda dsn: {"RELAY_DATABASE_URL": dsn.replace(PASSWORD, PASSWORD + "x")}),
    "slash": (("run",), lambda dsn: {"RELAY_DATABASE_URL": dsn.replace(PASSWORD, f"a/{PASSWORD}")}),
    "at": (("config", "check"), lambda dsn: {"RELAY_DATABASE_URL": dsn.replace(PASSWORD, f"{PASSWORD}@x")}),
    "no-url": (("config", "check"), lambda _dsn: {"RELAY_DATABASE_URL": PASSWORD}),
    "property": (("config", "check"), lambda _dsn: {"RELAY_KAFKA__SASL_PASWORD": SASL}),
    "field": (("config", "check", "--json"), lambda _dsn: {"RELAY_DAEMON__ROWS_MAX": PASSWORD}),
    "mechanism": (
        ("run",),
        lambda _dsn: {"RELAY_KAFKA__SECURITY_PROTOCOL": "sasl_ssl", "RELAY_KAFKA__SASL_MECHANISM": SASL},
    ),
    "pem": (("run",), lambda _dsn: {"RELAY_KAFKA__SECURITY_PROTOCOL": "ssl", "RELAY_KAFKA__SSL_KEY_PEM": SSL_KEY}),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_does_not_tell_the_others(dsn, case):
    """One line of error, from which neither the value at fault nor any other secret can be read."""
    arguments, change = WRONG[case]
    settings = {**SECRETS, "RELAY_DATABASE_URL": dsn, "RELAY_KAFKA_BOOTSTRAP_SERVERS": NO_KAFKA} | change(dsn)
    said = command(*arguments, settings=settings, seconds=20)
    assert said.returncode in (3, 6), said.stderr
    assert found(said.stdout + said.stderr) == set()


def test_the_search_sees_a_canary_however_it_is_written():
    """Plain, in hexadecimal as Postgres writes bytes, or in base64."""
    for text in (f"x{KEY}x", KEY.encode().hex().upper(), base64.b64encode(f"{KEY} and more".encode()).decode()):
        assert found(text) == {KEY}
    assert found("nothing of it") == set()
