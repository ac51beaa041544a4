"""Kafka for the demo: librdkafka's mock cluster in a process of its own, or the cluster that the user named."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from relay.demo.children import Child, clean_environ
from relay.errors import OperatorError, UnreachableError

PARTITIONS: Final = 12
"""The mock answers a fetch with one batch of a partition, looked up from the log's beginning: few would fall behind."""
ANSWER_SECONDS: Final = 10.0
CONNECTION: Final = ("bootstrap.servers", "security.", "sasl.", "ssl.", "enable.ssl", "socket.")
"""The properties that say how to reach a cluster; the others belong to the relay's producer."""


def group_of(topic: str) -> str:
    """The name of the only group that reads the topic."""
    return f"{topic}-cache"


class Brokers(Protocol):
    """A cluster with one topic of ours."""

    topic: str
    label: str
    can_go_away: bool
    is_up: bool

    @property
    def client(self) -> dict[str, Any]:
        """What a client needs to connect."""

    def take_away(self) -> None:
        """Refuses every client until `bring_back`."""

    def bring_back(self) -> None:
        """Serves again, with everything that was written."""

    def close(self) -> None:
        """Leaves nothing behind."""


class MockBrokers:
    """Three brokers, one process, everything in memory."""

    label = "mock Kafka"
    can_go_away = True

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.is_up = True
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        arguments = ["relay.demo.mock_kafka", topic, str(PARTITIONS)]
        self._process = Child(arguments, clean_environ(), self._on_line)
        self._address = self._answer()

    @property
    def client(self) -> dict[str, Any]:
        """The address; there is nothing else to it."""
        return {"bootstrap.servers": self._address}

    def take_away(self) -> None:
        """Closes the listeners and all connections."""
        self.is_up = False
        self._process.tell("down")
        self._answer()

    def bring_back(self) -> None:
        """Listens again on the same ports."""
        self._process.tell("up")
        self._answer()
        self.is_up = True

    def close(self) -> None:
        """Ends the process, and the log with it."""
        self._process.close()

    def _on_line(self, line: str) -> bool:
        is_answer = line.strip() in ("up", "down") or line.startswith("127.0.0.1:")
        if is_answer:
            self._answers.put(line.strip())
        return is_answer

    def _answer(self) -> str:
        until = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < until and self._process.exit_code is None:
            with contextlib.suppress(queue.Empty):
                return self._answers.get(timeout=0.2)
        words = self._process.last_words or f"no answer in {ANSWER_SECONDS:g} s"
        self._process.close()
        raise OperatorError("RLY-604", f"the mock Kafka is gone: {words}", "set RELAY_KAFKA_BOOTSTRAP_SERVERS")


class GivenBrokers:
    """A topic with a name of its own on somebody's cluster, deleted at the end. We take nothing away there."""

    label = "your Kafka"
    can_go_away = False
    is_up = True

    def __init__(self, topic: str, properties: Mapping[str, Any]) -> None:
        self.topic = topic
        self._client = {name: value for name, value in properties.items() if name.startswith(CONNECTION)} | {
            "log_level": 0,
            "allow.auto.create.topics": False,
        }
        self._admin = AdminClient(self._client)
        self._create()

    @property
    def client(self) -> dict[str, Any]:
        """Address and credentials as the user gave them."""
        return dict(self._client)

    def take_away(self) -> None:
        """Never called: `can_go_away` is False."""

    def bring_back(self) -> None:
        """Never called: `can_go_away` is False."""

    def close(self) -> None:
        """Deletes the topic, and the offsets that were committed for it."""
        with contextlib.suppress(KafkaException):
            for outcome in self._admin.delete_topics([self.topic], operation_timeout=ANSWER_SECONDS).values():
                outcome.result(ANSWER_SECONDS)
            groups = [group_of(self.topic)]
            for outcome in self._admin.delete_consumer_groups(groups, request_timeout=ANSWER_SECONDS).values():
                outcome.result(ANSWER_SECONDS)

    def _create(self) -> None:
        try:
            brokers = len(self._admin.list_topics(timeout=5).brokers)
        except KafkaException:
            raise UnreachableError(
                "RLY-304",
                "the Kafka brokers cannot be reached",
                "check RELAY_KAFKA_BOOTSTRAP_SERVERS, or unset it to use the mock",
            ) from None
        new = NewTopic(self.topic, PARTITIONS, min(3, brokers))
        try:
            for outcome in self._admin.create_topics([new], operation_timeout=ANSWER_SECONDS).values():
                outcome.result(ANSWER_SECONDS)
        except (KafkaException, TimeoutError) as error:
            raise OperatorError(
                "RLY-604",
                f"the topic {self.topic} could not be created: {error}",
                "grant Create, or unset RELAY_KAFKA_BOOTSTRAP_SERVERS to use the mock",
            ) from None
