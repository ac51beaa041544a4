"""Runs hooks beside the polling thread: in order per partition, and none of them able to stop the rest.

    ready lane --> worker: its first task --> its hooks, one after the other
                     |        |- all succeed: what they asked for is applied to the shared tier; next task
                     |        `- one is given up, or the event is malformed: the entity is marked as unknown,
                     |           the event goes to the dead-letter topic; next task
                     `- a call hangs: its thread is left behind, another worker takes the lane over

After a few threads that were left behind there are no more workers, and events wait.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import random
import threading
import time
from collections.abc import Sequence
from typing import Final

from relay.cache.numbers import EVENTS, Recorder
from relay.cache.tiers import Bump, SharedTier, TierError
from relay.consumer.calls import Calls, GivenUp, HookSettings, Worker
from relay.consumer.deadletters import DeadLetters, SetAsideError
from relay.consumer.events import say
from relay.consumer.failpoints import failpoint
from relay.consumer.health import Troubles
from relay.consumer.hooks import Hooks, Wanted
from relay.consumer.lane import Lane, Task
from relay.core.backoff import backoff_seconds
from relay.core.change import Malformed
from relay.core.names import record_name

LEFT_BEHIND_MAX: Final = 8
TURN: Final = 64
"""A worker does so many tasks of a lane before it takes another one."""
UNKNOWN_MAX: Final = 100_000


class Runner:
    """The workers of one run of a consumer."""

    def __init__(
        self,
        name: str,
        hooks: Hooks,
        settings: HookSettings,
        *,
        shared: SharedTier | None,
        dead_letters: DeadLetters,
        troubles: Troubles,
        recorder: Recorder,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.hooks = hooks
        self.settings = settings
        self._name = name
        self._shared = shared
        self._dead_letters = dead_letters
        self._troubles = troubles
        self._recorder = recorder
        self._lock = threading.Condition(threading.RLock())
        self._closing = threading.Event()
        self._calls = Calls(name, settings, self._lock, self._closing, loop)
        self._ready: queue.SimpleQueue[Lane | None] = queue.SimpleQueue()
        self._workers: set[Worker] = set()
        self._left_behind = 0
        self._hung: dict[Lane, GivenUp] = {}
        self.failure: BaseException | None = None
        """What no worker should ever raise. The consumer cannot go on then."""
        self.unknown: dict[tuple[str, str], None] = {}
        """Entities of which an event was given up, and none has succeeded since. Read by the polling thread."""

    def submit(self, lane: Lane, tasks: Sequence[Task]) -> None:
        """More tasks of a lane, in order."""
        with self._lock:
            lane.tasks.extend(tasks)
            self._offer(lane)
            while len(self._workers) < self.settings.workers and self._left_behind <= LEFT_BEHIND_MAX:
                self._hire()

    def watch(self) -> None:
        """Leaves calls behind whose deadline has passed. To be called every now and then."""
        now = time.monotonic()
        with self._lock:
            for worker in list(self._workers):
                if worker.deadline is not None and worker.deadline < now and worker.lane is not None:
                    self._leave_behind(worker, worker.lane)
            if self._left_behind:
                self._troubles.begin("hooks", "RLY-936", f"{self._left_behind} calls have not ended")
            else:
                self._troubles.end("hooks")

    def settle(self, lanes: Sequence[Lane], timeout_seconds: float, *, all_of_them: bool) -> bool:
        """Waits until these lanes have no call under way, or with `all_of_them` no task at all."""
        with self._lock:
            return self._lock.wait_for(
                lambda: not any(lane.busy or (all_of_them and lane.tasks) for lane in lanes), timeout_seconds
            )

    def close(self) -> None:
        """Ends the workers that are not left behind; tasks that wait stay undone."""
        self._closing.set()
        with self._lock:
            for _ in self._workers:
                self._ready.put(None)
        self._calls.close()

    # Under the lock.

    def _offer(self, lane: Lane) -> None:
        if lane.tasks and not lane.busy and not lane.revoked:
            lane.busy = True
            self._ready.put(lane)

    def _hire(self) -> None:
        worker = Worker()
        self._workers.add(worker)
        threading.Thread(target=self._work, args=(worker,), name="relay-hooks", daemon=True).start()

    def _leave_behind(self, worker: Worker, lane: Lane) -> None:
        worker.is_left_behind = True
        self._workers.discard(worker)
        self._left_behind += 1
        self._hung[lane] = GivenUp("RLY-936", "the hook did not end in time", 1)
        lane.busy = False
        self._offer(lane)
        if self._left_behind <= LEFT_BEHIND_MAX:
            self._hire()

    # In the threads of workers.

    def _work(self, worker: Worker) -> None:
        try:
            self._take_turns(worker)
        except BaseException as error:
            self.failure = error

    def _take_turns(self, worker: Worker) -> None:
        while not self._closing.is_set() and (lane := self._ready.get()) is not None:
            worker.lane = lane
            for _ in range(TURN):
                if lane.revoked or self._closing.is_set() or not lane.tasks or not self._finish(worker, lane):
                    break
                lane.tasks.popleft()
            with self._lock:
                if worker.is_left_behind:
                    self._left_behind -= 1
                    return
                worker.lane = None
                lane.busy = False
                if not self._closing.is_set():
                    self._offer(lane)
                self._lock.notify_all()
        with self._lock:
            self._workers.discard(worker)

    def _finish(self, worker: Worker, lane: Lane) -> bool:
        """Whether the first task of the lane is over, one way or the other; else it stays for others."""
        task = lane.tasks[0]
        event = task.event
        if isinstance(event, Malformed):
            return self._set_aside(lane, task, GivenUp("RLY-934", event.reason, 0))
        entity, into = (event.entity, event.id), Wanted([], [])
        given_up = self._hung.pop(lane, None) or self._calls.call_all(worker, self.hooks.of(event.entity), event, into)
        if worker.is_left_behind or self._closing.is_set():
            return False
        if given_up is not None:
            if len(self.unknown) < UNKNOWN_MAX:
                self.unknown[entity] = None
            mark = [Bump(record_name(*entity), None, unknown=True)]
            return self._apply(mark, [], lane) and self._set_aside(lane, task, given_up)
        if task.stays_unknown or entity in self.unknown:
            into.bumps.append(Bump(record_name(*entity), event.version, unknown=False))
        failpoint("consumer_between_effects")
        if not self._apply(into.bumps, into.stamps, lane):
            return False
        self.unknown.pop(entity, None)
        return True

    def _set_aside(self, lane: Lane, task: Task, why: GivenUp) -> bool:
        """Writes the event to the dead-letter topic, however long that takes; False if it was not to be."""
        record, attempt = task.record, 0
        topic = self._dead_letters.topic_of(record.topic())
        while not (self._closing.is_set() or lane.revoked):
            try:
                self._dead_letters.put(record, why.code, why.reason, why.attempts)
            except SetAsideError as error:
                attempt += 1
                if self._troubles.begin(f"dead letters {topic}", "RLY-938", str(error)):
                    say(
                        logging.ERROR, "consumer.cannot_set_aside", consumer=self._name, code="RLY-938", topic=topic,
                        reason=str(error),
                    )  # fmt: skip
                self._closing.wait(backoff_seconds(attempt, random.random()))  # noqa: S311
                continue
            self._troubles.end(f"dead letters {topic}")
            self._recorder.count(EVENTS, self._name, "malformed" if why.code == "RLY-934" else "failed")
            say(
                logging.ERROR, "consumer.set_aside", consumer=self._name, code=why.code, reason=why.reason,
                topic=record.topic(), partition=record.partition(), offset=record.offset(),
            )  # fmt: skip
            return True
        return False

    def _apply(self, bumps: Sequence[Bump], stamps: Sequence[str], lane: Lane) -> bool:
        """Whether the tier has taken it. A closed one has nothing to invalidate: its next epoch begins empty."""
        attempt = 0
        while self._shared is not None and (bumps or stamps):
            try:
                self._shared.apply(bumps, stamps, ())
                break
            except TierError:
                attempt += 1
                pause = backoff_seconds(attempt, random.random(), cap=2.0)  # noqa: S311
                if lane.revoked or self._closing.wait(pause):
                    return False
        return True
