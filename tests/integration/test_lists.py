"""Lists of names: whole where a program reads them, within 80 columns where a person does."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

import psycopg
import pytest

from tests.support.commands import emit, park, relay

SCHEMA, TABLE = "a_schema_with_quite_a_long_name_of_its_own", "and_a_table_that_is_called_no_less_elaborately"
COLUMNS = ("a_column_that_matters_a_lot", "another_one_that_matters_too")
TOPIC = "a.topic." + "of.many.parts." * 12 + "end"


@pytest.fixture
def dsn(database) -> str:
    """With long names of everything that is listed."""
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute(f"CREATE SCHEMA {SCHEMA}")
        owner.execute(f"CREATE TABLE {SCHEMA}.{TABLE} (id int PRIMARY KEY, {COLUMNS[0]} int, {COLUMNS[1]} int)")
        owner.execute(
            "SELECT relay.capture(%s::regclass, entity => %s, columns => %s)",
            (f"{SCHEMA}.{TABLE}", "e" * 40, [*COLUMNS]),
        )
        park(owner, emit(owner, "broken", "x", topic=TOPIC))
        emit(owner, "k", "x", topic=TOPIC)
    return database


COMMANDS = {
    ("capture", "list"): (f"{SCHEMA}.{TABLE}", "e" * 40, ",".join(COLUMNS), "complete"),
    ("parked", "list"): (TOPIC,),
    ("status",): (TOPIC,),
    ("top", "--once", "--interval", "0.2"): (TOPIC,),
}


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_pipe_is_given_whole_names(dsn, arguments):
    said = relay(*arguments, settings={"RELAY_DATABASE_URL": dsn})
    assert said.returncode == 0, said.stderr
    for name in COMMANDS[arguments]:
        assert name in said.stdout


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_terminal_is_given_what_fits(dsn, arguments):
    """The ends of names, which tell more than their beginnings."""
    shown = in_terminal(dsn, *arguments)
    lines = [line.rstrip("\r") for line in shown.splitlines()]
    assert max(map(len, lines)) <= 80
    assert any("..." in line for line in lines)
    assert COMMANDS[arguments][0][-8:] in shown


def in_terminal(dsn: str, *arguments: str) -> str:
    """What a command writes to a terminal, once it has ended."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "relay", *arguments],
        env={**os.environ, "TERM": "xterm", "RELAY_DATABASE_URL": dsn},
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    said, until = b"", time.monotonic() + 60
    while time.monotonic() < until:
        if not select.select([ours], [], [], 0.1)[0]:
            continue
        try:
            part = os.read(ours, 65_536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert process.wait(60) == 0, said.decode()
    return said.decode()
