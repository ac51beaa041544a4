"""Whether Kafka answers this process: asked when it is shown, with a bound, and told in Kafka's own words if not.

What a relay knows of Kafka is in its own /readyz. This is what an operator's command finds from where it runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from confluent_kafka.admin import AdminClient

from relay.daemon.brokers import who_is_there
from relay.daemon.properties import make_client
from relay.errors import ConfigError
from relay.kafka_words import LastWords

ANSWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What asking has shown."""

    up: bool | None
    """None: it was not asked, or has not answered yet."""
    brokers: int = 0
    reason: str = ""
    """Why not: Kafka's words, or why it was not asked."""
    age_seconds: float = 0.0


class Reach:
    """Asks the brokers who they are. One question at a time, and nobody has to wait for the answer."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        self._last = LastWords(properties)
        self._answer = Answer(None, reason="no answer yet")
        self._answered_at = time.monotonic()
        self._pending: Future[Any] | None = None
        self._asking = ThreadPoolExecutor(1, "reach")
        self._admin: AdminClient | None = None
        self._servers = properties.get("bootstrap.servers")
        if not self._servers:
            self._answer = Answer(None, reason="not asked, since kafka.bootstrap.servers is not set")
            return
        try:
            self._admin = make_client(AdminClient, properties, error_cb=self._last.note)
        except ConfigError as error:
            self._answer = Answer(None, reason=f"not asked, since {error.message} ({error.code})")

    def ask(self, wait_seconds: float = 0.0) -> Answer:
        """Returns the latest answer with its age, waiting so long for a new one. Asks if no question is open."""
        if self._admin is None:
            return self._answer
        if self._pending is None:
            self._pending = self._asking.submit(who_is_there, self._admin, ANSWER_SECONDS)
        until = time.monotonic() + wait_seconds
        while not self._pending.done() and time.monotonic() < until:
            # Why nobody answers is told to the callback, which is called from here.
            self._admin.poll(0.05)
        if self._pending.done():
            self._take(self._admin, self._pending)
            self._pending = None
        now = self._answer
        return Answer(now.up, now.brokers, now.reason, time.monotonic() - self._answered_at)

    def _take(self, admin: AdminClient, answered: Future[Any]) -> None:
        admin.poll(0)
        self._answered_at = time.monotonic()
        error = answered.exception()
        if error is None:
            self._last.forget()
            self._answer = Answer(True, brokers=len(answered.result().brokers))
        else:
            self._answer = Answer(False, reason=self._last.after(error))


def as_sentence(answer: Answer) -> str:
    """For a person."""
    if answer.up:
        return f"answers, {answer.brokers} broker{'' if answer.brokers == 1 else 's'}"
    return answer.reason if answer.up is None else f"does not answer: {answer.reason}"
