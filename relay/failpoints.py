"""Named places at which a test may kill, stop or fail this process. Nothing happens unless RELAY_FAILPOINTS is set.

`RELAY_FAILPOINTS="after_ack=kill@7,after_claim=stop"`: at the seventh passing of `after_ack` SIGKILL to ourselves, at
the first of `after_claim` SIGSTOP. Actions: kill, stop, raise, exit, sleep:SECONDS, and stop:SECONDS, which lets
librdkafka's threads finish what they have been given before they stand still as well.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping

from relay.errors import ConfigError

_known: set[str] = set()
_armed: dict[str, tuple[str, int]] = {}
_lock = threading.Lock()


class FailpointError(Exception):
    """What the action `raise` raises."""


def declare(*names: str) -> tuple[str, ...]:
    """Makes these names known to `arm`."""
    _known.update(names)
    return names


def arm(environ: Mapping[str, str]) -> None:
    """Reads RELAY_FAILPOINTS. Refused in production, and for names or actions that do not exist."""
    text = environ.get("RELAY_FAILPOINTS", "")
    if not text:
        return
    if environ.get("RELAY_ENV") == "production":
        raise ConfigError("RLY-203", "RELAY_FAILPOINTS is set in production", "unset RELAY_FAILPOINTS")
    for part in text.split(","):
        name, _, action = part.partition("=")
        action, _, count = action.partition("@")
        if name not in _known or action.partition(":")[0] not in ("kill", "stop", "raise", "exit", "sleep"):
            raise ConfigError("RLY-203", "RELAY_FAILPOINTS names no such point or action", "see relay/failpoints.py")
        _armed[name] = (action, int(count or 1))


def is_armed(name: str) -> bool:
    """Whether the next passing of `name` will act."""
    return name in _armed and _armed[name][1] == 1


def failpoint(name: str) -> None:
    """Passes the point `name`; costs one look into an empty dictionary when nothing is armed."""
    if not _armed:
        return
    with _lock:
        if name not in _armed:
            return
        action, left = _armed[name]
        if left > 1:
            _armed[name] = (action, left - 1)
            return
        del _armed[name]
    _act(action)


def _act(action: str) -> None:
    kind, _, argument = action.partition(":")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "stop":
        time.sleep(float(argument or 0))
        # To this thread: sent to the process, another thread may take it, and this one goes on for a while.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    elif kind == "exit":
        os._exit(70)
    elif kind == "sleep":
        time.sleep(float(argument or 1))
    else:
        raise FailpointError(kind)
