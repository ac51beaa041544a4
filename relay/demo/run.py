"""The demo from its first line to its verdict."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import textwrap
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Final

import psycopg

from relay.config import load
from relay.demo import script
from relay.demo.brokers import Brokers, GivenBrokers, MockBrokers
from relay.demo.children import clean_environ
from relay.demo.databases import Database, GivenDatabase, TemporaryDatabase
from relay.demo.redis_servers import GivenRedis, RedisServer, TemporaryRedis
from relay.demo.stage import Stage
from relay.demo.verdict import NOBODY_READ, End, is_kept, judge, lines
from relay.errors import ConfigError, RelayError

LOG_MAX: Final = 200
STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Program:
    """One run: where its lines go, and what it has to close."""

    def __init__(self, environ: Mapping[str, str], *, scripted: bool) -> None:
        self._environ = environ
        self._scripted = scripted
        self._run = uuid.uuid4().hex[:8]
        self._started_at = time.monotonic()
        self._happened: deque[tuple[float, str]] = deque(maxlen=LOG_MAX)
        self._quiet = False

    def run(self) -> int:
        """Starts everything, lets it be broken, judges; the exit code. Whatever happens, all of it is gone then."""
        with _stoppable(), ExitStack() as parts:
            stage = self._set_the_stage(parts)
            if self._scripted:
                script.play(stage)
            else:
                self._show(stage)
            self.say("the application stops writing; waiting for what is under way")
            left = stage.finish()
            return self._pronounce(stage, left)

    def say(self, text: str) -> None:
        """Notes what happened, and prints it unless the live view does."""
        at = time.monotonic() - self._started_at
        self._happened.append((at, text))
        if not self._quiet:
            _print_line(at, text)

    def _set_the_stage(self, parts: ExitStack) -> Stage:
        _print("relay demo: changes reach the caches of others while things break.\n")
        with self._step() as done:
            database = self._database()
            parts.callback(database.close)
            remark = "temporary" if database.can_crash else "a database of our own"
            done(f"{database.label} with the schema relay", remark)
        with self._step() as done:
            brokers = self._brokers()
            parts.callback(brokers.close)
            remark = "librdkafka's, for tests only" if brokers.can_go_away else "a topic of our own"
            done(f"{brokers.label}, topic {brokers.topic}", remark)
        with self._step() as done:
            stage = Stage(database, brokers, self.say)
            parts.callback(stage.close)
            stage.start_relays(self._relay_environ(database, brokers))
            done("two processes of `relay run`", "with short time-outs")
        with self._step() as done:
            stage.start_reader()
            stage.start_application()
            done("an application, and a reader", "SQLAlchemy; a consumer")
        with self._step() as done:
            redis = self._redis()
            parts.callback(redis.close)
            # Before Redis is removed, whatever would still write to it.
            parts.callback(stage.close)
            stage.start_copies(redis)
            remark = "temporary" if redis.can_flush else f"namespace {redis.namespace}"
            done(f"{redis.label}, a consumer, two services", remark)
        _print("\n  Everything that was started or created here is removed at the end.\n")
        return stage

    @contextmanager
    def _step(self) -> Iterator[Callable[[str, str], None]]:
        """One line with a check mark and the time that it took."""
        started_at = time.monotonic()

        def done(what: str, remark: str) -> None:
            seconds = time.monotonic() - started_at
            _print(f"  {_check_mark()} {what:<38}{seconds:5.1f} s" + (f"   {remark}" if remark else ""))

        yield done

    def _database(self) -> Database:
        url = self._environ.get("RELAY_DATABASE_URL", "")
        return GivenDatabase(url, f"relay_demo_{self._run}") if url else TemporaryDatabase()

    def _brokers(self) -> Brokers:
        if not self._environ.get("RELAY_KAFKA_BOOTSTRAP_SERVERS"):
            return MockBrokers("demo.accounts")
        properties = load({"RELAY_CONFIG": os.devnull, **self._kafka_settings()}).kafka
        return GivenBrokers(f"relay-demo-{self._run}", properties)

    def _redis(self) -> RedisServer:
        url = self._environ.get("RELAY_REDIS_URL", "")
        return GivenRedis(url, f"relay-demo-{self._run}") if url else TemporaryRedis()

    def _kafka_settings(self) -> dict[str, str]:
        """What the user set about Kafka, and nothing else."""
        return {name: value for name, value in self._environ.items() if name.startswith("RELAY_KAFKA_")}

    def _relay_environ(self, database: Database, brokers: Brokers) -> dict[str, str]:
        kafka = {"RELAY_KAFKA_BOOTSTRAP_SERVERS": brokers.client["bootstrap.servers"]}
        if not brokers.can_go_away:
            kafka = self._kafka_settings()
        return {**clean_environ(self._environ), **kafka, "RELAY_DATABASE_URL": database.url}

    def _show(self, stage: Stage) -> None:
        from rich.console import Console

        from relay.demo.view import View

        self._quiet = True
        self.say("everything runs. Break something; [q] ends with a verdict")
        try:
            View(Console(), stage, self._happened).run()
        finally:
            self._quiet = False
        for at, text in self._happened:
            _print_line(at, text)

    def _pronounce(self, stage: Stage, left: int) -> int:
        try:
            parked = stage.gauge.parked()
            verdict = judge(stage.ledger, repeats_max=stage.repeats_max, parked=parked)
        except (ValueError, psycopg.Error, RelayError) as error:
            _print(f"\nverdict: NONE. The history cannot be judged: {error}")
            return 1
        _print("")
        reads = NOBODY_READ if stage.copies is None else stage.copies.figures()
        end = End(left, stage.behind, reads)
        for line in lines(verdict, stage.ledger, end, repeats_max=stage.repeats_max):
            _print(line)
        return 0 if is_kept(verdict, end) else 1


def _check_mark() -> str:
    encoding = (sys.stdout.encoding or "").lower()
    return "✓" if encoding.startswith("utf") else "ok"


def _print_line(at: float, text: str) -> None:
    """What happened, in a column of its own on a narrow terminal."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    for line in textwrap.wrap(f"{at:7.1f} s  {text}", width, subsequent_indent=" " * 11):
        _print(line)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@contextmanager
def _stoppable() -> Iterator[None]:
    """A signal unwinds everything; a second one changes nothing, since the unwinding is what removes our traces."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        for each in STOPS:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in STOPS:
        signal.signal(number, on_signal)
    yield


def main(arguments: list[str]) -> int:
    """Runs the demo; `--script`, or no terminal, means without keys."""
    has_terminal = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb")
    scripted = "--script" in arguments or not has_terminal
    if not scripted:
        try:
            import rich  # noqa: F401
        except ModuleNotFoundError:
            raise ConfigError(
                "RLY-208", "the live view needs the package rich", "pip install 'relay[demo]', or add --script"
            ) from None
    return Program(os.environ, scripted=scripted).run()
