"""`relay top`: what moves, once as text or JSON, or live in a terminal of 80 by 24."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from uuid import uuid4

import psycopg
import pytest

from relay.daemon.floors import Floors
from relay.daemon.store import Store
from relay.database import connect
from relay.schema.grants import grants
from tests.support.commands import emit, park, relay
from tests.support.relay_process import eventually


@pytest.fixture
def owner(database):
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def test_once_it_shows_backlog_lanes_parked_events_and_writers(database, owner):
    """What a script gets and what a person reads without a terminal, from the same looks."""
    for number in range(30):
        emit(owner, f"k{number}", "x", topic="orders")
    emit(owner, "k", "x", topic="users")
    park(owner, emit(owner, "broken", "x", topic="users"))
    with (
        connect(database, "relay worker 0 host-1") as connection,
        psycopg.connect(database, application_name="nightly import") as writer,
    ):
        store = Store(connection, Floors(64), rows_max=10, bytes_max=1 << 20, lanes_max=5, takeover_seconds=20)
        assert store.claim() is not None
        writer.execute("SELECT relay.emit('orders', 'open', 'x'::text)")
        data = json.loads(relay("top", "--json", settings={"RELAY_DATABASE_URL": database}).stdout)
        assert {one["topic"]: one["events"] for one in data["topics"]} == {"orders": 30, "users": 1}
        assert (data["waiting"], data["waiting_is_least"]) == (31, False)
        assert data["lanes"] == {"total": 64, "held": 5, "holders": [{"session": "relay worker 0 host-1", "lanes": 5}]}
        assert data["relays"] == ["host-1"]
        assert [(one["topic"], one["code"], one["events"]) for one in data["parked"]] == [("users", "RLY-703", 1)]
        assert [(one["session"], one["pid"]) for one in data["writers"]] == [
            ("nightly import", writer.info.backend_pid)
        ]
        said = relay("top", "--once", settings={"RELAY_DATABASE_URL": database})
        assert said.returncode == 0, said.stderr
        assert "lanes: 5 of 64 held, 1 relay connected" in said.stdout
        assert f"pid {writer.info.backend_pid}  postgres  idle in transaction  nightly import" in said.stdout
        assert "\x1b" not in said.stdout
        assert max(map(len, said.stdout.splitlines())) <= 80
        store.abandon()


def test_what_a_role_may_not_see_of_writers_names_the_right(database, owner):
    """In a terminal, for scripts, and in `explain`."""
    owner.execute("CREATE ROLE onlooker LOGIN")
    owner.execute(grants([("monitor", "onlooker")]))
    settings = {"RELAY_DATABASE_URL": database.replace("postgres@", "onlooker@")}
    try:
        with psycopg.connect(database) as writer:
            writer.execute("SELECT relay.emit('orders', 'open', 'x'::text)")
            assert "(GRANT pg_read_all_stats shows since when)" in relay("top", "--once", settings=settings).stdout
            assert json.loads(relay("top", "--json", settings=settings).stdout)["writers_hidden"] is True
            said = " ".join(relay("explain", str(uuid4()), settings=settings).stdout.split())
            assert (
                "Hidden from this role: what sessions of other roles do, and since when (GRANT pg_read_all_stats"
                in said
            )
            owner.execute("GRANT pg_read_all_stats TO onlooker")
            assert "pg_read_all_stats" not in relay("top", "--once", settings=settings).stdout
            assert json.loads(relay("top", "--json", settings=settings).stdout)["writers_hidden"] is False
    finally:
        owner.execute("DROP OWNED BY onlooker; DROP ROLE onlooker")


@pytest.mark.parametrize("command", [("status",), ("top",)])
def test_whether_kafka_answers_is_asked_and_said(database, kafka, command):
    """Or that it was not asked, and why."""
    settings = {"RELAY_DATABASE_URL": database}
    once = () if command == ("status",) else ("--once",)
    assert "not asked, since kafka.bootstrap.servers is not set" in relay(*command, *once, settings=settings).stdout
    unasked = json.loads(relay(*command, "--json", settings=settings).stdout)["kafka"]
    assert (unasked["up"], unasked["brokers"]) == (None, 0)
    there = {**settings, "RELAY_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}
    # A busy machine may take longer to answer than an operator is kept waiting.
    eventually(lambda: "answers, 1 broker" in relay(*command, *once, settings=there).stdout, 90, "the answer")
    away = {**settings, "RELAY_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    said = eventually(
        lambda: [one for one in [_kafka_of(command, away)] if one["up"] is False], 90, "the answer that there is none"
    )
    assert "Connection refused" in said[0]["reason"]


def _kafka_of(command: tuple[str, ...], settings: dict[str, str]) -> dict:
    return json.loads(relay(*command, "--json", settings=settings).stdout)["kafka"]


def test_rates_are_what_was_written_and_removed(database, owner):
    """Between two looks; a session reports what it did within seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "relay", "top", "--json", "--interval", "3"],
        env={**os.environ, "RELAY_DATABASE_URL": database},
        stdout=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        emit(owner, "k", "x")
        owner.execute("DELETE FROM relay.outbox")
        time.sleep(0.01)
    data = json.loads(process.communicate(timeout=30)[0])
    assert data["written_per_second"] > 0
    assert data["published_per_second"] > 0


class Terminal:
    """A command in a terminal of 80 by 24, as a person starts it."""

    def __init__(self, dsn: str, *arguments: str, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "relay", "top", "--interval", "0.2", *arguments],
            env={**clean, "TERM": "xterm", "RELAY_DATABASE_URL": dsn, **environment},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.said = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def shows(self, text: str) -> bool:
        """Whether it has been written by now."""
        while select.select([self._ours], [], [], 0.05)[0]:
            try:
                self.said += os.read(self._ours, 65_536)
            except OSError:
                break
        return text.encode() in self.said

    def press(self, key: str) -> None:
        os.write(self._ours, key.encode())


def test_in_a_terminal_it_goes_on_until_q_and_fits(database, owner):
    """80 by 24, whatever there is to show; the screen that was there comes back."""
    for number in range(60):
        emit(owner, f"k{number}", "x", topic=f"topic-{number}-" + "x" * 150)
        park(owner, emit(owner, f"b{number}", "x", topic=f"parked-{number}"))
    with Terminal(database) as terminal:
        eventually(lambda: terminal.shows("parked-0"), 30, "the first picture")
        emit(owner, "late", "x", topic="arrived")
        owner.execute("DELETE FROM relay.outbox WHERE topic <> 'arrived'")
        eventually(lambda: terminal.shows("  arrived"), 30, "a later picture")
        terminal.press("q")
        assert terminal.process.wait(30) == 0
        eventually(lambda: terminal.shows("\x1b[?1049l"), 30, "the first screen to come back")
        pictures = terminal.said.decode().split("\x1b[H")[1:]
        for picture in pictures:
            lines = [
                line.replace("\x1b[K", "").replace("\x1b[1;31m", "").replace("\x1b[1m", "").replace("\x1b[0m", "")
                for line in picture.split("\x1b[?")[0].split("\r\n")
            ]
            assert len(lines) == 24
            assert max(map(len, lines)) <= 80
            assert lines[-1] == "[q] quit"
        assert "\x1b[1m" in pictures[0]


@pytest.mark.parametrize("way", [("--no-color", {}), ("", {"NO_COLOR": "1"})], ids=["option", "variable"])
def test_without_colour_there_is_none(database, way):
    option, environment = way
    with Terminal(database, *([option] if option else []), **environment) as terminal:
        eventually(lambda: terminal.shows("[q] quit"), 30, "the first picture")
        terminal.press("q")
        assert terminal.process.wait(30) == 0
        assert b"\x1b[1" not in terminal.said.replace(b"\x1b[?1", b"")
        assert b"\x1b[0m" not in terminal.said


def test_a_database_that_goes_away_is_waited_for(database, owner):
    """It says so, and goes on when it is back."""
    with Terminal(database) as terminal:
        eventually(lambda: terminal.shows("lanes: 0 of 64"), 30, "the first picture")
        terminal.said = b""
        owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'relay top'")
        eventually(lambda: terminal.shows("RLY-301"), 30, "the loss to be shown")
        terminal.said = b""
        eventually(lambda: terminal.shows("lanes: 0 of 64"), 30, "a picture again")
        assert terminal.process.poll() is None


def test_a_schema_that_is_missing_ends_it(pg):
    said = relay("top", settings={"RELAY_DATABASE_URL": pg.dsn()})
    assert said.returncode == 4
    assert said.stderr.startswith("RLY-401")
