"""Kafka as the relay's producer will meet it: brokers, where they say they are, and each topic that is needed.

Only asks for descriptions, which do not create a topic that is missing.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclOperation,
    AdminClient,
    ConfigResource,
    TopicDescription,
)

from relay.config import Settings
from relay.daemon.brokers import KEEP
from relay.daemon.diagnosis.finding import Finding, failed, ok, unknown, warning
from relay.daemon.diagnosis.postgres import Outbox

ASK_SECONDS = 2.0
DIAL_SECONDS = 1.0
CHANGES = "relay.changes"
"""Where `touch` writes to unless it is told otherwise."""
FRAMING_BYTES = 1024
"""What a record needs besides key, headers and payload: batch, Relay's own headers, trace context."""

CAUSES = {
    KafkaError._RESOLVE: "the name of the host is not known",
    KafkaError._TRANSPORT: "the connection is refused or breaks off",
    KafkaError._AUTHENTICATION: "the login is refused",
    KafkaError.SASL_AUTHENTICATION_FAILED: "the login is refused",
    KafkaError._SSL: "the TLS handshake fails",
}


@dataclass(slots=True)
class Look:
    """One look at one cluster."""

    properties: Mapping[str, Any]
    settings: Settings
    outbox: Callable[[], Outbox]
    """What the look at the database has found; called when it is needed, and may wait."""
    report: Callable[[Finding], None]
    _causes: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Reports each finding as soon as it is there."""
        kept: dict[str, Any] = {name: value for name, value in self.properties.items() if name.startswith(KEEP)}
        kept |= {"log_level": 0, "error_cb": self._on_error}
        admin = AdminClient(kept)
        places = self._reach(admin)
        if places is None:
            return
        if not self._listeners(places):
            self.report(unknown("topic", "no broker can be asked about topics", "see listeners"))
            return
        for finding in self._topics(admin):
            self.report(finding)

    def _on_error(self, error: KafkaError) -> None:
        """librdkafka's words name hosts and sometimes users; ours do not."""
        if error.code() in CAUSES:
            self._causes.append(CAUSES[error.code()])

    def _reach(self, admin: AdminClient) -> list[tuple[str, int]] | None:
        """Where the brokers say they are; asked of the addresses that were given, which may be others."""
        try:
            brokers = admin.list_topics(timeout=ASK_SECONDS).brokers.values()
        except KafkaException:
            # What went wrong with connections is told here only.
            admin.poll(0.1)
            servers = self.properties["bootstrap.servers"]
            cause = f": {self._causes[-1]}" if self._causes else ""
            text = f"none of {servers} answered within {ASK_SECONDS:g} s{cause}"
            fix = "check that Kafka runs, and RELAY_KAFKA_BOOTSTRAP_SERVERS and the security settings"
            self.report(failed("kafka", text, "RLY-304", fix))
            return None
        self.report(ok("kafka", f"{len(brokers)} broker{'' if len(brokers) == 1 else 's'}"))
        return sorted({(str(broker.host), int(broker.port)) for broker in brokers})

    def _listeners(self, places: list[tuple[str, int]]) -> bool:
        """A cluster names the addresses at which it is to be reached, and they may hold elsewhere only. True if one of
        them holds here."""
        away = unreachable(places)
        if away:
            named = ", ".join(f"{host}:{port}" for host, port in away)
            fix = "set advertised.listeners to addresses that hold here, or run `relay doctor` where the relay runs"
            text = f"brokers say they are at {named}, not reachable from here"
            self.report(failed("listeners", text, "RLY-811", fix))
        else:
            self.report(ok("listeners", "every broker is where it says it is"))
        return len(away) < len(places)

    def _topics(self, admin: AdminClient) -> Iterable[Finding]:
        outbox = self.outbox()
        needed = wanted(outbox, self.settings)
        described, limits = _describe(admin, list(needed))
        if outbox.topics is None:
            yield unknown("topic", "in which topics events wait could not be read", "see the checks of the database")
        for topic, is_due in needed.items():
            yield from judge(topic, described.get(topic), limits.get(topic, {}), outbox.event_bytes_max, is_due=is_due)


def wanted(outbox: Outbox, settings: Settings) -> dict[str, bool]:
    """Topics to look at, and whether events wait for each or settings name it."""
    found = dict.fromkeys(sorted({*(outbox.topics or ()), *settings.topics} - {"*"}), True)
    for topic in list(found):
        policy = settings.topic(topic)
        if policy.poison == "topic":
            found.setdefault(policy.dead_letter or f"{topic}.dead", False)
    found.setdefault(CHANGES, False)
    return found


def unreachable(places: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Those that take no connection within a second. Asked at once; a name service that hangs is not waited for."""
    reached: set[tuple[str, int]] = set()

    def dial(place: tuple[str, int]) -> None:
        try:
            with socket.create_connection(place, DIAL_SECONDS):
                reached.add(place)
        except OSError:
            return

    asked = list(places)
    threads = [threading.Thread(target=dial, args=(place,), daemon=True) for place in asked]
    for thread in threads:
        thread.start()
    until = time.monotonic() + DIAL_SECONDS
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return [place for place in asked if place not in reached]


def _describe(
    admin: AdminClient, topics: list[str]
) -> tuple[dict[str, TopicDescription | KafkaError], dict[str, dict[str, int]]]:
    """Descriptions, or why there is none; and the limits of each topic that is there."""
    until = time.monotonic() + ASK_SECONDS
    asked = admin.describe_topics(
        TopicCollection(topics), include_authorized_operations=True, request_timeout=ASK_SECONDS
    )
    found: dict[str, TopicDescription | KafkaError] = {}
    for topic, future in asked.items():
        try:
            found[topic] = future.result(max(0.1, until - time.monotonic()))
        except KafkaException as error:
            found[topic] = error.args[0]
        except TimeoutError:
            continue
    there = [topic for topic, description in found.items() if not isinstance(description, KafkaError)]
    return found, _limits(admin, there, until)


def _limits(admin: AdminClient, topics: list[str], until: float) -> dict[str, dict[str, int]]:
    limits: dict[str, dict[str, int]] = {}
    if not topics:
        return limits
    resources = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in topics]
    for resource, future in admin.describe_configs(resources, request_timeout=ASK_SECONDS).items():
        try:
            entries = future.result(max(0.1, until - time.monotonic()))
            limits[resource.name] = {
                name: int(entries[name].value) for name in ("max.message.bytes", "min.insync.replicas")
            }
        except (KafkaException, TimeoutError, KeyError, ValueError, TypeError):
            # No right to describe it, or a broker that does not tell: the findings say that it is unknown.
            continue
    return limits


def judge(
    topic: str,
    found: TopicDescription | KafkaError | None,
    limits: Mapping[str, int],
    event_bytes_max: int | None,
    *,
    is_due: bool,
) -> list[Finding]:
    """What is to be said of one topic; one line if all is well.

    Args:
        is_due: events wait for it or settings name it, so that it must be there now.
    """
    if found is None:
        return [unknown("topic", "the brokers did not describe it in time", "try again", subject=topic)]
    if isinstance(found, KafkaError):
        return [_missing(topic, found, is_due=is_due)]
    findings = [*_writable(topic, found, limits), *_size(topic, limits, event_bytes_max)]
    if all(finding.state == "ok" for finding in findings):
        partitions, replicas = len(found.partitions), min(len(one.replicas) for one in found.partitions)
        text = f"{partitions} partitions, {replicas} replicas, {limits['min.insync.replicas']} in sync needed"
        return [ok("topic", f"{text}, up to {limits['max.message.bytes']:,} bytes", subject=topic)]
    return findings


def _missing(topic: str, error: KafkaError, *, is_due: bool) -> Finding:
    if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
        fix = "create it; its events wait until it is there"
        if is_due:
            return failed("topic", "missing", "RLY-702", fix, subject=topic)
        return warning("topic", "missing, and not needed yet", "RLY-702", fix, subject=topic)
    if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        return failed("topic", "no right to describe it", "RLY-702", "grant Describe and Write on it", subject=topic)
    return unknown("topic", f"the brokers answered {error.name()}", "try again", subject=topic)


def _writable(topic: str, found: TopicDescription, limits: Mapping[str, int]) -> Iterable[Finding]:
    """Whether Kafka takes a record with acks=all now, and where it is kept then."""
    operations = found.authorized_operations
    if operations and not {AclOperation.WRITE, AclOperation.ALL} & set(operations):
        yield failed("topic", "no right to write it", "RLY-702", "grant Write on it", subject=topic)
    needed = limits.get("min.insync.replicas")
    if needed is None:
        yield unknown("topic", "its settings are hidden", "grant DescribeConfigs on it", subject=topic)
        return
    partitions: list[Any] = found.partitions
    short = [one.id for one in partitions if one.leader is None or len(one.isr) < needed]
    replicas = min(len(one.replicas) for one in partitions)
    if short:
        text = (
            f"{len(short)} of {len(found.partitions)} partitions have no leader or fewer than {needed} replicas in sync"
        )
        yield failed("topic", text, "RLY-813", "bring the missing brokers back", subject=topic)
    elif needed < 2:
        text = f"{replicas} replica{'' if replicas == 1 else 's'}, {needed} in sync needed: one broker can lose events"
        fix = "three replicas and min.insync.replicas=2, unless this is for development"
        yield warning("topic", text, "RLY-814", fix, subject=topic)
    elif needed >= replicas:
        text = f"all {replicas} replicas must be in sync: one broker that restarts stops it"
        yield warning("topic", text, "RLY-814", "one replica more than min.insync.replicas", subject=topic)


def _size(topic: str, limits: Mapping[str, int], event_bytes_max: int | None) -> Iterable[Finding]:
    """Compression is left out: an event that cannot be compressed has to go, too."""
    takes = limits.get("max.message.bytes")
    if takes is None:
        return
    if event_bytes_max is None:
        yield ok("topic", f"takes up to {takes:,} bytes", subject=topic)
    elif takes < event_bytes_max + FRAMING_BYTES:
        text = f"takes {takes:,} bytes, the outbox lets {event_bytes_max:,} and framing through"
        fix = f"set max.message.bytes to {event_bytes_max + FRAMING_BYTES:,} or more, or lower relay.event_bytes_max()"
        yield failed("topic", text, "RLY-812", fix, subject=topic)
