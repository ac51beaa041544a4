"""`relay demo` as a user meets it: the script, the keys, the verdict, and nothing left behind however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import uuid
from pathlib import Path

import psycopg
import pytest
from redis import Redis

from relay.cache import Read, RedisShared
from relay.cache.tiers import Bump
from relay.core.names import record_name
from relay.demo.databases import TemporaryDatabase
from relay.demo.history import Record, digest
from relay.demo.ledger import Ledger
from relay.demo.redis_servers import GivenRedis, TemporaryRedis
from relay.demo.service import Floors, Tally
from relay.demo.staleness import ReadFigures
from relay.demo.verdict import End, is_kept, judge, lines
from relay.errors import ConfigError, UnreachableError
from tests.support.redis import fresh_namespace

ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Demo:
    """One `relay demo` with its own temporary folder and a mark by which its whole family is found."""

    def __init__(self, *arguments: str, terminal: int | None = None, **settings: str) -> None:
        self.mark = f"DEMO_TEST_MARK={uuid.uuid4().hex}"
        self.folder = Path(tempfile.mkdtemp(prefix="demo-test-"))
        self.folder.chmod(0o755)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        environ |= {"TMPDIR": str(self.folder), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **settings}
        environ |= dict([self.mark.split("=")])
        self.said = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "relay", "demo", *arguments],
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=subprocess.PIPE if terminal is None else terminal,
            stderr=subprocess.STDOUT if terminal is None else terminal,
            env=environ,
            start_new_session=True,
        )

    def listen(self, descriptor: int | None = None) -> None:
        """Reads on, in a thread, so that the demo never waits for us."""
        if descriptor is None:
            assert self._process.stdout is not None
            descriptor = self._process.stdout.fileno()

        def read() -> None:
            with contextlib.suppress(OSError):
                while part := os.read(descriptor, 65536):
                    self.said += part

        self._reading = threading.Thread(target=read, daemon=True)
        self._reading.start()

    @property
    def text(self) -> str:
        return ESCAPES.sub(b"", self.said).decode(errors="replace")

    def await_text(self, pattern: str, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < until, f"no {pattern!r} in:\n{self.text[-3000:]}"
            assert self._process.poll() is None or re.search(pattern, self.text), self.text[-3000:]
            time.sleep(0.05)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self, seconds: float = 150) -> int:
        """The exit code, after everything it said was read."""
        code = self._process.wait(seconds)
        self._reading.join(2)
        return code

    def family(self) -> list[str]:
        """Every process that carries the mark in its environment, or writes into our folder: Redis overwrites its own
        environment with a title."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                is_marked = self.mark.encode() in (entry / "environ").read_bytes()
                if is_marked or str((entry / "fd" / "1").readlink()).startswith(str(self.folder)):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def left_behind(self, seconds: float = 10) -> list[str]:
        """What is still there after a moment: processes, and files apart from the copy of the wheel."""
        until = time.monotonic() + seconds
        while True:
            files = [path.name for path in self.folder.iterdir() if "pixeltable" not in path.name]
            left = [*self.family(), *files]
            if not left or time.monotonic() > until:
                return left
            time.sleep(0.1)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def start():
    demos = []

    def start_one(*arguments, listen=True, **settings):
        demo = Demo(*arguments, **settings)
        demos.append(demo)
        if listen:
            demo.listen()
        return demo

    yield start_one
    for demo in demos:
        demo.close()


@pytest.mark.timeout(180)
def test_without_a_terminal_it_plays_all_faults_and_nothing_is_lost_or_too_old(start):
    demo = start()
    code = demo.end()
    assert code == 0, demo.text
    assert "verdict: OK. Nothing lost, nothing reordered" in demo.text
    for fault in ("kill -9 relay", "is frozen", "all three brokers are gone", "kill -9 for Postgres"):
        assert fault in demo.text, demo.text
    for fault in ("FLUSHALL: Redis is closed", "the consumer is frozen"):
        assert fault in demo.text, demo.text
    for recovery in ("started again", "thaws", "the brokers are back", "Postgres has recovered"):
        assert recovery in demo.text, demo.text
    for recovery in ("the consumer began a new epoch", "the consumer thaws"):
        assert recovery in demo.text, demo.text
    assert re.search(r"^  lost +0$", demo.text, re.M)
    assert figure(demo.text, "written") > 1000
    assert figure(demo.text, "reads") > 1000
    assert figure(demo.text, "too old") == 0
    assert figure(demo.text, "overall") > figure(demo.text, "calm") > 0
    assert re.search(r"newest; stale p50 [\d.]+ m?s, p99 [\d.]+ m?s, max", demo.text)
    assert max(map(len, demo.text.splitlines())) <= 100
    assert max(map(len, demo.text[demo.text.index("  written ") :].splitlines())) <= 80
    assert demo.left_behind() == []


@pytest.mark.timeout(180)
def test_on_a_terminal_keys_break_things_and_q_brings_the_verdict(start):
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(terminal)
    demo = start(listen=False, terminal=terminal)
    demo.listen(screen)
    demo.await_text(r"\[k\] kill relay")
    for key, effect in (
        (b"k", "kill -9 relay a"),
        (b"z", "is frozen"),
        (b"z", "thaws"),
        (b"b", "all three brokers are gone"),
        (b"b", "the brokers are back"),
        (b"d", "Postgres has recovered"),
        (b"r", "the consumer began a new epoch"),
        (b"c", "the consumer is frozen"),
        (b"c", "the consumer thaws"),
    ):
        os.write(screen, key)
        demo.await_text(effect)
    os.write(screen, b"q")
    code = demo.end()
    after = termios.tcgetattr(terminal)
    os.close(terminal)
    os.close(screen)
    assert code == 0, demo.text[-3000:]
    assert "verdict: OK. Nothing lost, nothing reordered" in demo.text
    assert after == before, "the terminal's mode was not put back"
    assert demo.said.count(b"\x1b[?1049h") == demo.said.count(b"\x1b[?1049l") == 1, "the screen was not put back"
    assert demo.said.rfind(b"\x1b[?25h") > demo.said.rfind(b"\x1b[?25l"), "the cursor stayed hidden"
    assert demo.left_behind() == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_a_signal_in_the_middle_leaves_nothing_behind(start, number, code):
    demo = start("--script")
    demo.await_text(r"kill -9 relay")
    assert len(demo.family()) > 8
    assert any("redis-server" in each for each in demo.family())
    demo.send(number)
    assert demo.end(30) == code
    assert demo.left_behind(20) == []


def test_ctrl_c_while_it_starts_leaves_nothing_behind(start):
    demo = start("--script")
    demo.await_text(r"Postgres 18")
    demo.send(signal.SIGINT)
    assert demo.end(30) == 130
    assert "Traceback" not in demo.text
    assert demo.left_behind(20) == []


def figure(text: str, name: str) -> int:
    """The number beside a name of the verdict."""
    found = re.search(rf"^  {name} +([\d,]+)", text, re.M)
    assert found is not None, text
    return int(found[1].replace(",", ""))


@pytest.mark.timeout(180)
def test_an_event_removed_by_hand_is_called_lost_and_the_given_server_is_left_clean(start, pg):
    demo = start("--script", RELAY_DATABASE_URL=pg.dsn())
    demo.await_text("all three brokers are gone")
    time.sleep(1)
    name = _demo_databases(pg)[0]
    with psycopg.connect(pg.dsn(name), autocommit=True) as connection:
        newest = "DELETE FROM relay.outbox WHERE id = (SELECT max(id) FROM relay.outbox)"
        assert connection.execute(newest).rowcount == 1
    assert demo.end() == 1, demo.text
    assert "verdict: BROKEN. lost" in demo.text
    assert re.search(r"^  lost +1$", demo.text, re.M)
    assert "kill -9 for Postgres" not in demo.text, "somebody's server is not ours to crash"
    assert _demo_databases(pg) == []
    assert demo.left_behind() == []


@pytest.mark.timeout(180)
def test_a_given_cluster_and_a_given_redis_are_not_broken_and_left_clean(start, kafka, redis_server):
    client = Redis.from_url(redis_server.url)
    client.set("somebody's", "key")
    demo = start("--script", RELAY_KAFKA_BOOTSTRAP_SERVERS=kafka.bootstrap, RELAY_REDIS_URL=redis_server.url)
    demo.await_text("topic relay-demo-")
    topic = re.search(r"relay-demo-[0-9a-f]+", demo.text)[0]
    demo.await_text("the consumer is frozen")
    assert client.keys(f"relay:{{{topic}}}:r:account:*"), "the copies have a namespace that is named as the topic"
    assert demo.end() == 0, demo.text
    assert "verdict: OK" in demo.text
    assert "brokers are gone" not in demo.text
    assert "FLUSHALL" not in demo.text
    assert demo.left_behind() == []
    assert client.keys(f"*{topic}*") == []
    assert client.getdel("somebody's") == b"key"
    from confluent_kafka.admin import AdminClient

    until = time.monotonic() + 10
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    while topic in admin.list_topics(timeout=10).topics:
        assert time.monotonic() < until, "the topic is still there"
        time.sleep(0.1)
    groups = admin.list_consumer_groups(request_timeout=10).result(10).valid
    assert not [group.group_id for group in groups if topic in group.group_id]


def test_an_unreachable_cluster_is_one_line_and_exit_code_3(start):
    demo = start("--script", RELAY_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert demo.end() == 3
    assert "RLY-304" in demo.text
    assert "Traceback" not in demo.text
    assert demo.left_behind() == []


@pytest.mark.parametrize(("module", "start_one"), [("postgres", TemporaryDatabase), ("redis", TemporaryRedis)])
def test_a_missing_wheel_is_one_line_with_the_fix(monkeypatch, module, start_one):
    monkeypatch.setattr(f"relay.demo.{module}.importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"RLY-208.*pip install 'relay\[demo\]'"):
        start_one()


def test_a_given_redis_that_does_not_answer_is_named_without_its_password():
    with pytest.raises(UnreachableError, match="RLY-305") as caught:
        GivenRedis("redis://:secret@127.0.0.1:1/0", "ns")
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="RLY-203") as refused:
        GivenRedis("http://:secret@127.0.0.1/0", "ns")
    assert "secret" not in str(refused.value)


def test_a_read_below_what_was_applied_is_counted_even_after_a_flush(redis_server):
    """Unless it says so itself. What was applied is noted past the cache, and a flush does not forget it."""
    namespace = fresh_namespace()
    shared = RedisShared.from_url(redis_server.url, namespace=namespace)
    shared.open("test", [])
    shared.apply([Bump(record_name("account", "1"), 7, unknown=False)], [], [])
    floors = Floors(redis_server.url, namespace, None)
    assert floors.look(1) == (0, 7)
    shared.open("flushed", [])
    Redis.from_url(redis_server.url).delete(f"relay:{{{namespace}}}:{record_name('account', '1')}")
    in_process, behind_it = floors.look(1)
    assert (in_process, behind_it) == (0, 7)
    tally = Tally()
    for version, is_stale in ((6, False), (6, True), (7, False)):
        tally.add(1, Read(None, version, "shared", None, None, is_stale), 1.0, behind_it)
    told = tally.take()
    assert (told["older"], told["marked"], len(told["reads"])) == (1, 1, 3)


def _ledger(order: list[int], *, read: list[int]) -> Ledger:
    """One key; events written in order, and read as `read` says."""
    ledger = Ledger("t")
    headers = [("event_id", b"")]
    for number in order:
        events = [[f"e{number}", "account:1", number, digest(b"%d" % number, headers)]]
        ledger.wrote({"at": 1.0, "outcome": "committed", "events": events})
    for offset, number in enumerate(read):
        own = (("event_id", b"e%d" % number),)
        ledger.read(Record("t", 0, offset, b"account:1", b"%d" % number, own), 2.0)
    return ledger


@pytest.mark.parametrize(
    ("read", "repeats_max", "left", "kept", "says"),
    [
        ([1, 2, 3], 0, 0, True, "OK. Nothing lost, nothing reordered, nothing repeated"),
        ([1, 2, 1, 2, 3], 5, 0, True, "2 repeated."),
        ([1, 2], 5, 0, False, "BROKEN. lost"),
        ([1, 3, 2], 5, 0, False, "BROKEN. reordered"),
        ([1, 2, 3, 2, 3], 0, 0, False, "BROKEN. beyond_bound"),
        ([1, 2, 1, 2, 1, 2, 3], 3, 0, False, "BROKEN. beyond_bound"),
        ([1, 2, 3], 5, 4, False, "BROKEN. outbox not empty"),
        ([1, 2, 3], 5, -1, False, "BROKEN. outbox not empty"),
    ],
)
def test_the_verdict_is_ok_only_if_nothing_is_wrong(read, repeats_max, left, kept, says):
    ledger = _ledger([1, 2, 3], read=read)
    verdict = judge(ledger, repeats_max=repeats_max)
    assert is_kept(verdict, End(left)) is kept
    assert says in lines(verdict, ledger, End(left), repeats_max=repeats_max)[-1]


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (End(reads=ReadFigures(reads=5)), "OK. Nothing lost, nothing reordered, nothing repeated, no copy too old."),
        (End(reads=ReadFigures(reads=5, marked=2, failed=1)), "OK."),
        (End(reads=ReadFigures(reads=5, older=1)), "BROKEN. read too old"),
        (End(reads=ReadFigures(reads=5), behind=1), "BROKEN. copies not the newest"),
        (End(reads=ReadFigures(reads=5), behind=-1), "BROKEN. copies not the newest"),
    ],
)
def test_one_read_that_is_too_old_or_one_copy_that_stays_old_breaks_the_verdict(end, says):
    ledger = _ledger([1, 2, 3], read=[1, 2, 3])
    verdict = judge(ledger, repeats_max=0)
    assert is_kept(verdict, end) is says.startswith("OK")
    assert says in lines(verdict, ledger, end, repeats_max=0)[-1]


def _demo_databases(pg) -> list[str]:
    with psycopg.connect(pg.dsn()) as connection:
        found = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'relay_demo_%'").fetchall()
    return [row[0] for row in found]
