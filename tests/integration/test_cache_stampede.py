"""Readers who all miss one key load it once: across processes while Redis answers, per process while it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from relay.cache import Cache, Need, RedisShared, Versioned
from tests.support.redis import private_server
from tests.support.stampede import NAMESPACE, loads_of

PATIENCE_SECONDS = 20.0


@pytest.fixture(scope="module")
def server():
    with private_server() as server:
        shared = RedisShared.from_url(server.url, NAMESPACE)
        shared.open("test", ())
        shared.close()
        yield server


def test_readers_of_several_processes_load_a_key_once_while_redis_answers(server):
    assert sum(loads_of(server.url, processes=3, readers=500, start_seconds=2.0)) == 1


def test_each_process_loads_a_key_once_while_redis_is_down():
    with private_server() as gone:
        url = gone.url
    assert loads_of(url, processes=2, readers=500, start_seconds=2.0) == [1, 1]


def test_threads_of_two_caches_load_a_key_once(server):
    """Two caches are as good as two processes: they share nothing but Redis."""
    loads: list[int] = []
    caches = [Cache("test", shared=RedisShared.from_url(server.url, NAMESPACE, timeout_seconds=20)) for _ in range(2)]

    def load(id: int, need: Need) -> Versioned[str]:  # noqa: A002
        loads.append(id)
        time.sleep(0.05)
        return Versioned("value", 1)

    users = [
        cache.entity("user", wait_seconds=PATIENCE_SECONDS, load_seconds=PATIENCE_SECONDS)(load) for cache in caches
    ]
    values: list[str] = []
    threads = [threading.Thread(target=lambda user=user: values.append(user(1))) for user in users * 20]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert values == ["value"] * 40
    assert loads == [1]
    for cache in caches:
        cache.close()


def test_a_process_that_is_killed_while_it_loads_holds_up_the_others_for_a_while_only(server):
    program = (
        "import sys, time\n"
        "from relay.cache import Cache, RedisShared, Versioned\n"
        f"cache = Cache('test', shared=RedisShared.from_url({server.url!r}, {NAMESPACE!r}, timeout_seconds=20))\n"
        "@cache.entity('killed')\n"
        "def user(id, need):\n"
        "    print('loading', flush=True)\n"
        "    time.sleep(60)\n"
        "user(1)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "loading\n"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with Cache("test", shared=RedisShared.from_url(server.url, NAMESPACE, timeout_seconds=20)) as cache:
        loads: list[int] = []

        @cache.entity("killed", wait_seconds=0.2)
        def user(id: int, need: Need) -> Versioned[str]:  # noqa: A002
            loads.append(id)
            return Versioned("value", 1)

        assert user(1) == "value"
        assert loads == [1]
