"""Kafka as the relay's producer will meet it: brokers, where they say they are, and each topic that is needed.

Only asks for descriptions, which do not create a topic that is missing.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclOperation,
    AdminClient,
    ConfigResource,
    TopicDescription,
)

from relay.config import Settings
from relay.daemon.diagnosis.finding import Finding, failed, ok, refused, unknown, warning
from relay.daemon.diagnosis.postgres import Outbox
from relay.daemon.properties import make_client
from relay.errors import ConfigError
from relay.kafka_words import LastWords, words_of

ASK_SECONDS = 2.0
DIAL_SECONDS = 1.0
CHANGES = "relay.changes"
"""Where `touch` writes to unless it is told otherwise."""
FRAMING_BYTES = 1024
"""What a record needs besides key, headers and payload: batch, Relay's own headers, trace context."""


@dataclass(slots=True)
class Look:
    """One look at one cluster."""

    properties: Mapping[str, Any]
    settings: Settings
    outbox: Callable[[], Outbox]
    """What the look at the database has found; called when it is needed, and may wait."""
    report: Callable[[Finding], None]

    def run(self) -> None:
        """Reports each finding as soon as it is there."""
        last = LastWords(self.properties)
        try:
            admin = make_client(AdminClient, self.properties, error_cb=last.note)
        except ConfigError as error:
            self.report(refused("kafka", error))
            return
        places = self._reach(admin, last)
        if places is None:
            return
        if not self._listeners(places):
            self.report(unknown("topic", "no broker can be asked about topics", "see listeners"))
            return
        for finding in self._topics(admin):
            self.report(finding)

    def _reach(self, admin: AdminClient, last: LastWords) -> list[tuple[str, int]] | None:
        """Where the brokers say they are; asked of the addresses that were given, which may be others."""
        try:
            brokers = admin.list_topics(timeout=ASK_SECONDS).brokers.values()
        except KafkaException as error:
            # What went wrong with connections is told to the callback only, and that is called from here.
            admin.poll(0.1)
            servers = self.properties["bootstrap.servers"]
            text = f"none of {servers} answered within {ASK_SECONDS:g} s: {last.after(error)}"
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
            named = ", ".join(f"{host}:{port} ({why})" for (host, port), why in away.items())
            fix = "set advertised.listeners to addresses that hold here, or run `relay doctor` where the relay runs"
            text = f"brokers say they are at {named}, not reachable from here"
            self.report(failed("listeners", text, "RLY-811", fix))
        else:
            self.report(ok("listeners", "every broker is where it says it is"))
        return len(away) < len(places)

    def _topics(self, admin: AdminClient) -> Iterable[Finding]:
        outbox = self.outbox()
        needed = wanted(outbox, self.settings)
        described, limits, hidden = _describe(admin, list(needed))
        if outbox.topics is None:
            yield unknown("topic", "in which topics events wait could not be read", "see the checks of the database")
        for topic, is_due in needed.items():
            yield from judge(
                topic,
                described.get(topic),
                limits.get(topic, {}),
                outbox.event_bytes_max,
                is_due=is_due,
                hidden_because=hidden.get(topic, ""),
            )
        yield from self._own_limit(outbox.event_bytes_max)

    def _own_limit(self, event_bytes_max: int | None) -> Iterable[Finding]:
        """librdkafka refuses before Kafka is asked."""
        own = int(self.properties["message.max.bytes"])
        if event_bytes_max is not None and own < event_bytes_max + FRAMING_BYTES:
            text = f"kafka.message.max.bytes is {own:,}, the outbox lets {event_bytes_max:,} and framing through"
            yield failed(
                "topic", text, "RLY-812", f"set it to {event_bytes_max + FRAMING_BYTES:,} or more, or remove it"
            )


def wanted(outbox: Outbox, settings: Settings) -> dict[str, bool]:
    """Topics to look at, and whether events wait for each or settings name it."""
    found = dict.fromkeys(sorted({*(outbox.topics or ()), *settings.topics} - {"*"}), True)
    for topic in list(found):
        policy = settings.topic(topic)
        if policy.poison == "topic":
            found.setdefault(policy.dead_letter or f"{topic}.dead", False)
    found.setdefault(CHANGES, False)
    return found


def unreachable(places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Those that take no connection within a second, and why. Asked at once; a name service that hangs is not waited
    for."""
    ended: dict[tuple[str, int], str] = {}

    def dial(place: tuple[str, int]) -> None:
        try:
            with socket.create_connection(place, DIAL_SECONDS):
                ended[place] = ""
        except (OSError, ValueError) as error:
            # A name that cannot be one raises UnicodeError, which is a ValueError.
            ended[place] = (error.strerror if isinstance(error, OSError) else None) or str(error)

    asked = list(places)
    threads = [threading.Thread(target=dial, args=(place,), daemon=True) for place in asked]
    for thread in threads:
        thread.start()
    until = time.monotonic() + DIAL_SECONDS
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    found = {place: ended.get(place, "no answer") for place in asked}
    return {place: why for place, why in found.items() if why}


def _describe(
    admin: AdminClient, topics: list[str]
) -> tuple[dict[str, TopicDescription | KafkaError], dict[str, dict[str, int]], dict[str, str]]:
    """Descriptions, or why there is none; the limits of each topic that is there, or why they are hidden."""
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
    return found, *_limits(admin, there, until)


def _limits(admin: AdminClient, topics: list[str], until: float) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    limits: dict[str, dict[str, int]] = {}
    hidden: dict[str, str] = {}
    if not topics:
        return limits, hidden
    resources = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in topics]
    for resource, future in admin.describe_configs(resources, request_timeout=ASK_SECONDS).items():
        try:
            entries = future.result(max(0.1, until - time.monotonic()))
            limits[resource.name] = {
                name: int(entries[name].value) for name in ("max.message.bytes", "min.insync.replicas")
            }
        except (KafkaException, TimeoutError) as error:
            hidden[resource.name] = words_of(error)
        except (KeyError, ValueError, TypeError):
            hidden[resource.name] = "the broker does not tell them"
    return limits, hidden


def judge(
    topic: str,
    found: TopicDescription | KafkaError | None,
    limits: Mapping[str, int],
    event_bytes_max: int | None,
    *,
    is_due: bool,
    hidden_because: str = "",
) -> list[Finding]:
    """What is to be said of one topic; one line if all is well.

    Args:
        is_due: events wait for it or settings name it, so that it must be there now.
        hidden_because: why there are no limits.
    """
    if found is None:
        return [unknown("topic", "the brokers did not describe it in time", "try again", subject=topic)]
    if isinstance(found, KafkaError):
        return [_missing(topic, found, is_due=is_due)]
    findings = [*_writable(topic, found, limits, hidden_because), *_size(topic, limits, event_bytes_max)]
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
        text = f"no right to describe it: {words_of(error)}"
        return failed("topic", text, "RLY-702", "grant Describe and Write on it", subject=topic)
    return unknown("topic", f"the brokers answered: {words_of(error)}", "try again", subject=topic)


def _writable(topic: str, found: TopicDescription, limits: Mapping[str, int], hidden_because: str) -> Iterable[Finding]:
    """Whether Kafka takes a record with acks=all now, and where it is kept then."""
    operations = found.authorized_operations
    if operations and not {AclOperation.WRITE, AclOperation.ALL} & set(operations):
        yield failed("topic", "no right to write it", "RLY-702", "grant Write on it", subject=topic)
    needed = limits.get("min.insync.replicas")
    if needed is None:
        text = f"its settings are hidden: {hidden_because}"
        yield unknown("topic", text, "grant DescribeConfigs on it, or try again", subject=topic)
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
