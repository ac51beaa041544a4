"""Events that could not be used, set aside in a topic of their own: bytes as they came, headers that say why.

relay-error                                              the code, RLY-934 to RLY-937
relay-reason                                             one of few texts, or the class of the error
relay-origin-topic, -partition, -offset                  where it was
relay-group, relay-attempts                              who gave up, and after how many tries
relay-omitted-bytes                                      only if the value did not fit: its size
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from relay.consumer.settings import connection_properties
from relay.kafka_words import LastWords, words_of

REPORT_SECONDS: Final = 10.0
UNANSWERED: Final = frozenset({KafkaError._MSG_TIMED_OUT, KafkaError._TIMED_OUT, KafkaError._TRANSPORT})
"""They say that there is no answer; why is told to the callback."""
TOO_LARGE: Final = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})


class SetAsideError(Exception):
    """The event is not known to be in the dead-letter topic. The text is Kafka's words, of each attempt that failed."""


class DeadLetters:
    """Writes to dead-letter topics. Safe from any thread.

    Args:
        properties: of the consumer, for the connection.
        topics: source topic to dead-letter topic; by default its name with `.dead`.
    """

    def __init__(self, properties: Mapping[str, Any], group: str, topics: Mapping[str, str]) -> None:
        self._last = LastWords(properties)
        self._connection = connection_properties(properties, self._last.note)
        self._group = group
        self._topics = topics
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        self._known: set[str] = set()

    def topic_of(self, topic: str) -> str:
        """Where events of this topic go."""
        return self._topics.get(topic, f"{topic}.dead")

    def put(self, record: Any, code: str, reason: str, attempts: int) -> str:
        """Returns the dead-letter topic when Kafka has acknowledged the event in it.

        Raises:
            SetAsideError: it has not.
        """
        topic = self.topic_of(record.topic())
        with self._lock:
            not_made = self._make(topic)
            headers = [*_headers_of(record), *self._why(record, code, reason, attempts)]
            error = self._send(topic, record.key(), record.value(), headers)
            if error is not None and error.code() in TOO_LARGE:
                # Better without its value than not at all: where it came from, it still is.
                size = str(len(record.value() or b"")).encode()
                few = [*self._why(record, code, reason, attempts), ("relay-omitted-bytes", size)]
                error = self._send(topic, record.key(), None, few)
            if error is not None:
                self._known.discard(topic)
                words = self._last.words if error.code() in UNANSWERED and self._last.words else words_of(error)
                raise SetAsideError(f"{words}; it could not be created: {not_made}" if not_made else words)
            self._last.forget()
        return topic

    def _why(self, record: Any, code: str, reason: str, attempts: int) -> list[tuple[str, bytes]]:
        fields = {
            "relay-error": code,
            "relay-reason": reason,
            "relay-origin-topic": record.topic(),
            "relay-origin-partition": record.partition(),
            "relay-origin-offset": record.offset(),
            "relay-group": self._group,
            "relay-attempts": attempts,
        }
        return [(name, str(value).encode()) for name, value in fields.items()]

    def _make(self, topic: str) -> str:
        """Creates the topic, unless it is there. Returns why it could not be created.

        It may be there all the same, which writing to it will tell.
        """
        if topic in self._known:
            return ""
        admin = AdminClient(self._connection)
        try:
            new = NewTopic(topic, 1, -1)
            for outcome in admin.create_topics([new], request_timeout=REPORT_SECONDS).values():
                outcome.result(REPORT_SECONDS)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                admin.poll(0)
                return self._last.after(error)
        except TimeoutError as error:
            return words_of(error)
        self._known.add(topic)
        return ""

    def _send(self, topic: str, key: bytes | None, value: bytes | None, headers: list[Any]) -> Any:
        """The error, None if it was acknowledged."""
        if self._producer is None:
            self._producer = Producer(
                {
                    **self._connection,
                    "enable.idempotence": True,
                    "message.timeout.ms": int(REPORT_SECONDS * 1000),
                    "message.max.bytes": 100_000_000,
                    "linger.ms": 0,
                }
            )
        reports: list[KafkaError | None] = []
        try:
            self._producer.produce(
                topic, value, key, headers=headers,
                on_delivery=lambda error, _record: reports.append(error),
            )  # fmt: skip
        except KafkaException as error:
            return error.args[0]
        self._producer.flush(REPORT_SECONDS + 2)
        return reports[0] if reports else KafkaError(KafkaError._MSG_TIMED_OUT)


def _headers_of(record: Any) -> list[Any]:
    try:
        return record.headers() or []
    except (UnicodeDecodeError, ValueError):
        return []  # a name that is no text; the value says the rest
