"""Each alert of docs/OPERATING.md, played on real relays: silent while all is well, firing, and silent again.

The expressions are evaluated on what /metrics answers, as Prometheus would: a comparison holds for each series by
itself, and an increase needs the series at both ends.
"""

from __future__ import annotations

import itertools
import random
import re
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.demo.server import free_port
from tests.support import commands, nemesis, scenario
from tests.support.documents import DOCS
from tests.support.kafka import KafkaCluster, fresh_topic
from tests.support.proxy import TcpProxy
from tests.support.relay_process import SHORT, RelayProcess, eventually

ALERT = re.compile(r"^\| ([^|]+?) \| `(.+)` \|$", re.MULTILINE)
COMPARISON = re.compile(r"(\w+) (==|>) (\d+)")
ABSENCE = re.compile(r"absent\((\w+)\)")
INCREASE = re.compile(r'increase\((\w+)(?:\{(\w+)="(\w+)"\})?\[\d+m\]\) > 0')

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def alerts() -> dict[str, str]:
    """State to expression, as the document has them."""
    text = (DOCS / "OPERATING.md").read_text(encoding="utf-8")
    return dict(ALERT.findall(text.partition("\n## Alerts\n")[2].partition("\n## ")[0]))


def series(relay: RelayProcess) -> Series:
    """Everything that a scrape of this relay brings; nothing if it does not answer."""
    try:
        text = relay.get("/metrics")[1]
    except (urllib.error.URLError, ConnectionError):
        return {}
    families = text_string_to_metric_families(text)
    samples = itertools.chain.from_iterable(family.samples for family in families)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


def holds(expression: str, before: Series, now: Series) -> bool:
    """Whether the expression has a result."""
    if found := ABSENCE.fullmatch(expression):
        return not any(name == found[1] for name, _ in now)
    if found := INCREASE.fullmatch(expression):
        labels = ((found[2], found[3]),) if found[2] else ()
        start, end = before.get((found[1], labels)), now.get((found[1], labels))
        return start is not None and end is not None and end > start
    found = COMPARISON.fullmatch(expression)
    assert found, f"this test cannot evaluate {expression}"
    limit = float(found[3])
    values = [value for (name, _), value in now.items() if name == found[1]]
    return any(value == limit if found[2] == "==" else value > limit for value in values)


@dataclass
class Stage:
    """One relay under one alert, and all that a play may break."""

    expression: str
    dsn: str
    kafka: KafkaCluster
    folder: Path
    before: Series = field(default_factory=dict)

    def relay(self, *, dsn: str = "", failpoints: str = "", **settings: str) -> RelayProcess:
        """One that can be restarted on the same port, as an orchestrator does."""
        port = {"RELAY_HTTP__PORT": str(free_port())}
        return RelayProcess(
            dsn or self.dsn, self.kafka.bootstrap, settings={**SHORT, **port, **settings}, failpoints=failpoints
        )

    def is_silent(self, relay: RelayProcess) -> None:
        """Returns once a working relay does not fire, and remembers its counters."""
        eventually(lambda: relay.get("/readyz")[0] == 200, 30, "the relay to be ready")
        self.before = series(relay)
        assert self.before
        assert not holds(self.expression, self.before, series(relay))

    def fires(self, relay: RelayProcess) -> None:
        eventually(lambda: holds(self.expression, self.before, series(relay)), 60, f"{self.expression} to fire")

    def clears(self, relay: RelayProcess) -> None:
        """Silent again; a counter is, when it has stopped to grow."""

        def is_over() -> bool:
            before, self.before = self.before, series(relay)
            return bool(self.before) and not holds(self.expression, before, self.before)

        eventually(is_over, 60, f"{self.expression} to clear")

    def falls_asleep(self, relay: RelayProcess) -> None:
        eventually(lambda: relay.metric("relay_asleep") == 1, 30, "the relay to fall asleep")


def events_do_not_flow(stage: Stage) -> None:
    """With a topic that is missing, seen alike by two relays that have skipped its events, awake and asleep."""
    topic = f"missing-{free_port()}"
    with stage.relay() as one, stage.relay() as two:
        for relay in (one, two):
            relay.wait_started()
            stage.is_silent(relay)
        scenario.ask(stage.dsn, "SELECT relay.emit(%s, 'k', 'v'::text)", topic)
        eventually(lambda: [*one.events("topic.paused"), *two.events("topic.paused")], 30, "the topic to be paused")
        # What has waited for two minutes, without the wait. A relay that looks at it just then says that it has moved.
        scenario.ask(stage.dsn, "UPDATE relay.outbox SET created_at = created_at - interval '2 min' RETURNING id")
        others = fresh_topic(stage.kafka)
        for relay in (one, two):
            stage.fires(relay)
            scenario.ask(stage.dsn, "SELECT relay.emit(%s, 'k', 'v'::text)", others)
            stage.fires(relay)
            stage.falls_asleep(relay)
            is_between_two_looks(stage.dsn, relay)
        stage.kafka.create_topic(topic)
        scenario.wait_empty(stage.dsn, 30)
        for relay in (one, two):
            stage.clears(relay)
            assert relay.metric("relay_oldest_event_age_seconds") == 0


def is_between_two_looks(dsn: str, relay: RelayProcess) -> None:
    """The age is that of this moment, not of one before it."""
    query = "SELECT extract(epoch FROM clock_timestamp() - min(created_at))::float8 FROM relay.outbox"
    # What an answer says may be a second old.
    low = scenario.ask(dsn, query) - 1
    age = relay.metric("relay_oldest_event_age_seconds")
    assert low <= age <= scenario.ask(dsn, query)


def no_relay_works(stage: Stage) -> None:
    """Neither before it starts nor after it stopped."""
    with stage.relay() as relay:
        relay.wait_started()
        stage.is_silent(relay)
        assert relay.stop() == 0
        stage.fires(relay)
        relay.restart()
        stage.clears(relay)


def kafka_is_away(stage: Stage) -> None:
    """Asleep, without an event that waits."""
    with stage.relay() as relay:
        relay.wait_started()
        stage.is_silent(relay)
        stage.falls_asleep(relay)
        stage.kafka.down()
        stage.fires(relay)
        stage.kafka.up()
        stage.clears(relay)


def the_database_is_away(stage: Stage) -> None:
    """What only the database knows is absent meanwhile."""
    port = scenario.ask(stage.dsn, "SELECT inet_server_port()")
    with TcpProxy(port) as proxy, stage.relay(dsn=nemesis.through(proxy, stage.dsn)) as relay:
        relay.wait_started()
        stage.is_silent(relay)
        assert relay.metric("relay_oldest_event_age_seconds") == 0
        proxy.refuse()
        proxy.cut()
        stage.fires(relay)
        eventually(lambda: not {name for name, _ in series(relay)} & FROM_THE_DATABASE, 30, "the figures to be absent")
        proxy.accept()
        stage.clears(relay)
        eventually(lambda: {name for name, _ in series(relay)} >= FROM_THE_DATABASE, 30, "the figures to be back")


FROM_THE_DATABASE = {"relay_oldest_event_age_seconds", "relay_parked_now_events"}


def a_topic_cannot_be_written(stage: Stage) -> None:
    """Until somebody creates it."""
    topic = f"missing-{free_port()}"
    with stage.relay() as relay:
        relay.wait_started()
        stage.is_silent(relay)
        scenario.ask(stage.dsn, "SELECT relay.emit(%s, 'k', 'v'::text)", topic)
        stage.fires(relay)
        stage.kafka.create_topic(topic)
        stage.clears(relay)


def events_are_parked(stage: Stage) -> None:
    """By somebody else, in a database in which nothing else happens, while the relay sleeps."""
    with stage.relay() as relay:
        relay.wait_started()
        stage.is_silent(relay)
        stage.falls_asleep(relay)
        with psycopg.connect(stage.dsn) as connection:
            commands.park(connection, commands.emit(connection, "k", "x"))
        stage.fires(relay)
        stage.falls_asleep(relay)
        dropped = commands.relay("parked", "drop", "--all", "--yes", settings={"RELAY_DATABASE_URL": stage.dsn})
        assert dropped.returncode == 0, dropped.stderr
        stage.clears(relay)


def dead_letters(stage: Stage) -> None:
    """Also the first one of a relay: its counter is there from the start."""
    topic = fresh_topic(stage.kafka, config={"max.message.bytes": "20000"})
    stage.kafka.create_topic(topic + ".dead")
    file = stage.folder / "relay.toml"
    file.write_text('[topics."*"]\npoison = "topic"\n')
    with stage.relay(RELAY_CONFIG=str(file)) as relay:
        relay.wait_started()
        stage.is_silent(relay)
        with psycopg.connect(stage.dsn, autocommit=True) as connection:
            # Kafka compresses, and only what is still too large then is refused.
            connection.execute("SELECT relay.emit(%s, 'k', %s::bytea)", (topic, free_of_patterns(60_000)))
        stage.fires(relay)
        stage.clears(relay)


def free_of_patterns(size: int) -> bytes:
    return random.Random(7).randbytes(size)


def a_relay_stood_still(stage: Stage) -> None:
    """For longer than its fence allows, with a unit in hand."""
    takeover_seconds = 6.0
    settings = {"RELAY_DAEMON__TAKEOVER_SECONDS": f"{takeover_seconds}", "RELAY_DAEMON__UNITS_IN_FLIGHT": "1"}
    topic = fresh_topic(stage.kafka)
    with stage.relay(failpoints="after_claim=stop@2", **settings) as relay:
        relay.wait_started()
        scenario.ask(stage.dsn, "SELECT relay.emit(%s, 'k', 'v'::text)", topic)
        scenario.wait_empty(stage.dsn, 30)
        stage.is_silent(relay)
        scenario.ask(stage.dsn, "SELECT relay.emit(%s, 'k', 'v'::text)", topic)
        eventually(lambda: relay.is_stopped, 30, "the relay to stop itself")
        scenario.ask(stage.dsn, f"SELECT pg_sleep({0.76 * takeover_seconds})")
        relay.resume()
        stage.fires(relay)
        scenario.wait_empty(stage.dsn, 30)
        stage.clears(relay)


PLAYS: dict[str, Callable[[Stage], None]] = {
    "Events do not flow": events_do_not_flow,
    "No relay works": no_relay_works,
    "Kafka is away": kafka_is_away,
    "The database is away": the_database_is_away,
    "A topic cannot be written": a_topic_cannot_be_written,
    "Events are parked": events_are_parked,
    "Dead letters": dead_letters,
    "A relay stood still": a_relay_stood_still,
}


def test_every_alert_is_played():
    """And is the state of a line that says what to do."""
    text = (DOCS / "OPERATING.md").read_text(encoding="utf-8")
    states = text.partition("\n## States worth an alert\n")[2]
    assert set(alerts()) == set(PLAYS)
    for state in PLAYS:
        assert f"\n| {state} | " in states


@pytest.mark.parametrize("state", PLAYS)
def test_an_alert_fires_and_clears(state, database, own_kafka, tmp_path):
    """As the document has it."""
    PLAYS[state](Stage(alerts()[state], database, own_kafka, tmp_path))
