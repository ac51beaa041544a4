"""What a relay says of Kafka it has asked Kafka: at the start, while idle, and before a drain calls itself done."""

from __future__ import annotations

import json
import time

import pytest

from relay.daemon.presence import ASK_SECONDS
from tests.support import commands, scenario
from tests.support.kafka import fresh_topic
from tests.support.relay_process import FOR_TESTS, SHORT, RelayProcess, eventually

NO_KAFKA = "127.0.0.1:1"
SECRET = "geheim4711"
WRONG_LOGIN = {
    "RELAY_KAFKA__SECURITY_PROTOCOL": "sasl_plaintext",
    "RELAY_KAFKA__SASL_MECHANISM": "PLAIN",
    "RELAY_KAFKA__SASL_USERNAME": "ada",
    "RELAY_KAFKA__SASL_PASSWORD": SECRET,
}


def readiness(relay: RelayProcess) -> tuple[int, str]:
    """Status of /readyz, and what it says of Kafka."""
    status, text = relay.get("/readyz")
    return status, json.loads(text)["problems"].get("kafka", "")


def test_a_relay_with_a_wrong_address_is_never_ready(database):
    """With an empty outbox, where no event will ever tell; and with Kafka's own words."""
    with RelayProcess(database, NO_KAFKA) as relay:
        relay.wait_started()
        # Before the first answer it is not ready, either.
        while True:
            status, problem = readiness(relay)
            assert status == 503
            assert relay.metric("relay_kafka_up") == 0
            if problem:
                break
        assert problem.startswith("RLY-701: Kafka is not available: 127.0.0.1:1/bootstrap: Connect to ")
        assert "Connection refused" in problem
        assert "Connection refused" in relay.wait_event("kafka.lost")["reason"]
        assert relay.get("/livez")[0] == 200
        assert relay.stop() == 0


def test_a_relay_with_a_wrong_login_is_never_ready_and_says_why(database, kafka):
    """A roll-out with it must not look as if all were well. The password is in nothing that it says."""
    with RelayProcess(database, kafka.bootstrap, settings=WRONG_LOGIN) as relay:
        relay.wait_started()
        problem = eventually(lambda: readiness(relay)[1], 30, "the problem")
        assert readiness(relay)[0] == 503
        assert "_AUTHENTICATION" in problem
        assert "_AUTHENTICATION" in relay.wait_event("kafka.lost")["reason"]
        said = problem + relay.log_file.read_text()
        assert SECRET not in said
        assert relay.stop() == 0


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_an_idle_relay_notices_that_kafka_is_lost_and_that_it_is_back(database, own_kafka, how):
    """Asleep, without an event that could not be published; the first event afterwards is published."""
    topic = fresh_topic(own_kafka)
    with RelayProcess(database, own_kafka.bootstrap) as relay:
        relay.wait_started()
        eventually(lambda: relay.get("/readyz")[0] == 200, 30, "the relay to be ready")
        assert relay.metric("relay_kafka_up") == 1
        eventually(lambda: relay.metric("relay_asleep") == 1, 30, "the relay to fall asleep")
        own_kafka.down() if how == "stopped" else own_kafka.pause(0)
        relay.wait_event("kafka.lost", seconds=60)
        status, problem = readiness(relay)
        assert (status, problem.startswith("RLY-701: Kafka is not available: ")) == (503, True)
        assert relay.metric("relay_kafka_up") == 0
        own_kafka.up() if how == "stopped" else own_kafka.resume(0)
        relay.wait_event("kafka.back", seconds=60)
        assert readiness(relay) == (200, "")
        assert relay.metric("relay_kafka_up") == 1
        scenario.ask(database, "SELECT relay.emit(%s, 'k', 'v'::text)", topic)
        scenario.wait_empty(database, 30)
        assert relay.stop() == 0


def test_an_idle_relay_whose_kafka_answers_stays_ready(database, kafka):
    """Asking is no event: nothing is logged, and nothing comes and goes."""
    with RelayProcess(database, kafka.bootstrap) as relay:
        relay.wait_started()
        eventually(lambda: relay.get("/readyz")[0] == 200, 30, "the relay to be ready")
        eventually(lambda: relay.metric("relay_asleep") == 1, 30, "the relay to fall asleep")
        # For three questions: that nothing happens has no condition to wait for.
        time.sleep(3 * ASK_SECONDS + 1)
        # Another relay of this machine may have the usual port.
        assert [event["event"] for event in relay.log() if event["event"] != "http.elsewhere"] == ["relay.started"]
        assert relay.metric("relay_asleep") == 1


@pytest.mark.parametrize("events", [0, 3])
def test_a_drain_without_kafka_is_no_success(database, events):
    """It ends after the publish time-out with the status of a dependency that cannot be reached."""
    for _ in range(events):
        scenario.ask(database, "SELECT relay.emit('t', 'k', 'v'::text)")
    settings = {**FOR_TESTS, **SHORT, "RELAY_DATABASE_URL": database, "RELAY_KAFKA_BOOTSTRAP_SERVERS": NO_KAFKA}
    done = commands.relay("run", "--drain", settings=settings)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("RLY-304: the Kafka brokers cannot be reached: 127.0.0.1:1/bootstrap: Connect to ")
    assert done.stderr.count("\n") == 1
    assert scenario.ask(database, "SELECT count(*) FROM relay.outbox") == events


def test_a_drain_of_an_empty_outbox_asks_kafka_and_is_done(database, kafka):
    """The check that a roll-out can make."""
    settings = {**FOR_TESTS, "RELAY_DATABASE_URL": database, "RELAY_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}
    assert commands.relay("run", "--drain", settings=settings).returncode == 0
