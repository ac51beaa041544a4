"""Every error code of the client library is classified once, by what it is about."""

from __future__ import annotations

from collections import Counter

from confluent_kafka import KafkaError

from relay.core.event import Outcome
from relay.daemon.kafka_errors import TABLE, About, about, outcome_of

CODES = {
    name: value
    for name in dir(KafkaError)
    if name.strip("_").isupper() and isinstance(value := getattr(KafkaError, name), int)
}


def test_the_table_names_every_code_of_the_client_library_exactly_once():
    """A code that nobody has classified would be treated by a guess."""
    named = Counter(name for names in TABLE.values() for name in names)
    assert set(named) == set(CODES)
    assert set(named.values()) == {1}


def test_only_an_error_about_the_record_can_cost_the_record_anything():
    """Clock, credentials, leaders and brokers are nobody's fault: the row waits, and no attempt is counted."""
    for name, code in CODES.items():
        if code == KafkaError.NO_ERROR:
            continue
        outcome = outcome_of(KafkaError(code))
        assert (outcome is Outcome.REFUSED) == (name in TABLE[About.RECORD]), name
        assert outcome is not Outcome.DELIVERED
    assert outcome_of(None) is Outcome.DELIVERED


def test_a_clock_that_is_wrong_is_our_host_s_fault_and_an_unknown_code_is_no_record_s():
    """A relay host two hours ahead once had 600 of 600 events parked."""
    assert about(KafkaError.INVALID_TIMESTAMP) is About.HOST
    assert about(-99_999) is About.CLUSTER
