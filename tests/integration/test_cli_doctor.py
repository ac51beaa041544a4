"""`relay doctor`: each thing that can be wrong is found, named with its code, and hides nothing else."""

from __future__ import annotations

import json
import socket
import subprocess
import time

import psycopg
import pytest
from psycopg import sql

from relay.config import load
from relay.daemon.diagnosis import examine as of_all
from relay.daemon.diagnosis import kafka as of_kafka
from relay.daemon.diagnosis import postgres as of_postgres
from relay.daemon.diagnosis.examine import ORDER, examine
from relay.daemon.diagnosis.finding import Finding
from relay.schema.grants import grants
from tests.support.commands import emit, relay
from tests.support.kafka import KafkaCluster, fresh_topic
from tests.support.postgres import bare_database, drop_database

NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """What is found must not depend on how busy this machine is. That it is quick has a test of its own."""
    monkeypatch.setattr(of_all, "DEADLINE_SECONDS", 30.0)
    monkeypatch.setattr(of_kafka, "ASK_SECONDS", 20.0)
    monkeypatch.setattr(of_postgres, "CONNECT_SECONDS", 20.0)
    monkeypatch.setattr(of_postgres, "STATEMENT_SECONDS", 15.0)
    monkeypatch.setattr(of_postgres, "BEGIN", of_postgres.BEGIN.replace("'1s'", "'15s'"))


@pytest.fixture
def owner(database):
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def role(database, owner):
    """A role with the rights of a relay, and what only that role would see."""
    name = f"doctor-{database.rpartition('/')[2]}"
    owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    owner.execute(grants([("relay", name)]))
    yield name
    owner.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
    owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def look(dsn: str, bootstrap: str = "") -> dict[str, Finding]:
    """Findings by check; a topic's by its name. Without Kafka where it is not the question, which takes no time."""
    found = examine(load({"RELAY_DATABASE_URL": dsn, "RELAY_KAFKA_BOOTSTRAP_SERVERS": bootstrap}))
    assert all((finding.state == "ok") == (not finding.code) == (not finding.fix) for finding in found)
    return {finding.subject or finding.check: finding for finding in found}


def timed(*arguments: str, settings: dict[str, str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """A command, and how long it took from start to end."""
    started = time.monotonic()
    return relay(*arguments, settings=settings), time.monotonic() - started


def patiently(*arguments: str, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A command that does not wait for long, once more if a busy machine has taken longer."""
    for _ in range(5):
        said = relay(*arguments, settings=settings)
        if said.returncode == 0:
            break
    return said


def seen(findings: dict[str, Finding], name: str) -> tuple[str, str]:
    return findings[name].state, findings[name].code


def test_a_healthy_place_is_healthy(database, kafka, owner, role):
    """With the rights that are printed, nothing fails, and each check has its line."""
    topic = fresh_topic(kafka)
    emit(owner, "k", "x", topic=topic)
    settings = {
        "RELAY_DATABASE_URL": database.replace("postgres@", f"{role}@"),
        "RELAY_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap,
    }
    said = patiently("doctor", "--json", settings=settings)
    found = json.loads(said.stdout)
    assert said.returncode == 0, said.stdout
    assert {finding["check"] for finding in found} == set(ORDER)
    assert not [finding for finding in found if finding["state"] == "failed"]
    # One broker keeps one copy, and nobody has called touch yet.
    not_ok = {(finding["subject"], finding["code"]) for finding in found if finding["state"] == "warning"}
    assert not_ok <= {(topic, "RLY-814"), ("relay.changes", "RLY-702"), ("relay.changes", "RLY-814")}
    text = patiently("doctor", settings=settings)
    assert text.returncode == 0
    assert f"topic         {topic}: " in text.stdout
    assert "\x1b" not in text.stdout
    assert max(map(len, text.stdout.splitlines())) <= 80


@pytest.mark.parametrize("silent", [False, True], ids=["refused", "hanging"])
def test_it_ends_within_five_seconds_when_everything_is_down(silent):
    """Whether nobody listens, or whoever listens never answers."""
    with socket.create_server(("127.0.0.1", 0)) as hole:
        place = f"127.0.0.1:{hole.getsockname()[1]}" if silent else NOWHERE
        settings = {"RELAY_DATABASE_URL": f"postgresql://x@{place}/x", "RELAY_KAFKA_BOOTSTRAP_SERVERS": place}
        for _ in range(5):
            idle = timed("--help", settings=settings)[1]
            said, took = timed("doctor", "--json", settings=settings)
            # On a machine that is busy with other things a program that does nothing takes long as well.
            if took - max(0.0, idle - 1.0) < 5:
                break
    found = {finding["check"]: finding for finding in json.loads(said.stdout)}
    assert said.returncode == 1
    assert took - max(0.0, idle - 1.0) < 5
    assert (found["database"]["state"], found["database"]["code"]) == ("failed", "RLY-301")
    assert (found["kafka"]["state"], found["kafka"]["code"]) == ("failed", "RLY-304")
    assert set(found) == set(ORDER)
    assert {found[check]["state"] for check in set(ORDER) - {"settings", "database", "kafka"}} == {"unknown"}


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({}, "RLY-201"),
        ({"RELAY_DATABASE_URI": "x"}, "RLY-202"),
        (
            {"RELAY_DATABASE_URL": "postgresql://x@h/d", "RELAY_KAFKA_BOOTSTRAP_SERVERS": "h", "RELAY_KAFKA__X": "1"},
            "RLY-206",
        ),
    ],
)
def test_wrong_settings_are_a_finding(settings, code):
    """And no reason to say nothing else."""
    said = relay("doctor", "--json", settings=settings)
    found = json.loads(said.stdout)
    assert said.returncode == 1
    assert code in {finding["code"] for finding in found if finding["check"] == "settings"}
    assert {finding["check"] for finding in found} == set(ORDER)


def test_a_role_that_does_not_exist_and_a_database_that_does_not(database):
    findings = look(database.replace("postgres@", "nobody-we-know@"))
    assert seen(findings, "database") == ("failed", "RLY-302")
    assert 'role "nobody-we-know" does not exist' in findings["database"].found
    assert seen(findings, "grants") == ("unknown", "RLY-809")
    assert seen(look(database + "-gone"), "database") == ("failed", "RLY-301")


def test_a_database_without_the_schema(pg):
    dsn = bare_database(pg)
    try:
        findings = look(dsn)
        assert seen(findings, "schema") == ("failed", "RLY-401")
        assert seen(findings, "clock") == ("ok", "")
    finally:
        drop_database(pg, dsn)


def test_a_role_without_rights_is_told_which(database, owner, role):
    dsn = database.replace("postgres@", f"{role}@")
    owner.execute(sql.SQL("REVOKE DELETE ON relay.outbox FROM {}").format(sql.Identifier(role)))
    findings = look(dsn)
    assert seen(findings, "grants") == ("failed", "RLY-501")
    assert findings["grants"].found == "this role lacks SELECT, DELETE on relay.outbox"
    owner.execute(sql.SQL("REVOKE USAGE ON SCHEMA relay FROM {}").format(sql.Identifier(role)))
    assert seen(look(dsn), "grants") == ("failed", "RLY-501")


def test_what_the_server_sets_for_the_role(database, owner, role):
    """Read-only transactions, short time-outs, and commits that are not written down."""
    for setting in ("default_transaction_read_only = on", "statement_timeout = '2s'", "synchronous_commit = off"):
        owner.execute(sql.SQL("ALTER ROLE {} SET " + setting).format(sql.Identifier(role)))
    findings = look(database.replace("postgres@", f"{role}@"))
    assert seen(findings, "primary") == ("failed", "RLY-303")
    assert seen(findings, "timeouts") == ("warning", "RLY-805")
    assert "statement_timeout is 2 s" in findings["timeouts"].found
    assert seen(findings, "durability") == ("warning", "RLY-806")
    # What is wrong with one does not hide the others.
    assert seen(findings, "schema") == seen(findings, "grants") == ("ok", "")


@pytest.mark.parametrize("gone", ["lane = 7", "lane > 31", "true"])
def test_lanes_that_are_gone_and_an_outbox_that_nobody_vacuums(database, owner, gone):
    owner.execute(f"DELETE FROM relay.lane WHERE {gone}")
    owner.execute("ALTER TABLE relay.outbox SET (autovacuum_enabled = false)")
    findings = look(database)
    assert seen(findings, "lanes") == ("failed", "RLY-802")
    assert seen(findings, "autovacuum") == ("warning", "RLY-808")


def test_a_transaction_that_holds_back_vacuum_is_named(database, role, monkeypatch):
    """By its session and its age; to a role that may not see other roles' sessions that is unknown, and not well."""
    monkeypatch.setattr(of_postgres, "OLD_SECONDS", 0.01)
    with psycopg.connect(database, application_name="nightly report") as forgotten:
        forgotten.execute("SELECT pg_current_xact_id()")
        findings = look(database)
        assert seen(findings, "vacuum") == ("warning", "RLY-807")
        assert (
            f"transaction of nightly report (pid {forgotten.info.backend_pid}, role postgres, idle in transaction)"
            in (findings["vacuum"].found)
        )
        assert seen(look(database.replace("postgres@", f"{role}@")), "vacuum") == ("unknown", "RLY-809")
    assert seen(look(database), "vacuum") == ("ok", "")


def test_limits_that_this_machine_does_not_reach(database, monkeypatch):
    """Clocks apart, little room for locks, a way that is not encrypted."""
    now = time.time
    monkeypatch.setattr(of_postgres.time, "time", lambda: now() + 90)
    monkeypatch.setattr(of_postgres, "LOCKS_MIN", 1_000_000)
    monkeypatch.setattr(of_postgres, "_is_local", lambda host: False)
    findings = look(database)
    assert seen(findings, "clock") == ("warning", "RLY-804")
    assert 80 < float(findings["clock"].found.partition(" ")[0]) <= 90
    assert seen(findings, "locks") == ("warning", "RLY-810")
    assert seen(findings, "encryption") == ("warning", "RLY-801")


def test_a_check_that_would_wait_for_a_lock_gives_up_alone(database, owner):
    with psycopg.connect(database) as other:
        other.execute("LOCK TABLE relay.lane IN ACCESS EXCLUSIVE MODE")
        findings = look(database)
    assert seen(findings, "lanes") == ("unknown", "RLY-809")
    assert seen(findings, "autovacuum") == ("ok", "")


def test_topics_that_are_missing_or_take_less_than_the_outbox(database, kafka, owner):
    """Those in which events wait are needed now. Looking creates none."""
    small = fresh_topic(kafka, config={"max.message.bytes": "2000"})
    for topic in (small, "absent"):
        emit(owner, "k", "x", topic=topic)
    findings = look(database, kafka.bootstrap)
    assert seen(findings, "kafka") == seen(findings, "listeners") == ("ok", "")
    assert seen(findings, "absent") == ("failed", "RLY-702")
    assert findings["relay.changes"].state == "warning"
    codes = {f.code for f in examine(load(_settings(database, kafka.bootstrap))) if f.subject == small}
    assert codes == {"RLY-812", "RLY-814"}
    assert seen(look(database, kafka.bootstrap), "absent") == ("failed", "RLY-702")


def test_a_producer_that_takes_less_than_the_outbox_is_found(database, kafka, monkeypatch):
    """librdkafka refuses before the topic is asked."""
    fresh = {"RELAY_KAFKA__MESSAGE_MAX_BYTES": "2000"}
    topics = [one for one in examine(load(_settings(database, kafka.bootstrap) | fresh)) if one.check == "topic"]
    (own,) = [one for one in topics if not one.subject]
    assert (own.state, own.code) == ("failed", "RLY-812")
    assert own.found.startswith("kafka.message.max.bytes is 2,000")
    by_default = examine(load(_settings(database, kafka.bootstrap)))
    assert not [one for one in by_default if one.check == "topic" and not one.subject]


def test_checks_that_end_in_anything_are_a_finding(database, kafka, monkeypatch):
    """And neither a traceback nor silence about the others."""

    def broken(*_: object) -> None:
        raise RuntimeError("payload of somebody")

    monkeypatch.setattr(of_kafka.Look, "_topics", broken)
    findings = look(database, kafka.bootstrap)
    assert seen(findings, "topic") == ("unknown", "RLY-809")
    assert findings["topic"].found == "the checks ended in RuntimeError"
    assert seen(findings, "kafka") == seen(findings, "database") == ("ok", "")


def _settings(dsn: str, bootstrap: str) -> dict[str, str]:
    return {"RELAY_DATABASE_URL": dsn, "RELAY_KAFKA_BOOTSTRAP_SERVERS": bootstrap}


def test_a_broker_that_is_not_where_it_says_it_is_and_topics_short_of_replicas(database, owner):
    """The first address answers, the one that the cluster then names does not. Two replicas are wanted, one is up."""
    with KafkaCluster(proxied=True) as cluster:
        cluster.create_topic("orders", config={"min.insync.replicas": "2"})
        emit(owner, "k", "x", topic="orders")
        cluster.proxies[0].refuse()
        findings = look(database, f"127.0.0.1:{cluster.brokers[0].client_port}")
        assert seen(findings, "kafka") == ("ok", "")
        assert seen(findings, "listeners") == ("failed", "RLY-811")
        assert f"127.0.0.1:{cluster.proxies[0].port}" in findings["listeners"].found
        cluster.proxies[0].accept()
        assert seen(look(database, cluster.bootstrap), "orders") == ("failed", "RLY-813")
