"""Every command under every role that is shipped: it works, or says which right is missing and what gives it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator
from uuid import uuid4

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql

from relay.cli.main import cli
from relay.cli.rights import NEEDS
from relay.schema.grants import grants
from tests.support.commands import emit, park, relay
from tests.support.postgres import drop_database, fresh_database
from tests.support.relay_process import eventually

PARTS = ("writer", "relay", "monitor", "admin", "reader")

#: Which roles can do it; the owner of everything can do all.
MAY = {
    "db check": ("relay", "monitor", "admin", "reader"),
    "status": ("relay", "monitor", "admin"),
    "top": ("relay", "monitor", "admin"),
    "explain": ("relay", "monitor", "admin"),
    "explain --key": ("relay", "admin"),
    "parked list": ("relay", "admin"),
    "parked show": ("relay", "admin"),
    "parked retry": ("admin",),
    "parked drop": ("admin",),
    "capture list": ("monitor", "admin"),
    "cache verify": ("reader",),
}
ARGUMENTS = {
    "top": ("--once", "--interval", "0.2"),
    "explain": (str(uuid4()),),
    "explain --key": ("k",),
    "parked show": ("PARKED",),
    "parked retry": ("PARKED",),
    "parked drop": ("--yes", "PARKED"),
    "cache verify": ("--seconds", "0.2"),
}
#: Those that name no part: only an owner may.
OF_OWNERS = {"capture add": ("account",), "capture remove": ("account",)}


@pytest.fixture(scope="module")
def dsn(pg) -> Iterator[str]:
    """With a role of each kind, under names that want quotes."""
    fresh = fresh_database(pg)
    with psycopg.connect(fresh, autocommit=True) as owner:
        owner.execute("CREATE TABLE account (id int PRIMARY KEY)")
        for part in PARTS:
            owner.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name_of(fresh, part))))
            owner.execute(grants([(part, name_of(fresh, part))]))
    yield fresh
    with psycopg.connect(fresh, autocommit=True) as owner:
        for part in PARTS:
            role = sql.Identifier(name_of(fresh, part))
            owner.execute(sql.SQL("DROP OWNED BY {}; DROP ROLE {}").format(role, role))
    drop_database(pg, fresh)


def name_of(dsn: str, part: str) -> str:
    return f"{part} {dsn.rpartition('/')[2]}"


def url_of(dsn: str, part: str) -> str:
    return dsn.replace("postgres@", f"{name_of(dsn, part).replace(' ', '%20')}@")


@pytest.fixture
def parked(dsn) -> int:
    with psycopg.connect(dsn, autocommit=True) as owner:
        id_ = emit(owner, "k", "x")
        park(owner, id_)
    return id_


@pytest.fixture
def run(dsn, redis_url, namespace, parked) -> Callable[[str, str], Result]:
    """A command as a role, in this process."""
    nothing = dict.fromkeys((name for name in os.environ if name.startswith("RELAY_")), None)

    def as_role(command: str, part: str) -> Result:
        given = [str(parked) if one == "PARKED" else one for one in (ARGUMENTS | OF_OWNERS).get(command, ())]
        settings = {
            "RELAY_DATABASE_URL": url_of(dsn, part),
            "RELAY_REDIS_URL": redis_url,
            "RELAY_REDIS__NAMESPACE": namespace,
        }
        return CliRunner().invoke(cli, [*command.split(), *given], env={**nothing, **settings})

    return as_role


def test_the_table_has_every_command_that_asks_the_database():
    """A new one has to be thought of. `run` and `doctor` have checks of their own; `db upgrade` is the owner's."""
    assert set(NEEDS) == set(MAY) | set(OF_OWNERS)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("command", MAY)
def test_a_command_works_or_names_what_is_missing_and_what_gives_it(dsn, run, command, part):
    """And what it tells to do, done as it is told, makes it work."""
    said = run(command, part)
    if part in MAY[command]:
        assert said.exit_code == 0, said.stderr
        return
    assert said.exit_code == 1
    assert said.stderr.startswith(f"RLY-501: the database role {name_of(dsn, part)} lacks ")
    assert f", which `relay {command}` needs. Fix: " in said.stderr
    (told,) = re.findall(r"`(relay db grants [^`]+)` prints", said.stderr)
    printed = CliRunner().invoke(cli, shlex.split(told)[1:])
    assert printed.exit_code == 0
    role = sql.Identifier(name_of(dsn, part))
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute(printed.stdout)
        try:
            assert run(command, part).exit_code == 0
        finally:
            owner.execute(sql.SQL("DROP OWNED BY {}").format(role))
            owner.execute(grants([(part, name_of(dsn, part))]))


@pytest.mark.parametrize("part", ["monitor", "admin", "reader"])
@pytest.mark.parametrize("command", ["run", "doctor"])
def test_the_daemon_and_doctor_say_what_gives_this_role_its_rights(dsn, part, command):
    """As the role is called."""
    given = {"RELAY_DATABASE_URL": url_of(dsn, part), "RELAY_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}

    def now() -> str:
        """Without what it says when the machine is too busy for its deadline."""
        said = relay(command, settings=given)
        text = " ".join((said.stdout + said.stderr).split())
        return text if said.returncode == 1 and "SELECT, DELETE on relay.outbox" in text else ""

    text = eventually(now, 120, "the rights that are missing")
    assert f"`relay db grants --relay '{name_of(dsn, part)}'` prints" in text


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("command", OF_OWNERS)
def test_what_only_an_owner_may_is_said_to_be_an_owners(run, command, part):
    said = run(command, part)
    assert said.exit_code == 1
    assert said.stderr.startswith(("RLY-501", "RLY-140"))
    assert "owns the table" in said.stderr


def test_the_rights_that_are_named_are_those_that_are_missing(dsn, run):
    """By column, where the role has some."""
    assert "lacks SELECT (key) on relay.outbox, SELECT on relay.parked, which" in run("explain --key", "monitor").stderr
    assert "lacks EXECUTE on relay.unpark(bigint, boolean), which" in run("parked retry", "relay").stderr
    assert "lacks USAGE on schema relay, which" in _without_usage(dsn, run)


def _without_usage(dsn: str, run: Callable[[str, str], Result]) -> str:
    role = sql.Identifier(name_of(dsn, "reader"))
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute(sql.SQL("REVOKE USAGE ON SCHEMA relay FROM {}").format(role))
        try:
            return run("status", "reader").stderr
        finally:
            owner.execute(sql.SQL("GRANT USAGE ON SCHEMA relay TO {}").format(role))
