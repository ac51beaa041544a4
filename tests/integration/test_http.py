"""The HTTP side as a program among others: its port, its methods, its formats, and clients that are no good."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import resource
import socket
import threading
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_metrics

from relay import health
from relay.demo.server import free_port
from relay.errors import ConfigError
from relay.health import Answer, Health, route
from relay.metrics import Metrics
from tests.support import scenario
from tests.support.relay_process import RelayProcess, eventually

YES = {"/livez": route(lambda: Answer(200, "text/plain", b"yes"))}
OPEN_METRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
"""What Prometheus sends."""


@contextlib.contextmanager
def serving(port: int = 0, host: str = "127.0.0.1", routes=YES) -> Iterator[Health]:
    served = Health(host, port or free_port(), routes)
    served.start()
    try:
        yield served
    finally:
        served.stop()


def request(port: int, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def scrape(host: str, port: int) -> None:
    """Asks, and lets the server close first: its side of the connection keeps the port for a minute then."""
    with socket.create_connection((host, port), timeout=20) as client:
        client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert b"".join(iter(lambda: client.recv(4096), b"")).endswith(b"yes")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])
def test_a_port_can_be_taken_again_right_after_a_scrape(host):
    """Within the minute in which the kernel remembers connections that were closed."""
    with serving(host=host) as first:
        scrape("127.0.0.1" if host == "0.0.0.0" else host, first.port)
    with serving(first.port, host) as again:
        assert again.port == first.port


@pytest.mark.parametrize(
    ("host", "other"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")]
)
def test_a_port_that_another_process_listens_on_is_refused(host, other):
    """Taking a port again is not sharing it, not even by the way of another address."""
    with serving(host=host) as first:
        scrape("127.0.0.1", first.port)
        with pytest.raises(ConfigError, match=r"^RLY-203: .*Address already in use") as refused:
            Health(other, first.port, YES)
        assert refused.value.exit_code == 6
        assert request(first.port, "GET", "/livez")[0] == 200


@pytest.mark.parametrize("path", ["/livez", "/metrics", "/nothing"])
def test_head_is_get_without_a_body(path):
    """Load balancers and people ask with it."""
    with serving(routes={**YES, "/metrics": Metrics().application()}) as served:
        status, headers, body = request(served.port, "GET", path)
        assert (status, len(body)) == (404 if path == "/nothing" else 200, int(headers["Content-Length"]))
        head = request(served.port, "HEAD", path)
        assert head == (status, {**headers, "Date": head[1]["Date"]}, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_refused(method):
    """With the two that there are."""
    with serving() as served:
        status, headers, _ = request(served.port, method, "/livez")
        assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_prometheus_gets_the_format_and_the_encoding_that_it_asks_for():
    """Each is read back by Prometheus' own parser."""
    metrics = Metrics()
    metrics.published.inc(3)
    wanted = {family.name for family in metrics.registry.collect()}
    with serving(routes={"/metrics": metrics.application()}) as served:
        _, headers, plain = request(served.port, "GET", "/metrics")
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        found = {family.name: family for family in plain_metrics(plain.decode())}
        assert wanted <= set(found)
        assert next(sample.value for sample in found["relay_published_events"].samples) == 3
        _, headers, opened = request(served.port, "GET", "/metrics", Accept=OPEN_METRICS)
        assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        assert wanted == {family.name for family in open_metrics(opened.decode())}
        _, headers, packed = request(served.port, "GET", "/metrics", Accept_Encoding="gzip")
        assert headers["Content-Encoding"] == "gzip"
        assert len(packed) == int(headers["Content-Length"]) < len(plain)
        assert b"relay_published_events_total 3.0" in gzip.decompress(packed)


def dribble(client: socket.socket, stop: threading.Event) -> None:
    """Sends a header that has no end, a byte at a time, for as long as somebody takes it."""
    with contextlib.suppress(OSError):
        while not stop.wait(0.2):
            client.sendall(b"x")


def test_slow_clients_cannot_keep_a_probe_from_being_answered(monkeypatch):
    """However many there are, and although each of them says something all the time."""
    monkeypatch.setattr(health, "CONNECTION_SECONDS", 1.0)
    stop = threading.Event()
    with serving() as served, contextlib.ExitStack() as clients:
        clients.callback(stop.set)
        for _ in range(5 * health.CONNECTIONS_MAX):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=20))
            client.sendall(b"GET /livez HTTP/1.1\r\nX: ")
            threading.Thread(target=dribble, args=(client, stop), daemon=True).start()
            assert served.connections <= 2 * health.CONNECTIONS_MAX
        assert request(served.port, "GET", "/livez")[0] == 200
        # No more come, and those that are there have had their time.
        eventually(lambda: served.connections == 0, 20, "the connections to be cut")
        assert request(served.port, "GET", "/livez")[0] == 200


def test_a_relay_publishes_while_slow_clients_would_take_all_its_descriptors(database, kafka, topic):
    """What is left to it are few, and a database that ends its sessions makes it need new ones."""
    with RelayProcess(database, kafka.bootstrap) as relay, contextlib.ExitStack() as clients:
        port = relay.wait_started().events("relay.started")[0]["http"]
        scenario.ask(database, "SELECT relay.emit(%s, 'k', 'v'::text)", topic)
        scenario.wait_empty(database, 30)
        resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, (100, 100))
        for _ in range(200):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            client.sendall(b"GET /livez HTTP/1.1\r\nX: ")
        ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'relay w%'"
        assert scenario.ask(database, ended) >= 2
        scenario.ask(database, "SELECT relay.emit(%s, 'k', 'v'::text)", topic)
        scenario.wait_empty(database, 30)
        assert relay.get("/livez")[0] == 200
        assert relay.stop() == 0
