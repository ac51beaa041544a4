"""The service under examples/storefront, as its clients see it: two instances behind one address."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from relay.demo.server import Lifeline, free_port
from tests.support.hosts import EXAMPLES
from tests.support.redis import private_server
from tests.support.relay_process import RelayProcess, eventually

ROOT = EXAMPLES / "storefront"


class Instance:
    """One `uvicorn storefront.app:app`."""

    def __init__(self, environ: dict[str, str]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "uvicorn", "storefront.app:app", "--port", str(port), "--log-level", "warning"]
        path = os.pathsep.join([str(ROOT), *sys.path])
        self.process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environ | {"PYTHONPATH": path})
        self._lifeline = Lifeline(self.process.pid, stop_signal="KILL", folder=None)

    def answers(self) -> bool:
        """Whether it has started."""
        assert self.process.poll() is None
        try:
            return httpx.get(self.url + "/products/0").status_code == 404
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Stops it as a deploy does."""
        self.process.terminate()
        try:
            # uvicorn shuts down, and then ends by the signal that it was sent.
            assert self.process.wait(60) in (0, -signal.SIGTERM)
        finally:
            self.process.kill()
            self._lifeline.release()


@pytest.fixture
def instances(database, kafka) -> Iterator[list[Instance]]:
    with ExitStack() as parts:
        kafka.create_topic("relay.changes")
        parts.callback(kafka.delete_topic, "relay.changes")
        redis = parts.enter_context(private_server())
        relay = parts.enter_context(RelayProcess(database, kafka.bootstrap))
        relay.wait_started()
        environ = {
            "DATABASE_URL": database.replace("postgresql://", "postgresql+asyncpg://"),
            "KAFKA": kafka.bootstrap,
            "REDIS_URL": redis.url,
            "SESSION_KEY": "a key of tests, of 32 bytes or so",
        }
        instances = []
        for _ in range(2):
            instance = Instance(environ)
            parts.callback(instance.close)
            eventually(instance.answers, 60, "the storefront")
            instances.append(instance)
        yield instances


def test_the_storefront_serves_its_copies_and_every_client_its_own_writes(instances):
    """Whoever wrote reads it at once from any instance; everybody else soon, from memory; a search follows."""
    one, two = (instance.url for instance in instances)
    with httpx.Client() as writer, httpx.Client() as other:
        for price in range(10, 20):
            assert writer.put(f"{one}/products/7", json={"name": "Teapot", "price": price}).status_code == 200
            seen = writer.get(f"{two}/products/7").json()
            assert (seen["price"], seen["version"]) == (f"{price}.00", price - 9)

        def is_near(url: str) -> bool:
            found = other.get(f"{url}/products/7").json()
            return (found.get("price"), found.get("from")) == ("19.00", "local")

        for url in (one, two):
            eventually(lambda url=url: is_near(url), 60, "the newest price from memory")
        assert [each["name"] for each in other.get(f"{two}/search", params={"text": "tea"}).json()] == ["Teapot"]
        writer.put(f"{one}/products/8", json={"name": "Tea strainer", "price": 3})

        def is_found() -> bool:
            found = other.get(f"{two}/search", params={"text": "tea"}).json()
            return [each["name"] for each in found] == ["Tea strainer", "Teapot"]

        eventually(is_found, 25, "the search to follow")
