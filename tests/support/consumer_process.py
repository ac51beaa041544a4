"""A consumer in a process of its own, which tests may kill: `python -m tests.support.consumer_process '{...}'`.

Its hook, if `journal` is given, appends a line per call to that file. It ends when stdin does, or with status 1 when
the consumer cannot go on. Killed, its group is rid of it after a second and a half.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from relay.cache import RedisShared
from relay.consumer import Change, Consumer, HookSettings
from relay.failpoints import arm

QUICK = {"session.timeout.ms": 1500, "heartbeat.interval.ms": 300}


class Call(NamedTuple):
    """Of a hook, with the machine's clock."""

    entity: str
    id: str
    version: int
    at: int


def calls(*journals: Path) -> list[Call]:
    """What is in these journals, in the order of time. A line that a killed process left unfinished does not count."""
    found = []
    for journal in journals:
        for line in journal.read_text().splitlines() if journal.exists() else ():
            fields = line.split()
            if len(fields) == 4:
                found.append(Call(fields[0], fields[1], int(fields[2]), int(fields[3])))
    return sorted(found, key=lambda call: call.at)


class ConsumerProcess:
    """The process. Leaves with the `with` block, at the latest."""

    def __init__(self, *, failpoints: str = "", journal: Path | None = None, **settings: Any) -> None:
        self.settings = settings | ({} if journal is None else {"journal": str(journal)})
        self._environment = {**os.environ, "RELAY_FAILPOINTS": failpoints}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, failpoints: str | None = None) -> None:
        """Starts it, with other failpoints than the last time if given."""
        if failpoints is not None:
            self._environment["RELAY_FAILPOINTS"] = failpoints
        command = [sys.executable, "-m", "tests.support.consumer_process", json.dumps(self.settings)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=self._environment)

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def status(self) -> int | None:
        """How it ended; negative for a signal; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def wait(self, timeout_seconds: float = 60) -> int:
        """Waits until it has ended."""
        assert self._process is not None
        return self._process.wait(timeout_seconds)

    def stop(self) -> int:
        """Stops it cleanly."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.wait()

    def kill(self) -> None:
        """Ends it as a crash does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def send(self, what: signal.Signals) -> None:
        """Freezes or thaws it."""
        os.kill(self.pid, what)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


def main(settings: dict[str, Any]) -> None:
    """The process itself."""
    arm(os.environ)
    journal, entity = settings.get("journal"), settings.get("entity", "*")
    consumer = Consumer(
        kafka={"bootstrap.servers": settings["bootstrap"], **settings.get("properties", QUICK)},
        topics=[settings["topic"]],
        group=settings["group"],
        shared=RedisShared.from_url(settings["redis"], settings["namespace"]),
        hooks=HookSettings(hook_seconds=5),
    )
    if journal is not None:
        lock = threading.Lock()

        @consumer.on(entity)
        def note(change: Change) -> None:
            with lock, Path(journal).open("a") as out:
                out.write(f"{change.entity} {change.id} {change.version} {time.monotonic_ns()}\n")

    consumer.start()
    threading.Thread(target=lambda: (sys.stdin.read(), consumer.stop()), daemon=True).start()
    consumer.wait()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
