"""A consumer of changes, inside a service: it keeps the shared tier right, and calls the service's own hooks."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from relay.cache.local import Local
from relay.cache.numbers import Numbers, Recorder
from relay.cache.tiers import SharedTier
from relay.consumer import failpoints  # noqa: F401 - so that their names are known before the consumer runs
from relay.consumer.calls import HookSettings
from relay.consumer.events import say
from relay.consumer.feed import Feed
from relay.consumer.health import Health, Troubles
from relay.consumer.hooks import Hook, Hooks
from relay.consumer.settings import check_properties, consumer_properties
from relay.core.change import LIMITS, Limits
from relay.errors import CacheError, ConfigError
from relay.kafka_words import LastWords

if TYPE_CHECKING:
    from relay.consumer.loop import Loop

STOP_SECONDS = 30.0


class Consumer:
    """Consumes changes from start to stop, at least once and in order per partition.

    Args:
        kafka: librdkafka's properties, `bootstrap.servers` at least.
        topics: what to consume.
        group: consumers of one group share the partitions.
        shared: the shared tier that this group keeps right, if there is one.
        local: the process tier of this service: a `Feed` for it starts and stops with the consumer.
        hooks: deadlines, tries and threads of hooks.
        hook_loop: where hooks that are coroutine functions run. By default the loop in which `async with` is entered,
            otherwise one of the consumer's own.
        dead_letters: topic to dead-letter topic; by default its name with `.dead`, created when it is needed.
        limits: what an event may have at most.
        from_beginning: whether a group without offsets begins with the oldest event; otherwise with the next one.
        recorder: where metrics go.

    Raises:
        ConfigError: RLY-201, RLY-207, RLY-208.
        CacheError: RLY-930.
    """

    def __init__(
        self,
        *,
        kafka: Mapping[str, Any],
        topics: Sequence[str],
        group: str,
        shared: SharedTier | None = None,
        local: Local | None = None,
        hooks: HookSettings | None = None,
        hook_loop: asyncio.AbstractEventLoop | None = None,
        dead_letters: Mapping[str, str] | None = None,
        limits: Limits = LIMITS,
        from_beginning: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        if isinstance(topics, str) or not topics or not group or any(topic.startswith("^") for topic in topics):
            raise CacheError(
                "RLY-930", "a consumer needs a list of topics and a group", 'pass topics=["..."], group="..."'
            )
        self._properties = consumer_properties(kafka, group)
        self._topics = list(topics)
        self._name = group
        self._shared = shared
        self._limits = limits
        self._from_beginning = from_beginning
        self._recorder: Recorder = recorder if recorder is not None else Numbers()
        self._hooks = Hooks()
        self._hook_settings = hooks or HookSettings()
        self._hook_loop = hook_loop
        self._may_choose_loop = hook_loop is None
        self._feed: Feed | None = None
        if local is not None:
            self._feed = Feed(
                kafka=kafka, topics=topics, local=local, shared=shared, limits=limits, recorder=recorder, name=group
            )
        self._dead_letters = dict(dead_letters or {})
        self._lock = threading.Lock()
        self._loop: Loop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._failure: BaseException | None = None

    def on(self, entity: str, hook: Hook | None = None) -> Any:
        """Has the hook called with every change of this entity, `"*"` for all; a decorator if no hook is given.

        A hook may be a coroutine function. It may be called again for the same event, and of one partition's events it
        is called in their order. It returns what else has to be invalidated: `Key`, `Stamp`, several of them, or None.

        Raises:
            CacheError: RLY-930, it cannot be called, or the consumer runs already.
        """
        if hook is None:
            return lambda function: self.on(entity, function) or function
        if self._thread is not None and self._thread.is_alive():
            raise CacheError("RLY-930", "the consumer runs already", "add hooks before start()")
        self._hooks.add(entity, hook)
        return None

    def start(self) -> None:
        """Starts the polling thread and returns at once. Started twice, it goes on.

        Raises:
            ConfigError: RLY-206, librdkafka refuses a property; RLY-208, confluent-kafka is not installed.
        """
        with self._lock:
            if self._thread is not None and self._thread.is_alive() and self._pid == os.getpid():
                return
            self._loop = self._new_loop()
            self._failure = None
            self._pid = os.getpid()
            self._thread = threading.Thread(target=self._run, args=(self._loop,), name="relay-consumer", daemon=True)
            self._thread.start()
        if self._feed is not None:
            self._feed.start()
        say(logging.INFO, "consumer.started", consumer=self._name, topics=",".join(self._topics))

    def stop(self, *, drain: bool = True, timeout_seconds: float = STOP_SECONDS) -> None:
        """Stops and returns when it has stopped: what was fetched is applied and committed, unless `drain` is False.

        A second stop, or one before the start, does nothing.
        """
        if self._feed is not None:
            self._feed.stop()
        with self._lock:
            thread, loop = self._thread, self._loop
        if thread is None or loop is None or self._pid != os.getpid():
            return
        loop.stop(drain=drain)
        thread.join(timeout_seconds)
        say(logging.INFO, "consumer.stopped", consumer=self._name, drained=drain and not thread.is_alive())

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Returns when the consumer has stopped, or the time is over.

        Raises:
            CacheError: RLY-931: it could not go on.
        """
        if self._thread is not None:
            self._thread.join(timeout_seconds)
        if self._failure is not None:
            raise self._failure

    def health(self) -> Health:
        """How it is doing; the problems are also those of its feed, if it has one."""
        loop = self._loop
        health = Health(False, {}, None, ()) if loop is None else loop.health()
        if self._feed is None or not health.is_running:
            return health
        return replace(health, problems=health.problems + self._feed.health().problems)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        if self._may_choose_loop:
            self._hook_loop = asyncio.get_running_loop()
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _new_loop(self) -> Loop:
        try:
            from relay.consumer.deadletters import DeadLetters
            from relay.consumer.loop import Loop
            from relay.consumer.runner import Runner
            from relay.consumer.source import Source
        except ImportError:
            raise ConfigError("RLY-208", "confluent-kafka is not installed", "pip install 'relay[consumer]'") from None
        check_properties(self._properties)
        troubles = Troubles()
        runner = Runner(
            self._name,
            self._hooks,
            self._hook_settings,
            shared=self._shared,
            dead_letters=DeadLetters(self._properties, self._name, self._dead_letters),
            troubles=troubles,
            recorder=self._recorder,
            loop=self._hook_loop,
        )
        return Loop(
            self._name,
            lambda listener, on_error: Source(
                self._properties, self._topics, listener, from_beginning=self._from_beginning, on_error=on_error
            ),
            shared=self._shared,
            recorder=self._recorder,
            runner=runner,
            troubles=troubles,
            words=LastWords(self._properties),
            limits=self._limits,
        )

    def _run(self, loop: Loop) -> None:
        try:
            loop.run()
        except BaseException as error:
            self._failure = error
            code = getattr(error, "code", "RLY-931")
            loop.troubles.begin("consumer", "RLY-931", type(error).__name__)
            where = traceback.extract_tb(error.__traceback__)[-1]
            say(
                logging.ERROR, "consumer.failed", consumer=self._name, code=code, reason=type(error).__name__,
                where=f"{Path(where.filename).name}:{where.lineno}",
            )  # fmt: skip
