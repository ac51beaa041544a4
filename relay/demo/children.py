"""Child processes of the demo: their output is read line by line, and none of them survives us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from relay.demo.server import Lifeline

WORDS_MAX: Final = 20


class Child:
    """One `python -m ...` in a session of its own: Ctrl-C in the terminal is for us, and we decide about the rest.

    Args:
        arguments: what follows `python -m`.
        on_line: called from a thread of ours with each line of stdout; False means that it was no message of the
            child's but its last words, which are kept for whoever has to say why it ended.
    """

    def __init__(self, arguments: list[str], environ: Mapping[str, str], on_line: Callable[[str], bool]) -> None:
        self._on_line = on_line
        self._words: deque[str] = deque(maxlen=WORDS_MAX)
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environ),
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            bufsize=1,
        )
        self._lifeline: Lifeline | None = Lifeline(self._process.pid, stop_signal="KILL", folder=None)
        self._reading = threading.Thread(target=self._read, name=f"output of {arguments[0]}", daemon=True)
        self._reading.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative if a signal ended it."""
        return self._process.poll()

    @property
    def last_words(self) -> str:
        """The end of what it said that was no message: a traceback's last line, an error's one line."""
        self._reading.join(0.5)
        return self._words[-1] if self._words else ""

    def tell(self, line: str) -> None:
        """Writes one line to its stdin; one that has ended hears nothing."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless it has ended."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, and everything it said was read, within this time."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._reading.join(2)
        return True

    def close(self) -> None:
        """Ends it without ceremony, if it has not ended. May be called twice."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._lifeline is not None:
            self._lifeline.release()
            self._lifeline = None
        self._reading.join(2)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _read(self) -> None:
        with contextlib.suppress(ValueError):
            for line in self._process.stdout or ():
                if line.strip() and not self._on_line(line):
                    self._words.append(line.strip())


def clean_environ(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Our environment without any setting of Relay: what somebody exported for production must not reach the demo."""
    kept = {name: value for name, value in environ.items() if not name.startswith("RELAY_")}
    # An empty file, so that a relay.toml in the working directory is not read either.
    return {**kept, "RELAY_CONFIG": os.devnull, "PYTHONUNBUFFERED": "1"}
