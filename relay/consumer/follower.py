"""One join of a feed: from the ends of all partitions to whatever makes it close the tier."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from relay.cache.local import Local
from relay.cache.tiers import SharedTier, TierError
from relay.consumer.events import say
from relay.consumer.records import decode_record
from relay.consumer.settings import connection_properties
from relay.consumer.topology import Place, Shape, describe, offsets, shapes
from relay.core.change import Limits, Malformed
from relay.kafka_words import LastWords, words_of

PROOF_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 3.0
ASK_SECONDS: Final = 1.0
BATCH: Final = 1000
POLL_SECONDS: Final = 0.1


class _GapError(Exception):
    """Something may have been missed. The text says what."""


class Follower:
    """Follows all partitions until something may have been missed. Belongs to the feed's thread."""

    def __init__(
        self,
        properties: Mapping[str, Any],
        topics: Sequence[str],
        local: Local,
        shared: SharedTier | None,
        *,
        limits: Limits,
        on_proof: Callable[[float], None],
        name: str,
    ) -> None:
        self._properties = properties
        self._topics = topics
        self._local = local
        self._shared = shared
        self._limits = limits
        self._on_proof = on_proof
        self._name = name
        self._last = LastWords(properties)
        self._read: dict[Place, int] = {}
        self._shapes: dict[str, Shape] = {}
        self._joined: dict[Place, int] = {}
        self._asked: tuple[float, dict[Place, int]] | None = None
        self._epoch: bytes | None = None
        self.proven: float | None = None
        """Everything that was published before this moment has been applied."""

    def lag(self) -> dict[Place, int | None]:
        """For each partition, how many events are not applied yet, as of the last time the brokers were asked."""
        asked = self._asked
        ends = self._joined if asked is None else asked[1]
        return {place: max(0, ends.get(place, read) - read) for place, read in self._read.copy().items()}

    def follow(self, stop: threading.Event) -> str:
        """Returns what was in the way, or that it was stopped."""
        self._last.forget()
        client = Consumer({**self._properties, "error_cb": self._last.note})
        admin = AdminClient(connection_properties(self._properties, self._last.note))
        try:
            self._follow(client, admin, stop)
        except _GapError as gap:
            return str(gap)
        except KafkaException as error:
            return self._words(client, admin, error)
        finally:
            client.close()
        return "the feed was stopped"

    def _words(self, client: Consumer, admin: AdminClient, error: Exception) -> str:
        """Why brokers do not answer is told to callbacks, and those are called from here."""
        client.poll(0)
        admin.poll(0)
        return f"Kafka: {self._last.after(error)}"

    def _follow(self, client: Consumer, admin: AdminClient, stop: threading.Event) -> None:
        ticket = self._join(client, admin)
        began = time.monotonic()
        self.proven, due = began, began
        while not stop.is_set():
            self._apply(self._fetch(client))
            now = time.monotonic()
            if now >= due:
                due = now + PROOF_SECONDS
                self._ask(client, admin, now)
                self._consult(ticket, began)
            self._prove(now)

    def _join(self, client: Consumer, admin: AdminClient) -> int:
        """Closes first and asks for the ends then: whatever is not below them will be seen."""
        ticket = self._local.close("joining")
        found = describe(admin, self._topics, SILENCE_SECONDS)
        if found.missing:
            raise _GapError(f"topic {min(found.missing)} is not there")
        for topic, error in sorted(found.failed.items()):
            raise _GapError(f"topic {topic} cannot be described: {self._words(client, admin, error)}")
        self._last.forget()
        self._shapes = found.shapes
        places = [(topic, each) for topic, shape in self._shapes.items() for each in range(shape.partitions)]
        self._joined = offsets(client, dict.fromkeys(places, OFFSET_END), SILENCE_SECONDS)
        self._read = dict(self._joined)
        client.assign([TopicPartition(*place, offset) for place, offset in self._joined.items()])
        return ticket

    def _fetch(self, client: Consumer) -> list[Any]:
        records = client.consume(BATCH, 0)
        if records:
            return records
        first = client.poll(POLL_SECONDS)
        return [] if first is None else [first, *client.consume(BATCH - 1, 0)]

    def _apply(self, records: Sequence[Any]) -> None:
        read, local = self._read, self._local
        for record in records:
            error = record.error()
            place, offset = (record.topic(), record.partition()), record.offset()
            if error is not None:
                if error.code() != KafkaError._PARTITION_EOF:
                    raise _GapError(f"Kafka: {words_of(error, self._properties)}")
                read[place] = offset  # beyond the marks of transactions, which nobody is handed
                continue
            if offset < read[place]:
                raise _GapError("offsets step back")
            event = decode_record(record, self._limits)
            at = (*place, offset)
            if isinstance(event, Malformed):
                if event.entity is not None and event.id is not None:
                    local.invalidate(event.entity, event.id, at)
            elif event.version is None:
                local.invalidate(event.entity, event.id, at)
            else:
                local.apply(event.entity, event.id, event.version, at)
            read[place] = offset + 1

    def _ask(self, client: Consumer, admin: AdminClient, now: float) -> None:
        """Asks for the ends, unless what was asked last is still to be reached. No answer is no proof, and no error."""
        if self._asked is not None:
            return
        try:
            ends = offsets(client, dict.fromkeys(self._read, OFFSET_END), ASK_SECONDS)
        except KafkaException:
            return
        found = shapes(admin, self._topics, ASK_SECONDS)
        if any(found.get(topic, shape) != shape for topic, shape in self._shapes.items()):
            raise _GapError("a topic has changed")
        if len(found) == len(self._shapes):
            self._asked = now, ends

    def _prove(self, now: float) -> None:
        if self._asked is not None:
            asked_at, ends = self._asked
            self._last.forget()
            if all(self._read[place] >= end for place, end in ends.items()):
                self.proven, self._asked = asked_at, None
                self._on_proof(now - asked_at)
        if self.proven is not None and now - self.proven > SILENCE_SECONDS:
            self._on_proof(now - self.proven)
            because = f", {words}" if (words := self._last.words) else ""
            raise _GapError(f"no proof of being up to date for three seconds{because}")

    def _consult(self, ticket: int, began: float) -> None:
        """Opens the tier when the one behind has applied what was before the join; forgets floors it has passed."""
        try:
            epoch, progress = (b"", self._read) if self._shared is None else self._shared.progress()
        except TierError:
            return  # readers do without it as well; floors stay until it is back
        if self._epoch is not None and epoch != self._epoch:
            raise _GapError("a new epoch has begun")
        if self._epoch is not None:
            if not self._local.is_open:
                raise _GapError(self._local.closed_because)
            self._local.sweep(progress)
        elif epoch is not None and all(progress.get(place, 0) >= end for place, end in self._joined.items()):
            if not self._local.open(ticket):
                raise _GapError("somebody else closed the tier")
            self._epoch = epoch
            waited = time.monotonic() - began
            say(logging.INFO, "feed.opened", feed=self._name, partitions=len(self._joined), waited_s=round(waited, 2))
