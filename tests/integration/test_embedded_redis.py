"""The Redis of the demo and the tests does what its methods say, and ends with its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from relay.demo.redis import EmbeddedRedis, RedisError
from tests.support.redis import private_server
from tests.support.relay_process import eventually

OWNER = """\
import sys, time
from relay.demo.redis import EmbeddedRedis
server = EmbeddedRedis()
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_restart_is_a_flush_on_the_same_port():
    """A killed server comes back on its port, with nothing in it."""
    with private_server() as server:
        port = server.port
        assert server.say("SET a 1") == "+OK"
        server.restart()
        assert server.port == port
        assert server.say("EXISTS a") == ":0"


def test_flush_removes_everything():
    """After a flush no key is left."""
    with private_server() as server:
        server.say("SET a 1")
        server.flush()
        assert server.say("DBSIZE") == ":0"


def test_a_paused_server_answers_nothing_until_it_is_resumed():
    """Pausing freezes the process; resuming lets it answer what was sent meanwhile."""
    with private_server() as server:
        server.pause()
        with pytest.raises(TimeoutError):
            server.say("PING", timeout_seconds=0.2)
        server.resume()
        assert server.say("PING") == "+PONG"


def test_a_stopped_server_has_no_pid_and_says_what_it_logged():
    """Asking a stopped server for its pid is an error that carries the end of its log."""
    with private_server() as server:
        server.stop()
        with pytest.raises(RedisError, match="not running"):
            _ = server.pid


def test_a_setting_that_redis_refuses_is_an_error_with_its_words():
    """A server that cannot start says why."""
    with pytest.raises(RedisError, match="maxmemory-policy"), private_server({"maxmemory-policy": "none-such"}):
        pass


def test_the_server_dies_with_an_owner_that_was_killed():
    """Not even SIGKILL of its owner leaves a server behind."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert is_alive(pid)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    eventually(lambda: not is_alive(pid), 20, "the server to be gone")


def test_a_closed_server_may_be_closed_again():
    """Closing twice, or before the start, is allowed."""
    server = EmbeddedRedis()
    server.close()
    server.close()
