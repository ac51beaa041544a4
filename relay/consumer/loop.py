"""The polling thread of a consumer: fetch, decode, apply, hand to the hooks, commit, over and over.

Nothing here waits for anything but Kafka, for a moment: while the shared tier is away, or hooks are behind, partitions
are paused and polling goes on, so that the group never takes this member for dead. Offsets are committed after their
events were applied and their hooks have ended, never before: being killed at any point repeats events, and may do so.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

from relay.cache.numbers import EPOCHS, EVENTS, Recorder
from relay.cache.tiers import SharedTier, TierError
from relay.consumer.applying import Applier
from relay.consumer.effects import Effects
from relay.consumer.events import say
from relay.consumer.health import Health, Troubles
from relay.consumer.lane import Lane
from relay.consumer.source import Cold, Listener, Source
from relay.core.backoff import backoff_seconds
from relay.core.change import LIMITS, Change, Limits, decode
from relay.errors import CacheError

BATCH: Final = 1000
POLL_SECONDS: Final = 0.1
BEAT_SECONDS: Final = 1.0
COMMIT_SECONDS: Final = 1.0
DRAIN_SECONDS: Final = 10.0


class Loop(Listener):
    """One run of a consumer, from start to stop."""

    def __init__(
        self,
        name: str,
        make_source: Callable[[Listener, Callable[[Any], None]], Source],
        shared: SharedTier | None,
        recorder: Recorder,
        limits: Limits = LIMITS,
    ) -> None:
        self._name = name
        self._make_source = make_source
        self._applier = None if shared is None else Applier(shared, self._on_epoch)
        self._recorder = recorder
        self._limits = limits
        self._effects = Effects()
        self._stop = threading.Event()
        self._drain = True
        self._fatal: KafkaError | None = None
        self._attempt = 0
        self._retry_at = self._beat_at = self._commit_at = 0.0
        self._progress_at: float | None = None
        self._lag: dict[tuple[str, int], int | None] = {}
        self._cold: list[Lane] = []
        self._source: Source
        self.troubles = Troubles()
        self.is_running = False

    def health(self) -> Health:
        """As of now."""
        age = None if self._progress_at is None else time.monotonic() - self._progress_at
        return Health(self.is_running, dict(self._lag), age, self.troubles.now())

    def stop(self, *, drain: bool) -> None:
        """Asks the thread to end."""
        self._drain = self._drain and drain
        self._stop.set()

    def run(self) -> None:
        """Until it is stopped, or cannot go on.

        Raises:
            CacheError: RLY-931.
        """
        self._source = self._make_source(self, self._on_error)
        self.is_running = True
        try:
            while not self._stop.is_set():
                self._turn()
            self._finish()
        finally:
            self._source.close()
            self.is_running = False

    def _turn(self) -> None:
        now = time.monotonic()
        wait = POLL_SECONDS if now >= self._retry_at else min(POLL_SECONDS, self._retry_at - now)
        self._read(self._source.fetch(BATCH, wait))
        if self._fatal is not None:
            raise CacheError(
                "RLY-931", f"Kafka has shut this consumer out: {self._fatal.name()}",
                "start it anew; give each member a group.instance.id of its own",
            )  # fmt: skip
        now = time.monotonic()
        self._apply(now)
        self._restart_cold()
        if now >= self._commit_at:
            self._commit_at = now + COMMIT_SECONDS
            self._look()
            self._commit(list(self._source.lanes.values()), wait=False)

    def _read(self, records: Sequence[Any]) -> None:
        """Decodes into the effects of the batch. A lane that is not owned any more is passed over."""
        lanes, effects, limits = self._source.lanes, self._effects, self._limits
        malformed = 0
        for record in records:
            error = record.error()
            if error is not None:
                self._on_record_error(record, error)
                continue
            lane = lanes.get((record.topic(), record.partition()))
            offset = record.offset()
            if lane is None or offset < lane.read:
                continue
            lane.read = offset + 1
            event = decode(record.key(), record.value(), record.headers(), limits)
            if isinstance(event, Change):
                effects.add(event)
            else:
                effects.add_malformed(event)
                malformed += 1
        if malformed:
            self._recorder.count(EVENTS, self._name, "malformed", by=malformed)

    def _apply(self, now: float) -> None:
        """Applies what was read, or tells the tier each second that nothing was: so a flush is noticed."""
        owned = list(self._source.lanes.values())
        lanes = owned if now >= self._beat_at else [lane for lane in owned if lane.read > lane.applied]
        if not lanes or now < self._retry_at:
            return
        events = sum(lane.read - lane.applied for lane in lanes)
        try:
            if self._applier is None:
                for lane in lanes:
                    lane.applied = lane.read
            else:
                self._applier.apply(self._effects.bumps(), lanes, owned)
        except TierError as error:
            self._on_tier_error(error, now, owned)
            return
        self._effects = Effects()
        self._progress_at = now
        if lanes is owned:
            self._beat_at = now + BEAT_SECONDS
        if events:
            self._recorder.count(EVENTS, self._name, "applied", by=events)
        if self._attempt:
            self._attempt = 0
            self._source.resume(owned)
            away = self.troubles.end("tier") or 0
            say(logging.INFO, "consumer.tier_back", consumer=self._name, away_s=round(away, 1))

    def _on_tier_error(self, error: TierError, now: float, owned: Sequence[Lane]) -> None:
        """Keeps the position and its effects, fetches nothing more, and tries again."""
        self._attempt += 1
        self._retry_at = now + backoff_seconds(self._attempt, random.random(), first=0.05, cap=2.0)  # noqa: S311
        self._source.pause(owned)
        if self.troubles.begin("tier", "RLY-932", error.reason):
            say(logging.ERROR, "consumer.tier_lost", consumer=self._name, code="RLY-932", reason=error.reason)

    def _commit(self, lanes: Sequence[Lane], *, wait: bool) -> None:
        try:
            self._source.commit(lanes, wait=wait)
            error = self._source.commit_error
        except KafkaException as raised:
            error = raised.args[0]
        if error is not None:
            self._source.commit_error = None
            say(logging.WARNING, "consumer.commit_failed", consumer=self._name, reason=error.name())
            for lane in lanes:
                lane.committed = -1

    def _look(self) -> None:
        self._lag = {place: lane.lag for place, lane in self._source.lanes.items()}

    def _finish(self) -> None:
        """What was fetched is applied, if the tier answers, and committed; then the group is left."""
        deadline = time.monotonic() + (DRAIN_SECONDS if self._drain else 0)
        while any(lane.read > lane.applied for lane in self._source.lanes.values()) and time.monotonic() < deadline:
            self._source.pause(self._source.lanes.values())
            self._source.fetch(1, 0.01)
            self._apply(time.monotonic())

    # From within fetch.

    def on_gained(self, lanes: Sequence[Lane], cold: Sequence[Cold]) -> None:
        """New lanes. Those that skip events begin a new epoch before anything of them is applied."""
        say(logging.INFO, "consumer.gained", consumer=self._name, partitions=len(lanes))
        for start in cold:
            self._go_cold(start)
        self._beat_at = 0.0
        if self._attempt:
            self._source.pause(lanes)

    def on_lost(self, lanes: Sequence[Lane], *, may_commit: bool) -> None:
        """Lanes that go. Committing here, before the others have them, is what keeps repeats few."""
        say(logging.INFO, "consumer.revoked", consumer=self._name, partitions=len(lanes), lost=not may_commit)
        if may_commit:
            self._commit(lanes, wait=True)

    def _go_cold(self, start: Cold) -> None:
        say(
            logging.ERROR, "consumer.cold_start", consumer=self._name, cause=start.cause, topic=start.topic,
            partition=start.partition, offset=start.offset,
        )  # fmt: skip
        if self._applier is not None:
            self._applier.owe_epoch(start.cause)

    def _on_epoch(self, cause: str) -> None:
        self._recorder.count(EPOCHS, cause)
        say(logging.ERROR, "consumer.epoch", consumer=self._name, cause=cause)

    def _on_error(self, error: KafkaError) -> None:
        """From librdkafka, about the client as a whole."""
        if error.fatal():
            self._fatal = error

    def _on_record_error(self, record: Any, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = error
        elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            lane = self._source.lanes.get((record.topic(), record.partition()))
            if lane is not None and lane not in self._cold:
                self._cold.append(lane)
        else:
            self.troubles.begin(f"topic {record.topic()}", "RLY-933", error.name())

    def _restart_cold(self) -> None:
        """Lanes whose offsets do not exist any more go on at the end of now, in a new epoch."""
        for lane in [lane for lane in self._cold if not lane.tasks]:
            try:
                end = self._source.ends([lane])[lane.topic, lane.partition]
            except KafkaException:
                return
            self._cold.remove(lane)
            if not lane.revoked:
                self._go_cold(Cold("offsets out of range", lane.topic, lane.partition, end))
                self._source.restart(lane, end)
