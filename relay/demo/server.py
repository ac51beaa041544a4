"""What the embedded servers have in common: a child process that does not outlive us, on a port that stays its own."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Self

ports: range = range(15_000, 32_000)
"""Where servers get theirs from. Test processes that run side by side share it out among them."""

_handed_out: set[int] = set()


def free_port() -> int:
    """A free TCP port on the loopback, below the range from which the kernel draws client ports.

    The port is kept while its server is down. One from the kernel's own range could be taken meanwhile by any
    outgoing connection, and the restart would fail once in a thousand runs.
    """
    draw = random.SystemRandom()
    while True:
        port = draw.choice(ports)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                if port not in _handed_out:
                    _handed_out.add(port)
                    return port


class Lifeline:
    """Stops a child process when this one is gone, however it went, and removes the child's folder.

    The shell reads from a pipe that only we hold open: end of file means that we died, a line means that the
    child was stopped on purpose. It has its own session, so that Ctrl-C in the terminal does not cut it.
    """

    _SCRIPT: Final = (
        'read -r line && exit 0; kill -s "$1" "$2"; n=0;'
        ' while kill -0 "$2" 2>/dev/null && [ $n -lt 50 ]; do sleep 0.1; n=$((n+1)); done;'
        ' kill -s KILL "$2" 2>/dev/null; [ -z "$3" ] || rm -rf -- "$3"'
    )

    def __init__(self, pid: int, *, stop_signal: str, folder: Path | None) -> None:
        command = ["/bin/sh", "-c", self._SCRIPT, "lifeline", stop_signal, str(pid), str(folder or "")]
        self._watch = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )

    def release(self) -> None:
        """Lets the child go: from here on its pid may belong to somebody else."""
        with contextlib.suppress(OSError, ValueError):
            self._watch.communicate(b"released\n", timeout=10)


class EmbeddedServer:
    """A server on a loopback port that stays the same across restarts. Whoever derives says how it starts and ends."""

    error: ClassVar[type[RuntimeError]] = RuntimeError
    """Raised with the end of the server's log."""
    poll_seconds: ClassVar[float] = 0.01

    def __init__(self, name: str, port: int | None, data_dir: Path) -> None:
        self.port = port or free_port()
        self.data_dir = data_dir
        self._name = name
        self._log = data_dir / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: Lifeline | None = None
        self._owner = os.getpid()
        atexit.register(self._close_at_exit)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_running(self) -> bool:
        """Whether the process exists, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The server's process id.

        Raises:
            RuntimeError: the server is not running.
        """
        if self._process is None or self._process.poll() is not None:
            raise self.error(f"{self._name} on port {self.port} is not running{self._said()}")
        return self._process.pid

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the server's log, empty before the first start."""
        try:
            text = self._log.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def start(self) -> None:
        """Returns when the server answers; a running one is left alone."""
        raise NotImplementedError

    def kill(self) -> None:
        """Ends the server at once, as a crash would."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the server and deletes what is temporary."""
        raise NotImplementedError

    def _launch(
        self, command: list[str], *, stop_signal: str, folder: Path | None, **isolation: Any
    ) -> subprocess.Popen[bytes]:
        """Starts the process, with its output in the log, and ties it to us. `folder` goes with it if we are killed."""
        with self._log.open("ab") as log:
            process = self._process = subprocess.Popen(command, stdout=log, stderr=log, **isolation)
        self._lifeline = Lifeline(process.pid, stop_signal=stop_signal, folder=folder)
        return process

    def _await(self, process: subprocess.Popen[bytes], is_ready: Callable[[], bool], timeout_seconds: float) -> None:
        """Returns when it is ready. One that has ended, or takes too long, is killed and told of."""
        deadline = time.monotonic() + timeout_seconds
        while process.poll() is None and time.monotonic() < deadline:
            if is_ready():
                return
            time.sleep(self.poll_seconds)
        ended, said = process.poll(), self._said()
        self.kill()
        why = f"was not ready in {timeout_seconds:g} s" if ended is None else f"ended with {ended} at its start"
        raise self.error(f"{self._name} on port {self.port} {why}{said}")

    def _close_at_exit(self) -> None:
        """A forked child inherits this hook, and must not take the server down with it."""
        if os.getpid() == self._owner:
            self.close()

    def _let_go(self) -> None:
        self._process = None
        if self._lifeline is not None:
            self._lifeline.release()
            self._lifeline = None

    def _said(self) -> str:
        tail = self.log_tail()
        return f"; its log ends with:\n{tail}" if tail else ""
