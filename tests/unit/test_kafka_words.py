"""Kafka's words about an error: what is repeated of them, what never is, and which of several is the cause."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from relay.kafka_words import LENGTH_MAX, LastWords, words_of

REFUSED = KafkaError(KafkaError._AUTHENTICATION, "sasl_plaintext://b:9092: Invalid username or password")
DOWN = KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down")


def test_an_error_is_shown_with_its_text_and_its_name():
    assert words_of(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)) == "Broker: Message size too large (MSG_SIZE_TOO_LARGE)"
    assert words_of(KafkaException(REFUSED)) == words_of(REFUSED)
    assert words_of(REFUSED) == "sasl_plaintext://b:9092: Invalid username or password (_AUTHENTICATION)"


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (ImportError("No module named 'boto3'"), "No module named 'boto3' (ImportError)"),
        (TimeoutError(), "TimeoutError"),
        (KafkaException("the brokers did not tell"), "the brokers did not tell (KafkaException)"),
    ],
)
def test_what_is_no_error_of_kafka_is_shown_with_its_class(raised, words):
    assert words_of(raised) == words


@pytest.mark.parametrize("more", ["", ", 3 identical error(s) suppressed"])
def test_the_time_of_a_failed_connection_is_left_out(more):
    """It would make every line another."""
    text = f"b:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed: No route (after 12ms in state CONNECT{more})"
    words = words_of(KafkaError(KafkaError._TRANSPORT, text))
    assert words == "b:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed: No route (_TRANSPORT)"


def test_the_words_are_one_short_line():
    words = words_of(KafkaError(KafkaError._SSL, "one\n\ttwo \x1b[31m" + "x" * 1000))
    assert words.startswith("one two [31mxxx")
    assert len(words) <= LENGTH_MAX + len(" (_SSL)")
    assert "\x1b" not in words


@pytest.mark.parametrize(
    "name",
    ["sasl.password", "ssl.key.password", "ssl.key.pem", "sasl.oauthbearer.client.secret", "SASL.Password"],
)
def test_a_secret_that_kafka_repeats_is_replaced(name):
    """Also where it stands between quotes or at the end of a URL."""
    error = KafkaError(KafkaError._AUTHENTICATION, 'user "ada" with "ge.heim+1" at http://h/?t=ge.heim+1')
    words = words_of(error, {name: "ge.heim+1", "sasl.username": "ada"})
    assert "heim" not in words
    assert '"ada"' in words


def test_the_cause_stays_when_all_brokers_are_down():
    """librdkafka says so after each cause, in whatever order the callback is called."""
    last = LastWords({})
    assert last.words == ""
    last.note(DOWN)
    assert "_ALL_BROKERS_DOWN" in last.words
    last.note(REFUSED)
    last.note(DOWN)
    assert "_AUTHENTICATION" in last.words
    assert last.after(KafkaException(KafkaError(KafkaError._TRANSPORT))) == last.words


def test_an_error_is_over_when_the_brokers_have_answered():
    now = [10.0]
    last = LastWords({"sasl.password": "geheim"}, clock=lambda: now[0])
    last.note(KafkaError(KafkaError._AUTHENTICATION, "geheim is wrong"))
    now[0] = 13.0
    assert (last.words, last.age_seconds) == ("*** is wrong (_AUTHENTICATION)", 3.0)
    last.forget()
    assert (last.words, last.age_seconds) == ("", None)
    assert last.after(KafkaException(DOWN)) == "1/1 brokers are down (_ALL_BROKERS_DOWN)"
