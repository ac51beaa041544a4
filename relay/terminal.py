"""Single keys from the terminal, and the terminal as it was before, however this ends."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def raw_keys() -> Iterator[int]:
    """Turns line editing and echo off, Ctrl-C stays what it is; gives the descriptor to read from.

    Ctrl-Z is ignored meanwhile: our processes would go on behind a stopped screen.
    """
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    suspend = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        tty.setcbreak(terminal)
        yield terminal
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
        signal.signal(signal.SIGTSTP, suspend)


def key(terminal: int, seconds: float) -> str:
    """The next key in lower case; empty if none was pressed, `q` if the terminal is gone."""
    if not select.select([terminal], [], [], seconds)[0]:
        return ""
    pressed = os.read(terminal, 1)
    return pressed.decode("ascii", errors="ignore").lower() if pressed else "q"
