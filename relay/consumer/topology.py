"""What brokers say of topics: which they are, how many partitions they have, and where those end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

Place = tuple[str, int]
"""A topic and a partition."""

ASK_SECONDS: Final = 5.0
MISSING: Final = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC})


class Shape(NamedTuple):
    """A topic that exists. Made anew under the same name it has another id."""

    id: str
    partitions: int


class Described(NamedTuple):
    """What the brokers have said of some topics."""

    shapes: dict[str, Shape]
    """Those that exist and may be described."""
    missing: list[str]
    """Those that do not exist."""
    failed: dict[str, Exception]
    """Those of which nothing is known, and why: a topic is not missing because nobody can be asked about it."""


def describe(admin: AdminClient, topics: Iterable[str], timeout_seconds: float = ASK_SECONDS) -> Described:
    """Asks about these topics."""
    names = sorted(set(topics))
    if not names:
        return Described({}, [], {})
    answers = admin.describe_topics(TopicCollection(names), request_timeout=timeout_seconds)
    return described(answers, timeout_seconds)


def shapes(admin: AdminClient, topics: Iterable[str], timeout_seconds: float = ASK_SECONDS) -> dict[str, Shape]:
    """Those topics that exist and may be described."""
    return describe(admin, topics, timeout_seconds).shapes


def described(answers: Mapping[str, Any], timeout_seconds: float) -> Described:
    """What these futures tell."""
    found = Described({}, [], {})
    for name, answer in answers.items():
        try:
            description: Any = answer.result(timeout_seconds)
        except KafkaException as error:
            if error.args[0].code() in MISSING:
                found.missing.append(name)
            else:
                found.failed[name] = error
        except TimeoutError as error:
            found.failed[name] = error
        else:
            found.shapes[name] = Shape(str(description.topic_id), len(description.partitions))
    return found


def offsets(client: Consumer, at: Mapping[Place, int], timeout_seconds: float = ASK_SECONDS) -> dict[Place, int]:
    """The offsets behind OFFSET_BEGINNING or OFFSET_END of these partitions, in one round trip to each leader.

    Raises:
        KafkaException: not all of them are known.
    """
    if not at:
        return {}
    asked = [TopicPartition(*place, logical) for place, logical in at.items()]
    found = {}
    for answer in client.offsets_for_times(asked, timeout=timeout_seconds):
        if answer.error is not None:
            raise KafkaException(answer.error)
        found[answer.topic, answer.partition] = answer.offset
    if len(found) != len(at):
        raise KafkaException("the brokers did not tell all offsets")
    return found
