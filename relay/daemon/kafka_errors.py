"""What an error of Kafka means for a row, in one table. A row's failure is not the system's."""

from __future__ import annotations

from confluent_kafka import KafkaError

from relay.core.event import Outcome

REFUSED = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.INVALID_MSG,
    KafkaError.POLICY_VIOLATION,
    KafkaError._INVALID_ARG,
    KafkaError._BAD_MSG,
}
"""Kafka refuses this record, and would refuse it again."""

TOPIC = {
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
}
"""The topic cannot be written: its events wait, others flow."""


def outcome_of(error: KafkaError | None) -> Outcome:
    """The outcome of a row by its delivery report. Anything unlisted means that Kafka is not available: no attempt is
    counted, and since a time-out is no proof of failure, the row may have arrived."""
    if error is None:
        return Outcome.DELIVERED
    code = error.code()
    if code in REFUSED:
        return Outcome.REFUSED
    if code in TOPIC:
        return Outcome.TOPIC
    return Outcome.UNKNOWN
