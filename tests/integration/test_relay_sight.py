"""A relay that does not see every lane and every row must say so: to it the outbox looks empty, and all is well."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import psycopg
import pytest

from tests.support import commands, scenario
from tests.support.documents import DOCS
from tests.support.pgbouncer import pooled, program
from tests.support.relay_process import FOR_TESTS, RelayProcess, eventually

ROLE = "relay_with_a_policy"


@pytest.fixture
def role_url(database) -> Iterator[str]:
    """The database as a role with the rights of a daemon, which is not above policies."""
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {ROLE} LOGIN")
        try:
            owner.execute(f"GRANT USAGE ON SCHEMA relay TO {ROLE}")
            owner.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA relay TO {ROLE}")
            owner.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA relay TO {ROLE}")
            yield database.replace("postgres@", f"{ROLE}@")
        finally:
            owner.execute(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")


def run(dsn: str, bootstrap: str, *arguments: str):
    settings = {**FOR_TESTS, "RELAY_DATABASE_URL": dsn, "RELAY_KAFKA_BOOTSTRAP_SERVERS": bootstrap}
    return commands.relay("run", *arguments, settings=settings)


def cure() -> str:
    """The SQL that docs/ERRORS.md gives for missing lanes."""
    section = (DOCS / "ERRORS.md").read_text(encoding="utf-8").partition("### RLY-802")[2].partition("###")[0]
    return re.findall(r"`(INSERT [^`]+)`", section)[0]


@pytest.mark.parametrize("arguments", [(), ("--drain",)], ids=["run", "drain"])
@pytest.mark.parametrize("missing", ["lane IN (0, 63)", "lane > 31", "true"], ids=["two", "half", "all"])
def test_a_relay_does_not_start_on_missing_lanes(database, kafka, missing, arguments):
    """Their events would never be published."""
    scenario.ask(database, "SELECT relay.emit('t', 'k', 'v'::text)")
    scenario.ask(
        database, f"WITH gone AS (DELETE FROM relay.lane WHERE {missing} RETURNING lane) SELECT count(*) FROM gone"
    )
    done = run(database, kafka.bootstrap, *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert done.stderr.startswith("RLY-802: ")


@pytest.mark.parametrize("arguments", [(), ("--drain",)], ids=["run", "drain"])
@pytest.mark.parametrize("table", ["outbox", "lane", "parked"])
def test_a_relay_does_not_start_if_a_policy_hides_rows_from_it(database, role_url, kafka, table, arguments):
    """Postgres leaves the rows out without a word; a drain would end well with all of them left."""
    scenario.ask(database, "SELECT relay.emit('t', 'k', 'v'::text)")
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute(f"ALTER TABLE relay.{table} ENABLE ROW LEVEL SECURITY")
    done = run(role_url, kafka.bootstrap, *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("RLY-501: row-level security hides rows")


@pytest.mark.skipif(program() is None, reason="PgBouncer is not installed (Debian: apt-get install pgbouncer)")
def test_nor_does_it_behind_a_pooler(database, role_url, kafka):
    """There no setting of a session holds, so each transaction has its own."""
    scenario.ask(database, "SELECT relay.emit('t', 'k', 'v'::text)")
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute("ALTER TABLE relay.outbox ENABLE ROW LEVEL SECURITY")
    with pooled(role_url, users=(ROLE,)) as dsn:
        done = run(dsn, kafka.bootstrap, "--drain")
    assert done.returncode == 1
    assert done.stderr.startswith("RLY-501: row-level security hides rows")


def problems(relay: RelayProcess) -> tuple[int, dict[str, str]]:
    status, text = relay.get("/readyz")
    return status, json.loads(text)["problems"]


def is_ready(relay: RelayProcess) -> bool:
    return problems(relay) == (200, {})


def test_lanes_that_go_missing_make_a_sleeping_relay_unready_until_they_are_back(database, kafka, topic):
    """With the SQL that the documents give for it. The event that nobody saw meanwhile is published then."""
    with RelayProcess(database, kafka.bootstrap) as relay:
        relay.wait_started()
        eventually(lambda: relay.metric("relay_asleep") == 1, 30, "the relay to fall asleep")
        with psycopg.connect(database, autocommit=True) as owner:
            owner.execute("TRUNCATE relay.lane")
            owner.execute("SELECT relay.emit(%s, 'k', 'v'::text)", (topic,))
            broken = relay.wait_event("schema.broken")
            assert broken["code"] == "RLY-802"
            status, said = problems(relay)
            assert status == 503
            assert said["schema"].startswith("RLY-802: ")
            assert relay.get("/livez")[0] == 200
            owner.execute(cure())
        relay.wait_event("schema.mended")
        eventually(lambda: is_ready(relay), 30, "the relay to be ready")
        scenario.wait_empty(database, 30)
        assert relay.stop() == 0


def test_the_cure_of_missing_lanes_keeps_blocked_keys_blocked(database, kafka):
    """A lane knows how many of its events are parked; without that the later events of a blocked key would be sent."""
    with psycopg.connect(database, autocommit=True) as owner:
        commands.park(owner, commands.emit(owner, "k", "x"), policy="block")
        before = owner.execute("SELECT * FROM relay.lane ORDER BY lane").fetchall()
        owner.execute("DELETE FROM relay.lane")
        owner.execute(cure())
        assert owner.execute("SELECT * FROM relay.lane ORDER BY lane").fetchall() == before


def test_a_policy_that_comes_while_a_relay_sleeps_makes_it_unready(database, role_url, kafka, topic):
    """And is over with the policy."""
    with RelayProcess(role_url, kafka.bootstrap) as relay, psycopg.connect(database, autocommit=True) as owner:
        relay.wait_started()
        eventually(lambda: is_ready(relay), 30, "the relay to be ready")
        owner.execute("ALTER TABLE relay.outbox ENABLE ROW LEVEL SECURITY")
        owner.execute("SELECT relay.emit(%s, 'k', 'v'::text)", (topic,))
        eventually(lambda: problems(relay)[0] == 503, 30, "the relay not to be ready")
        assert any(text.startswith("RLY-501: row-level security") for text in problems(relay)[1].values())
        owner.execute("ALTER TABLE relay.outbox DISABLE ROW LEVEL SECURITY")
        eventually(lambda: is_ready(relay), 30, "the relay to be ready")
        scenario.wait_empty(database, 30)
        assert relay.stop() == 0


def test_a_drain_whose_lanes_go_missing_ends_with_that(database, own_kafka):
    """It would otherwise look for ever for events that it cannot see, or say that it is done."""
    settings = {"RELAY_DAEMON__PUBLISH_TIMEOUT_SECONDS": "60", "RELAY_DAEMON__TAKEOVER_SECONDS": "120",
                "RELAY_DAEMON__SHUTDOWN_SECONDS": "70"}  # fmt: skip
    scenario.ask(database, "SELECT relay.emit('t', 'k', 'v'::text)")
    own_kafka.pause(0)
    with RelayProcess(database, own_kafka.bootstrap, settings=settings, arguments=("--drain",)) as relay:
        relay.wait_started()
        with psycopg.connect(database, autocommit=True) as owner:
            owner.execute("TRUNCATE relay.lane")
        assert relay.wait_exit() == 4
        assert "RLY-802" in relay.said()
