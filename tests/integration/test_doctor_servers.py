"""`relay doctor` before servers that are set up as production's are: standbys, slots, prepared transactions, TLS."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from relay.config import load
from relay.daemon.diagnosis import examine as of_all
from relay.daemon.diagnosis import postgres as of_postgres
from relay.daemon.diagnosis.examine import examine
from relay.daemon.diagnosis.finding import Finding
from relay.demo.postgres import EmbeddedPostgres
from tests.support.postgres import fresh_database, private_server
from tests.support.relay_process import eventually
from tests.support.scenario import ask
from tests.support.tls import encrypted

SLOT = "left_behind"
NEEDED_BY_SLOT = "SELECT count(*) FROM pg_replication_slots WHERE xmin IS NOT NULL"
NEEDED_BY_SESSION = (
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender' AND backend_xmin IS NOT NULL"
)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """What is found must not depend on how busy this machine is."""
    monkeypatch.setattr(of_all, "DEADLINE_SECONDS", 30.0)


@pytest.fixture(scope="module")
def primary() -> Iterator[EmbeddedPostgres]:
    with private_server(settings={"max_prepared_transactions": "5", "shared_buffers": "32MB"}) as own:
        yield own


@pytest.fixture(scope="module")
def dsn(primary) -> str:
    return fresh_database(primary)


@pytest.fixture(scope="module")
def standby(primary, dsn) -> Iterator[EmbeddedPostgres]:
    """A copy of the primary that follows it through a slot, and tells it what its own readers need."""
    folder = Path(tempfile.mkdtemp(prefix="relay-standby-"))
    command = [str(primary.bin_dir / "pg_basebackup"), "-d", primary.dsn(), "-D", str(folder), "-c", "fast"]
    subprocess.run([*command, "--no-sync", "-R", "-C", "-S", SLOT], check=True, capture_output=True)
    owner = primary.data_dir.stat()
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    copy = EmbeddedPostgres(data_dir=folder)
    with (folder / "postgresql.auto.conf").open("a") as conf:
        conf.write(f"port = {copy.port}\nhot_standby_feedback = on\n")
    with copy:
        eventually(lambda: ask(dsn, NEEDED_BY_SLOT) == 1, 30, "the standby to say what it needs")
        yield copy
    shutil.rmtree(folder, ignore_errors=True)


def look(dsn: str) -> dict[str, Finding]:
    """Findings by check, without Kafka."""
    return {finding.check: finding for finding in examine(load({"RELAY_DATABASE_URL": dsn}))}


def seen(findings: dict[str, Finding], name: str) -> tuple[str, str]:
    return findings[name].state, findings[name].code


def do(dsn: str, statement: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


def test_a_standby_is_told_from_the_primary(primary, standby, dsn):
    """And where both are named, the primary is taken."""
    findings = look(dsn.replace(f":{primary.port}/", f":{standby.port}/"))
    assert seen(findings, "primary") == ("failed", "RLY-303")
    assert findings["primary"].found == "this server is a standby"
    # The rest is read all the same.
    assert seen(findings, "schema") == seen(findings, "lanes") == ("ok", "")
    both = look(dsn.replace(f":{primary.port}/", f":{standby.port},127.0.0.1:{primary.port}/"))
    assert seen(both, "primary") == ("ok", "")
    assert f"127.0.0.1:{primary.port}/" in both["database"].found


def test_a_prepared_transaction_that_was_forgotten_is_named(dsn, monkeypatch):
    """It has no session that one could see."""
    monkeypatch.setattr(of_postgres, "OLD_SECONDS", 0.01)
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT relay.emit('t', 'k', '{}'::jsonb)")
        connection.execute("PREPARE TRANSACTION 'transfer-17'")
    try:
        findings = look(dsn)
        assert seen(findings, "vacuum") == ("warning", "RLY-807")
        assert "held back by a prepared transaction transfer-17 of role postgres" in findings["vacuum"].found
        assert "ROLLBACK PREPARED" in findings["vacuum"].fix
    finally:
        do(dsn, "ROLLBACK PREPARED 'transfer-17'")
    assert seen(look(dsn), "vacuum") == ("ok", "")


def test_a_slot_whose_standby_is_gone_is_named_though_young_transactions_are_open(standby, dsn, monkeypatch):
    """Age in seconds and age in transactions are two things, and a young transaction must not hide an old slot."""
    monkeypatch.setattr(of_postgres, "OLD_TRANSACTIONS", 10)
    standby.stop()
    try:
        for _ in range(20):
            do(dsn, "SELECT pg_current_xact_id()")
        with psycopg.connect(dsn) as young:
            young.execute("SELECT pg_current_xact_id()")
            findings = look(dsn)
        assert seen(findings, "vacuum") == ("warning", "RLY-807")
        assert f"held back by a replication slot {SLOT}, " in findings["vacuum"].found
        assert findings["vacuum"].found.endswith(" transactions old")
    finally:
        standby.start()


def test_a_standby_that_keeps_up_is_no_old_transaction(standby, dsn, monkeypatch):
    """However long it has been connected. Without a slot its session shows what it needs."""
    do(standby.dsn(), "ALTER SYSTEM SET primary_slot_name = ''")
    do(standby.dsn(), "SELECT pg_reload_conf()")
    eventually(lambda: ask(dsn, NEEDED_BY_SESSION) == 1, 30, "its session to say what it needs")
    monkeypatch.setattr(of_postgres, "OLD_SECONDS", 0.01)
    assert seen(look(dsn), "vacuum") == ("ok", "")


def test_an_encrypted_way_is_told_by_what_is_checked(dsn, tmp_path):
    """To whom it leads is known only where the certificate was checked."""
    with encrypted(dsn, tmp_path) as (through, certificate):
        careless = look(f"{through}?sslmode=require")["encryption"]
        unchecked = "TLS, the server's certificate is not checked (sslmode=require)"
        assert (careless.state, careless.found) == ("ok", unchecked)
        careful = look(f"{through}?sslmode=verify-full&sslrootcert={certificate}")["encryption"]
        assert (careful.state, careful.found) == ("ok", "TLS")
        refused = look(f"{through}?sslmode=verify-full&sslrootcert=system")
        assert seen(refused, "database") == ("failed", "RLY-301")
        assert "certificate" in refused["database"].found
