"""Relays as real processes: what is proven of them is proven of what an operator starts.

A `RelayProcess` may be killed, frozen and started again; a `Fleet` is several of them, and a keeper that starts again
whichever died. Logs go to files, one per start, and are read from there: never to decide whether the promise was kept,
only to know when to go on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from relay.demo.server import Lifeline

NOTHING: Mapping[str, str] = MappingProxyType({})

#: Small units, so that the bound on repeats says something, and waits that a test can sit through. The publish time-out
#: stays above what two shared cores need when nothing is broken; tests that break Kafka shorten it.
FOR_TESTS: Mapping[str, str] = MappingProxyType(
    {
        "RELAY_LOG__FORMAT": "json",
        "RELAY_DAEMON__ROWS_MAX": "200",
        "RELAY_DAEMON__UNITS_IN_FLIGHT": "2",
        "RELAY_DAEMON__PUBLISH_TIMEOUT_SECONDS": "10",
        "RELAY_DAEMON__TAKEOVER_SECONDS": "20",
        "RELAY_DAEMON__TOPIC_RETRY_SECONDS": "0.5",
        "RELAY_KAFKA__TOPIC_METADATA_PROPAGATION_MAX_MS": "1000",
    }
)

#: For tests in which Kafka, the database or the relay itself stands still.
SHORT: Mapping[str, str] = MappingProxyType(
    {
        "RELAY_DAEMON__PUBLISH_TIMEOUT_SECONDS": "2",
        "RELAY_DAEMON__TAKEOVER_SECONDS": "4",
        "RELAY_DATABASE__DEADLINE_SECONDS": "3",
        "RELAY_DATABASE__CONNECT_TIMEOUT_SECONDS": "2",
    }
)

_numbers = itertools.count(1)


def eventually(holds: Callable[[], Any], seconds: float = 30, what: str = "") -> Any:
    """What `holds` returns as soon as that is true. Waiting for long costs nothing where all is well.

    Raises:
        TimeoutError: it was not, for that long.
    """
    deadline = time.monotonic() + seconds
    while True:
        if found := holds():
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what or holds}")
        time.sleep(0.01)


class RelayProcess:
    """One `relay run`.

    Args:
        settings: environment over `base`.
        failpoints: RELAY_FAILPOINTS of the first start only, so that the next one lives.
    """

    def __init__(
        self,
        dsn: str,
        bootstrap: str,
        *,
        settings: Mapping[str, str] = NOTHING,
        failpoints: str = "",
        arguments: tuple[str, ...] = (),
        base: Mapping[str, str] = FOR_TESTS,
    ) -> None:
        self.number = next(_numbers)
        self._arguments = arguments
        self._failpoints = failpoints
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        self._environment = {
            **clean,
            **base,
            "RELAY_DATABASE_URL": dsn,
            "RELAY_KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            **settings,
        }
        self._folder = tempfile.TemporaryDirectory(prefix="relay-process-")
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: Lifeline | None = None
        self._http_port: int | None = None
        self.starts = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        """Starts the process and returns at once; `wait_started` returns when it works."""
        assert not self.is_running, "it runs"
        self._let_go()
        environment = dict(self._environment)
        if self._failpoints and not self.starts:
            environment["RELAY_FAILPOINTS"] = self._failpoints
        self._http_port = None
        # Others may be reading the log: it is there before they look for it.
        start = self.starts + 1
        with self._file(start, "log").open("wb") as log, self._file(start, "err").open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "relay", "run", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=said,
                env=environment,
                start_new_session=True,
            )
        # In this order: whoever sees another start finds its process, and not the one that has ended.
        self._process = process
        self.starts = start
        self._lifeline = Lifeline(process.pid, stop_signal="KILL", folder=None)
        return self

    @property
    def log_file(self) -> Path:
        """The log of the latest start."""
        return self._file(self.starts, "log")

    def _file(self, start: int, kind: str) -> Path:
        return Path(self._folder.name) / f"{start}.{kind}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative if a signal ended it."""
        return None if self._process is None else self._process.poll()

    def wait_started(self, seconds: float = 30) -> Self:
        """Returns when it says that it has started.

        Raises:
            RuntimeError: it ended instead.
        """
        self.wait_event("relay.started", seconds=seconds)
        return self

    def wait_event(self, name: str, count: int = 1, seconds: float = 30) -> dict[str, Any]:
        """The latest event of that name, once there are `count` of them since the latest start."""

        def found() -> list[dict[str, Any]]:
            is_running = self.is_running
            events = self.events(name)
            if len(events) < count and not is_running:
                raise RuntimeError(f"relay {self.number} ended with {self.exit_code}{self.said()}")
            return events[count - 1 :]

        try:
            return eventually(found, seconds, f"{count} x {name}")[-1]
        except TimeoutError as error:
            raise TimeoutError(f"{error}{self.said()}") from None

    def wait_exit(self, seconds: float = 40) -> int:
        """The exit code."""
        assert self._process is not None, "not started"
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"relay {self.number} did not end in {seconds:g} s{self.said()}") from None

    def kill9(self) -> None:
        """Ends it as a power cut does."""
        # A keeper may have put a successor in its place before we have waited for it.
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()

    def term(self) -> None:
        """Asks it to stop."""
        os.kill(self.pid, signal.SIGTERM)

    def stop(self, seconds: float = 40) -> int:
        """Asks it to stop and waits; the exit code."""
        if self.is_running:
            self.term()
        return self.wait_exit(seconds)

    def pause(self) -> None:
        """Freezes it."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> Self:
        """Starts it again once it has ended, and waits until it works."""
        return self.start().wait_started()

    @property
    def is_stopped(self) -> bool:
        """Whether it is frozen, by us or by itself."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    @property
    def memory_bytes(self) -> int:
        """What it holds in memory now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def log(self) -> Iterator[dict[str, Any]]:
        """The events since the latest start; a half-written last line is left out."""
        text = self.log_file.read_bytes() if self.starts else b""
        for line in text[: text.rfind(b"\n") + 1].splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Those of one name since the latest start."""
        return [event for event in self.log() if event.get("event") == name]

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of one HTTP path."""
        if self._http_port is None:
            self._http_port = self.wait_event("relay.started")["http"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._http_port}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """The sum over all labels of one metric."""
        lines = self.get("/metrics")[1].splitlines()
        named = [line for line in lines if line.partition(" ")[0].partition("{")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in named)

    def said(self, lines: int = 12) -> str:
        """The end of its log, of the units that went well only the last, and of what it wrote to stderr."""
        log = list(self.log())
        settled = [event for event in log if event.get("event") == "unit.settled"]
        last = settled[-1] if settled else None
        notable = [str(event) for event in log if event is last or event.get("event") != "unit.settled"][-lines:]
        text = self._file(self.starts, "err").read_text(errors="replace") if self.starts else ""
        errors = text.splitlines()[-lines:]
        return "; it said:\n" + "\n".join(["  " + line for line in [*notable, *errors]])

    def close(self) -> None:
        """Kills it if need be and removes its logs."""
        if self.is_running and self._process is not None:
            self._process.kill()
            self._process.wait()
        self._let_go()
        self._folder.cleanup()

    def _let_go(self) -> None:
        if self._lifeline is not None:
            self._lifeline.release()
            self._lifeline = None


class Fleet:
    """Several relays on one outbox, and a keeper, as an orchestrator would be, that starts again those that died.

    Args:
        failpoints: armed in the first start of the first relay only.
    """

    def __init__(
        self,
        dsn: str,
        bootstrap: str,
        count: int,
        *,
        settings: Mapping[str, str] = NOTHING,
        failpoints: str = "",
    ) -> None:
        self.relays = [
            RelayProcess(dsn, bootstrap, settings=settings, failpoints="" if index else failpoints)
            for index in range(count)
        ]
        self.deaths: list[int] = []
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._keeper = threading.Thread(target=self._keep, name="fleet-keeper", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Starts all and returns when each works, or has met its failpoint."""
        for relay in self.relays:
            relay.start()
        self._keeper.start()
        for relay in self.relays:
            self.wait_started(relay)

    def wait_started(self, relay: RelayProcess, seconds: float = 40) -> None:
        """Returns when this relay works, however often it has to be started for that."""
        eventually(lambda: relay.events("relay.started"), seconds, f"relay {relay.number} to start")

    def wait_seconds(self, seconds: float) -> None:
        """For faults that last: time is the condition here."""
        self._stopping.wait(seconds)

    @property
    def kills(self) -> int:
        """How many ended without being asked to, by a signal."""
        return len([code for code in self.deaths if code < 0])

    def replace(self, index: int) -> float:
        """Stops one cleanly and starts it again, as a deploy does; the seconds that stopping took.

        Raises:
            AssertionError: it did not exit with 0.
        """
        relay = self.relays[index]
        self.wait_started(relay)
        with self._lock:
            started = time.monotonic()
            code = relay.stop()
            seconds = time.monotonic() - started
            assert code == 0, f"exit code {code}{relay.said()}"
            relay.start()
        self.wait_started(relay)
        return seconds

    def stop(self) -> list[int]:
        """Asks all to stop, once they work: before that a signal ends them as it ends any program. The exit codes."""
        for relay in self.relays:
            if relay.is_running:
                relay.resume()
            self.wait_started(relay)
        with self._lock:
            self._stopping.set()
        for relay in self.relays:
            if relay.is_running:
                relay.term()
        return [relay.wait_exit() for relay in self.relays]

    def close(self) -> None:
        """Kills what is left."""
        with self._lock:
            self._stopping.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for relay in self.relays:
            relay.close()

    def said(self) -> str:
        """What each wrote last."""
        return "\n".join(f"relay {relay.number}{relay.said(25)}" for relay in self.relays)

    def _keep(self) -> None:
        while not self._stopping.wait(0.02):
            with self._lock:
                for relay in self.relays:
                    if not self._stopping.is_set() and relay.starts and not relay.is_running:
                        self.deaths.append(relay.exit_code or 0)
                        relay.start()
