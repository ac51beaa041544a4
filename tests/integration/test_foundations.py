"""What a restore or a switch-over may have left behind is said by `relay doctor` and `relay db check` with its cure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from relay.demo.postgres import EmbeddedPostgres
from tests.support.commands import emit, park, relay
from tests.support.postgres import drop_database
from tests.support.relay_process import eventually


@pytest.fixture
def owner(database) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def found(dsn: str, name: str) -> tuple[str, str]:
    """State and code of a check, of which doctor and db check say the same."""
    settings = {"RELAY_DATABASE_URL": dsn}

    def by_doctor_in_time() -> list[dict]:
        """All that it found, once this machine was quick enough for it."""
        all_of_it = json.loads(relay("doctor", "--json", settings=settings).stdout)
        return [] if any(one["check"] == name and one["state"] == "unknown" for one in all_of_it) else all_of_it

    by_doctor = eventually(by_doctor_in_time, 120, "doctor")
    said = relay("db", "check", "--json", settings=settings)
    by_check = json.loads(said.stdout)["findings"]
    (one,) = [each for each in by_doctor if each["check"] == name]
    assert [each for each in by_check if each["check"] == name] == [one]
    text = relay("db", "check", settings=settings)
    assert said.returncode == text.returncode == (1 if one["state"] == "failed" else 0)
    assert ("RLY-" in text.stdout) == bool(one["code"])
    assert one["code"] in text.stdout
    assert max(map(len, text.stdout.splitlines())) <= 80
    return one["state"], one["code"]


def test_a_sequence_that_counts_up_is_well(database, owner):
    """Before the first event, after it, and when it has been published."""
    assert found(database, "sequence") == ("ok", "")
    emit(owner, "k", "x")
    assert found(database, "sequence") == ("ok", "")
    owner.execute("DELETE FROM relay.outbox")
    assert found(database, "sequence") == ("ok", "")


@pytest.mark.parametrize("is_parked", [False, True], ids=["waiting", "parked"])
def test_a_sequence_below_an_event_is_found_and_mended_as_it_says(database, owner, is_parked):
    """As after a logical switch-over, which copies rows and no sequences."""
    for _ in range(3):
        id_ = emit(owner, "k", "x")
    if is_parked:
        park(owner, id_)
    owner.execute("SELECT setval('relay.outbox_id_seq', 1, false)")
    assert found(database, "sequence") == ("failed", "RLY-816")
    told = " ".join(relay("db", "check", settings={"RELAY_DATABASE_URL": database}).stdout.split())
    owner.execute(re.search(r"SELECT setval\([^)]*\)", told)[0])
    assert found(database, "sequence") == ("ok", "")
    assert emit(owner, "k", "x") > id_


@pytest.mark.parametrize("change", ["CACHE 20", "CYCLE", "INCREMENT 2"])
def test_a_sequence_that_does_not_count_one_by_one_is_found_and_mended_as_it_says(database, owner, change):
    """Sessions that keep ids in stock write a later event with a smaller id."""
    owner.execute(sql.SQL("ALTER SEQUENCE relay.outbox_id_seq " + change))
    assert found(database, "sequence") == ("failed", "RLY-816")
    told = " ".join(relay("db", "check", settings={"RELAY_DATABASE_URL": database}).stdout.split())
    owner.execute(re.search(r"ALTER SEQUENCE relay.outbox_id_seq [A-Z0-9 ]*", told)[0])
    assert found(database, "sequence") == ("ok", "")


def test_a_role_that_may_not_see_the_sequence_is_told_that_it_is_unknown(database, owner):
    """A monitor's check of the schema goes on."""
    owner.execute("CREATE ROLE looker LOGIN; GRANT USAGE ON SCHEMA relay TO looker")
    try:
        owner.execute("GRANT SELECT ON relay.schema_version TO looker")
        said = relay("db", "check", "--json", settings={"RELAY_DATABASE_URL": database.replace("postgres@", "looker@")})
        assert said.returncode == 0, said.stderr
        states = {one["check"]: one["state"] for one in json.loads(said.stdout)["findings"]}
        assert states == {"encoding": "ok", "sequence": "unknown"}
    finally:
        owner.execute("DROP OWNED BY looker; DROP ROLE looker")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "WIN1252"])
def test_another_encoding_is_said_with_what_it_means(pg: EmbeddedPostgres, encoding):
    """It works, as long as what is written can be read."""
    name = f"encoded_{encoding.lower()}"
    create = sql.SQL("CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE template0")
    with psycopg.connect(pg.dsn(), autocommit=True) as admin:
        admin.execute(create.format(sql.Identifier(name), sql.Literal(encoding)))
    dsn = pg.dsn().rpartition("/")[0] + f"/{name}"
    try:
        assert relay("db", "upgrade", settings={"RELAY_DATABASE_URL": dsn}).returncode == 0
        assert found(dsn, "encoding") == ("warning", "RLY-815")
    finally:
        drop_database(pg, dsn)
