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
from datetime import datetime
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

from relay.cache.numbers import EPOCHS, EVENT_LAG, EVENTS, Recorder
from relay.cache.tiers import SharedTier, TierError
from relay.consumer.applying import Applier
from relay.consumer.effects import Effects
from relay.consumer.events import say
from relay.consumer.failpoints import failpoint
from relay.consumer.health import Health, Troubles
from relay.consumer.lane import Lane, Task
from relay.consumer.records import decode_record
from relay.consumer.runner import Runner
from relay.consumer.source import Cold, Listener, Source
from relay.core.backoff import backoff_seconds
from relay.core.change import LIMITS, Change, Limits
from relay.errors import CacheError
from relay.kafka_words import LastWords, words_of

BATCH: Final = 1000
POLL_SECONDS: Final = 0.1
BEAT_SECONDS: Final = 1.0
COMMIT_SECONDS: Final = 1.0
DRAIN_SECONDS: Final = 10.0
REVOKE_SECONDS: Final = 20.0
"""Far below `max.poll.interval.ms`, or the group would go on without us all the same."""


class Loop(Listener):
    """One run of a consumer, from start to stop."""

    def __init__(
        self,
        name: str,
        make_source: Callable[[Listener, Callable[[Any], None]], Source],
        *,
        shared: SharedTier | None,
        recorder: Recorder,
        runner: Runner,
        troubles: Troubles,
        words: LastWords,
        limits: Limits = LIMITS,
    ) -> None:
        self._name = name
        self._words = words
        self._make_source = make_source
        self._applier = None if shared is None else Applier(shared, self._on_epoch)
        self._recorder = recorder
        self._limits = limits
        self._effects = Effects()
        self._events = 0
        self._newest_ts: str | None = None
        self._stop = threading.Event()
        self._drain = True
        self._fatal: KafkaError | None = None
        self._attempt = 0
        self._retry_at = self._beat_at = self._commit_at = 0.0
        self._progress_at: float | None = None
        self._lag: dict[tuple[str, int], int | None] = {}
        self._cold: dict[Lane, str] = {}
        self._source: Source
        self._runner = runner
        self._tasks: dict[Lane, list[Task]] = {}
        self.troubles = troubles
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
            self._runner.close()
            self.is_running = False

    def _turn(self) -> None:
        now = time.monotonic()
        wait = POLL_SECONDS if now >= self._retry_at else min(POLL_SECONDS, self._retry_at - now)
        self._read(self._source.fetch(BATCH, wait))
        if self._fatal is not None:
            raise CacheError(
                "RLY-931", f"Kafka has shut this consumer out: {words_of(self._fatal)}",
                "start it anew; give each member a group.instance.id of its own",
            )  # fmt: skip
        if self._runner.failure is not None:
            raise self._runner.failure
        now = time.monotonic()
        self._apply(now)
        self._restart_cold()
        self._runner.watch()
        self._balance()
        if now >= self._commit_at:
            self._commit_at = now + COMMIT_SECONDS
            self._look()
            self._commit(list(self._source.lanes.values()), wait=False)

    def _read(self, records: Sequence[Any]) -> None:
        """Decodes into the effects of the batch. A lane that is not owned any more is passed over."""
        lanes, effects, limits = self._source.lanes, self._effects, self._limits
        hooks_of, unknown = self._runner.hooks.of, self._runner.unknown
        newest: Change | None = None
        for record in records:
            error = record.error()
            lane = lanes.get((record.topic(), record.partition()))
            if error is not None:
                self._on_record_error(record, error, lane)
                continue
            offset = record.offset()
            if lane is None or offset < lane.read:
                continue
            lane.read = offset + 1
            self._events += 1
            event = decode_record(record, limits)
            newest = event if isinstance(event, Change) else newest
            stays_unknown = False
            if isinstance(event, Change):
                has_hooks = bool(hooks_of(event.entity))
                stays_unknown = bool(unknown) and has_hooks and (event.entity, event.id) in unknown
                effects.add(event, stays_unknown=stays_unknown)
                if not has_hooks:
                    continue
            else:
                effects.add_malformed(event)
            self._tasks.setdefault(lane, []).append(Task(offset, event, record, stays_unknown))
        if newest is not None:
            self._newest_ts = newest.ts

    def _apply(self, now: float) -> None:
        """Applies what was read, or tells the tier each second that nothing was: so a flush is noticed."""
        owned = list(self._source.lanes.values())
        lanes = owned if now >= self._beat_at else [lane for lane in owned if lane.read > lane.applied]
        if not lanes or now < self._retry_at:
            return
        failpoint("consumer_before_apply")
        try:
            if self._applier is None:
                for lane in lanes:
                    lane.applied = lane.read
            else:
                self._applier.apply(self._effects.bumps(), lanes, owned)
        except TierError as error:
            self._on_tier_error(error, now)
            return
        if self._events:
            failpoint("consumer_after_apply")
        self._effects = Effects()
        self._progress_at = now
        for lane, tasks in self._tasks.items():
            self._runner.submit(lane, tasks)
        self._tasks = {}
        if lanes is owned:
            self._beat_at = now + BEAT_SECONDS
        if self._events:
            self._recorder.count(EVENTS, self._name, "applied", by=self._events)
            self._measure_lag()
            self._events = 0
        if self._attempt:
            self._attempt = 0
            away = self.troubles.end("tier") or 0
            say(logging.INFO, "consumer.tier_back", consumer=self._name, away_s=round(away, 1))

    def _measure_lag(self) -> None:
        """Of one event per batch: how long after its change it was applied, as the clocks of two machines say."""
        try:
            changed_at = datetime.fromisoformat(self._newest_ts or "")
        except ValueError:
            return
        if changed_at.tzinfo is not None:
            lag = time.time() - changed_at.timestamp()
            self._recorder.measure(EVENT_LAG, self._name, value=max(0.0, lag))

    def _on_tier_error(self, error: TierError, now: float) -> None:
        """Keeps the position and its effects, fetches nothing more, and tries again."""
        self._attempt += 1
        self._retry_at = now + backoff_seconds(self._attempt, random.random(), first=0.05, cap=2.0)  # noqa: S311
        if self.troubles.begin("tier", "RLY-932", error.reason):
            say(logging.ERROR, "consumer.tier_lost", consumer=self._name, code="RLY-932", reason=error.reason)

    def _balance(self) -> None:
        """Fetches nothing while the tier is away, nor of a lane whose hooks are behind."""
        most = self._runner.settings.queue_max
        lanes = self._source.lanes.values()
        behind = {lane for lane in lanes if self._attempt or len(lane.tasks) > (most // 4 if lane.is_paused else most)}
        self._source.pause(behind)
        self._source.resume([lane for lane in lanes if lane not in behind])

    def _commit(self, lanes: Sequence[Lane], *, wait: bool) -> None:
        if self._applier is not None and self._applier.owes_epoch:
            return  # committed now, the next owner would not know that something was skipped
        failpoint("consumer_before_commit")
        try:
            self._source.commit(lanes, wait=wait)
            failpoint("consumer_after_commit")
            error = self._source.commit_error
        except KafkaException as raised:
            error = raised.args[0]
        if error is not None:
            self._source.commit_error = None
            say(logging.WARNING, "consumer.commit_failed", consumer=self._name, reason=words_of(error))
            for lane in lanes:
                lane.committed = -1

    def _look(self) -> None:
        """What health shows; and whether a topic is still the one whose offsets these are."""
        self._source.look()
        self._lag = {place: lane.lag for place, lane in self._source.lanes.items()}
        found = self._source.shapes()
        if not found:
            return
        self._words.forget()
        away = self.troubles.end("kafka")
        if away is not None:
            say(logging.INFO, "consumer.kafka_back", consumer=self._name, away_s=round(away, 1))
        for lane in self._source.lanes.values():
            if lane.topic in found and lane.topic_id not in ("", found[lane.topic].id):
                self._must_restart(lane, "topic made anew")

    def _finish(self) -> None:
        """What was fetched is applied, if the tier answers, and committed; then the group is left."""
        deadline = time.monotonic() + (DRAIN_SECONDS if self._drain else 0)
        while time.monotonic() < deadline:
            lanes = list(self._source.lanes.values())
            self._source.pause(lanes)
            self._source.fetch(1, 0)
            self._apply(time.monotonic())
            self._runner.watch()
            is_applied = not any(lane.read > lane.applied for lane in lanes)
            if self._runner.settle(lanes, 0.05, all_of_them=True) and is_applied:
                break
        self._commit(list(self._source.lanes.values()), wait=True)

    # From within fetch.

    def on_gained(self, lanes: Sequence[Lane], cold: Sequence[Cold]) -> None:
        """New lanes. Those that skip events begin a new epoch before anything of them is applied."""
        say(logging.INFO, "consumer.gained", consumer=self._name, partitions=len(lanes))
        self._go_cold(cold)
        self._beat_at = 0.0

    def on_lost(self, lanes: Sequence[Lane], *, may_commit: bool) -> None:
        """Lanes that go. Committing here, before the others have them, is what keeps repeats few."""
        say(logging.INFO, "consumer.revoked", consumer=self._name, partitions=len(lanes), lost=not may_commit)
        for lane in lanes:
            lane.revoked = True  # no further task of it is begun
        if may_commit:
            # The next owner begins with what is committed here: a hook should have ended before. The group waits.
            until = time.monotonic() + min(self._runner.settings.hook_seconds + 1, REVOKE_SECONDS)
            while not self._runner.settle(lanes, 0.1, all_of_them=False) and time.monotonic() < until:
                self._runner.watch()
            self._commit(lanes, wait=True)

    def _go_cold(self, starts: Sequence[Cold]) -> None:
        for cause, topic in sorted({(start.cause, start.topic) for start in starts}):
            partitions = sorted(start.partition for start in starts if start.cause == cause and start.topic == topic)
            say(
                logging.ERROR, "consumer.cold_start", consumer=self._name, cause=cause, topic=topic,
                partitions=",".join(map(str, partitions)),
            )  # fmt: skip
            if self._applier is not None:
                self._applier.owe_epoch(cause)

    def _on_epoch(self, cause: str) -> None:
        self._recorder.count(EPOCHS, cause)
        say(logging.ERROR, "consumer.epoch", consumer=self._name, cause=cause)

    def _on_error(self, error: KafkaError) -> None:
        """From librdkafka, about the client as a whole."""
        self._words.note(error)
        if _is_fatal(error):
            self._fatal = error
            return
        # One broker that is lost is replaced by others; one that refuses the login is not.
        if error.code() not in (KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION):
            return
        reason = self._words.words
        if self.troubles.begin("kafka", "RLY-701", reason):
            say(logging.ERROR, "consumer.kafka_trouble", consumer=self._name, code="RLY-701", reason=reason)

    def _must_restart(self, lane: Lane, cause: str) -> None:
        self._cold.setdefault(lane, cause)

    def _on_record_error(self, record: Any, error: KafkaError, lane: Lane | None) -> None:
        if _is_fatal(error):
            self._fatal = error
        elif error.code() == KafkaError._PARTITION_EOF:
            # Beyond the marks of transactions, which nobody is handed.
            if lane is not None:
                lane.read = max(lane.read, record.offset())
                self.troubles.end(f"topic {lane.topic}")
        elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            if lane is not None:
                self._must_restart(lane, "offsets out of range")
        elif self.troubles.begin(f"topic {record.topic()}", "RLY-933", words_of(error)):
            say(logging.ERROR, "consumer.kafka_trouble", consumer=self._name, code="RLY-933", reason=words_of(error))

    def _restart_cold(self) -> None:
        """Lanes whose offsets mean nothing any more go on at the end of now, in a new epoch; after their hooks, for
        whatever has been read already."""
        for lane, cause in list(self._cold.items()):
            if lane.revoked:
                del self._cold[lane]
            elif not lane.tasks and lane.read == lane.applied:
                try:
                    end = self._source.end(lane)
                except KafkaException:
                    return
                del self._cold[lane]
                self._go_cold([Cold(cause, lane.topic, lane.partition, end)])
                self._source.restart(lane, end)


def _is_fatal(error: KafkaError) -> bool:
    """On records a fatal error is one of its own kind, and not marked as fatal."""
    return error.fatal() or error.code() == KafkaError._FATAL
