"""/livez, /readyz and /metrics: what they say when all is well, when a dependency is away, and when the relay stops.

Alive is not ready: an orchestrator restarts what is not alive, and no restart brings Postgres or Kafka back.
"""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest

from relay.config import Daemon, Database, Settings
from relay.daemon.relay import Relay
from relay.health import Answer, Health, route
from relay.metrics import Metrics
from tests.support import scenario
from tests.support.kafka import fresh_topic
from tests.support.proxy import TcpProxy
from tests.support.relay_process import RelayProcess, eventually

NO_KAFKA = "127.0.0.1:1"

#: The shortest that may be set.
SHORTEST = {
    "RELAY_DAEMON__PUBLISH_TIMEOUT_SECONDS": "1",
    "RELAY_DAEMON__TAKEOVER_SECONDS": "2",
    "RELAY_DAEMON__IDLE_SECONDS": "0.1",
    "RELAY_DATABASE__DEADLINE_SECONDS": "1",
    "RELAY_DATABASE__CONNECT_TIMEOUT_SECONDS": "1",
}
#: Three times the sum of publish time-out, deadline and idle pause: for longer than that nothing may stand still.
LIVEZ_SECONDS = 6.3


def ask(relay: RelayProcess, path: str) -> tuple[int, dict]:
    status, text = relay.get(path)
    return status, json.loads(text)


def test_a_relay_that_works_is_alive_and_ready_and_counts(database, kafka, topic):
    """200 from both, no problems, every metric there, and what was published is counted."""
    with RelayProcess(database, kafka.bootstrap) as relay:
        relay.wait_started()
        for _ in range(3):
            scenario.ask(database, "SELECT relay.emit(%s, 'k', 'v'::text)", topic)
        scenario.wait_empty(database, 30)
        status, live = ask(relay, "/livez")
        assert (status, live["alive"]) == (200, True)
        assert live["heartbeat_age_seconds"] < 5
        eventually(lambda: ask(relay, "/readyz") == (200, {"ready": True, "stopping": False, "problems": {}}))
        eventually(lambda: relay.metric("relay_published_events_total") == 3)
        assert relay.metric("relay_kafka_up") == 1
        assert relay.metric("relay_database_up") == 1
        assert relay.metric("relay_floor_breaches_total") == 0
        assert abs(relay.metric("relay_heartbeat_timestamp_seconds") - time.time()) < 30
        status, text = relay.get("/metrics")
        assert status == 200
        for family in Metrics().registry.collect():
            assert f"# HELP {family.name}" in text
        assert relay.stop() == 0


def test_the_format_of_metrics_is_the_one_that_prometheus_asks_for(database, kafka):
    """The content type names it; the probes answer in JSON."""
    with RelayProcess(database, kafka.bootstrap) as relay:
        port = relay.wait_started().events("relay.started")[0]["http"]
        eventually(lambda: relay.get("/readyz")[0] == 200)
        kinds = {}
        for path in ("/metrics", "/livez", "/readyz", "/livez?verbose"):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
                kinds[path] = answer.headers["Content-Type"]
        assert kinds["/metrics"] == "text/plain; version=0.0.4; charset=utf-8"
        assert {kinds["/livez"], kinds["/readyz"], kinds["/livez?verbose"]} == {"application/json"}
        for path in ("/", "/health", "/metrics/"):
            assert relay.get(path) == (404, "not found")


def test_while_the_database_is_away_a_relay_is_alive_and_not_ready(database, kafka, topic):
    """For longer than the limit of /livez; the reason is in /readyz, and all is well when it is back."""
    port = urlsplit(database).port
    with TcpProxy(port) as proxy:
        dsn = database.replace(f":{port}/", f":{proxy.port}/")
        with RelayProcess(dsn, kafka.bootstrap, settings=SHORTEST) as relay:
            relay.wait_started()
            # Its loop has turned: before that nothing can stand still.
            scenario.ask(database, "SELECT relay.emit(%s, 'k', 'v'::text)", topic)
            relay.wait_event("unit.settled")
            proxy.refuse()
            proxy.cut()
            relay.wait_event("database.lost")
            away = time.monotonic()
            while time.monotonic() < away + LIVEZ_SECONDS + 0.5:
                assert ask(relay, "/livez")[0] == 200
                status, ready = ask(relay, "/readyz")
                assert (status, ready["ready"], ready["stopping"]) == (503, False, False)
                assert ready["problems"]["database"].startswith("RLY-301: ")
                assert relay.metric("relay_database_up") == 0
                time.sleep(0.2)
            proxy.accept()
            relay.wait_event("database.back")
            eventually(lambda: ask(relay, "/readyz") == (200, {"ready": True, "stopping": False, "problems": {}}))
            assert relay.metric("relay_database_up") == 1
            assert relay.metric("relay_database_losses_total") >= 1
            assert relay.stop() == 0


def test_while_kafka_is_away_a_relay_is_alive_and_not_ready(database):
    """Whether or not there is an event that cannot be published; it stays where it is."""
    with RelayProcess(database, NO_KAFKA, settings=SHORTEST) as relay:
        relay.wait_started()
        scenario.ask(database, "SELECT relay.emit('t', 'k', 'v'::text)")
        relay.wait_event("kafka.lost")
        away = time.monotonic()
        while time.monotonic() < away + LIVEZ_SECONDS + 0.5:
            assert ask(relay, "/livez")[0] == 200
            status, ready = ask(relay, "/readyz")
            assert (status, ready["ready"], ready["stopping"]) == (503, False, False)
            assert ready["problems"]["kafka"].startswith("RLY-701: Kafka is not available: ")
            assert relay.metric("relay_kafka_up") == 0
            time.sleep(0.2)
        assert relay.metric("relay_kafka_losses_total") == 1
        assert relay.metric("relay_units_total") == 0, "nothing is claimed before Kafka has answered"
        assert scenario.ask(database, "SELECT count(*) FROM relay.outbox") == 1
        assert relay.stop() == 0


def test_a_relay_that_stops_says_so_to_whoever_asks(database, own_kafka):
    """Not ready, still alive: nothing is to be routed to it, and nobody has to kill it."""
    topic = fresh_topic(own_kafka)
    with RelayProcess(database, own_kafka.bootstrap) as relay:
        relay.wait_started()
        scenario.ask(database, "SELECT relay.emit(%s, 'k', 'v'::text)", topic)
        scenario.wait_empty(database, 30)
        own_kafka.pause(0)
        scenario.ask(database, "SELECT relay.emit(%s, 'k', 'v'::text)", topic)
        eventually(lambda: scenario.ask(database, scenario.HELD_UP), 30, "a unit that Kafka holds up")
        relay.term()
        relay.wait_event("relay.stopping")
        status, ready = ask(relay, "/readyz")
        assert (status, ready["ready"], ready["stopping"]) == (503, False, True)
        assert ask(relay, "/livez")[0] == 200
        own_kafka.resume(0)
        assert relay.wait_exit() == 0


@pytest.mark.parametrize(("host", "answers"), [("", False), ("0.0.0.0", True)])
def test_it_listens_on_the_loopback_unless_told_otherwise(database, host, answers):
    """The metrics name topics; who else may read them is the operator's decision."""
    settings = {"RELAY_HTTP__HOST": host} if host else {}
    with RelayProcess(database, NO_KAFKA, settings=settings) as relay:
        port = relay.wait_started().events("relay.started")[0]["http"]
        assert relay.get("/livez")[0] == 200
        # Another address of this machine; everything below 127.0.0.0/8 is.
        try:
            socket.create_connection(("127.0.0.2", port), timeout=20).close()
            answered = True
        except ConnectionRefusedError:
            answered = False
        assert answered == answers


def test_several_relays_on_one_host_need_no_configuration(database):
    """The second one finds the usual port taken, takes a free one, and says which."""
    with RelayProcess(database, NO_KAFKA) as one, RelayProcess(database, NO_KAFKA) as two:
        ports = [relay.wait_started().events("relay.started")[0]["http"] for relay in (one, two)]
        assert len(set(ports)) == 2
        for relay, port in zip((one, two), ports, strict=True):
            assert relay.get("/livez")[0] == 200
            assert [event["port"] for event in relay.events("http.elsewhere")] == [port] * (port != 9464)


def test_it_can_be_switched_off(database):
    """No thread, no port."""
    with RelayProcess(database, NO_KAFKA, settings={"RELAY_HTTP__ENABLED": "false"}) as relay:
        assert relay.wait_started().events("relay.started")[0]["http"] is None
        assert relay.stop() == 0


@pytest.fixture
def usual_port(monkeypatch) -> int:
    """The usual port of this test, since another program may have the real one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr("relay.health.DEFAULT_PORT", port)
    return port


def test_the_usual_port_is_taken_where_it_is_free(usual_port):
    """So that one relay per host is found where the documents say."""
    routes = {"/livez": route(lambda: Answer(200, "text/plain", b"yes"))}
    first, second = Health("127.0.0.1", 0, routes), Health("127.0.0.1", 0, routes)
    try:
        assert first.port == usual_port
        assert second.port != usual_port
    finally:
        # One of them never started, one is stopped twice.
        for health in (first, second, first):
            health.stop()


def test_a_loop_that_stands_still_is_not_alive():
    """After three times the longest step that it may take, and not a moment before."""
    settings = Settings(
        database=Database(url="postgresql://h/d", deadline_seconds=10),
        daemon=Daemon(publish_timeout_seconds=10, idle_seconds=1),
        kafka={"bootstrap.servers": "b"},
    )
    relay = Relay(settings, None)
    assert relay._livez().status == 200, "before the first turn"
    relay.state.heartbeat = 100.0
    relay.state.clock = lambda: 100.0 + 62.9
    assert relay._livez().status == 200
    relay.state.clock = lambda: 100.0 + 63.1
    assert relay._livez().status == 503


def test_a_client_that_hangs_up_or_says_nothing_disturbs_nobody(database):
    """Neither a half-written request nor a reset is a line on stderr, and the next one is answered."""
    with RelayProcess(database, NO_KAFKA) as relay:
        port = relay.wait_started().events("relay.started")[0]["http"]
        for said in (b"", b"GET /liv", b"\x16\x03\x01 no http\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                client.sendall(said)
        silent = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(20)]
        assert relay.get("/livez")[0] == 200
        for client in silent:
            client.close()
        assert relay.stop() == 0
        assert relay.said().splitlines()[-1].count("relay.stopped") == 1
