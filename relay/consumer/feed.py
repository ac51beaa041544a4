"""The feed of a process tier: every process reads all partitions itself, in no group, and opens and closes its tier.

    closed --> join: note the ends E of all partitions, read from there
       ^         |   wait until the shared tier has applied everything below E
       |         v
       +------ open: apply each event, prove every second that nothing is missing

Clearing the tier at the join would not do: it would be filled again from a shared tier that has not applied the events
before E either, and nobody would tell it of them. Opening begins a new generation, so no fill from before is put.

Once a second the feed asks where the partitions end. Having applied everything below that is its proof of being up to
date as of the moment in which it asked. Without a proof for three seconds, or when anything looks odd, it closes the
tier and joins anew: reads go to the shared tier meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from relay.cache.local import Local
from relay.cache.numbers import FEED_SILENCE, Numbers, Recorder, Sample
from relay.cache.tiers import SharedTier
from relay.consumer.events import say
from relay.consumer.health import Health, Troubles
from relay.consumer.settings import check_properties, consumer_properties
from relay.core.backoff import backoff_seconds
from relay.core.change import LIMITS, Limits
from relay.errors import CacheError, ConfigError

if TYPE_CHECKING:
    from relay.consumer.follower import Follower

STOP_SECONDS: Final = 10.0


class Feed:
    """Keeps a process tier right, from start to stop; the tier is closed before, after, and whenever that is in doubt.

    Args:
        kafka: librdkafka's properties, `bootstrap.servers` at least.
        topics: those that the consumer of the shared tier consumes.
        local: the process tier.
        shared: the shared tier behind it. None: there is none, and misses are loaded from the primary.
        limits: what an event may have at most.
        recorder: where metrics go.
        name: of this feed, in metrics and logs.

    Raises:
        ConfigError: RLY-201, RLY-207.
        CacheError: RLY-930.
    """

    def __init__(
        self,
        *,
        kafka: Mapping[str, Any],
        topics: Sequence[str],
        local: Local,
        shared: SharedTier | None = None,
        limits: Limits = LIMITS,
        recorder: Recorder | None = None,
        name: str = "local",
    ) -> None:
        if isinstance(topics, str) or not topics:
            raise CacheError("RLY-930", "a feed needs a list of topics", 'pass topics=["..."]')
        self._properties = consumer_properties(kafka, None)
        self._topics = list(topics)
        self._local = local
        self._shared = shared
        self._limits = limits
        self._recorder: Recorder = recorder if recorder is not None else Numbers()
        self._name = name
        self._troubles = Troubles()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._follower: Follower | None = None
        self._pid = 0
        self._heard_at = 0.0
        self._recorder.ask(self._silence)

    def start(self) -> None:
        """Closes the tier, starts the thread that will open it, and returns at once. Started twice, it goes on.

        Raises:
            ConfigError: RLY-206, librdkafka refuses a property; RLY-208, confluent-kafka is not installed.
        """
        try:
            from relay.consumer.follower import Follower
        except ImportError:
            raise ConfigError("RLY-208", "confluent-kafka is not installed", "pip install 'relay[consumer]'") from None
        check_properties(self._properties)
        with self._lock:
            if self._thread is not None and self._thread.is_alive() and self._pid == os.getpid():
                return
            self._local.close("the feed is starting")
            self._troubles.begin("feed", "RLY-939", "joining")
            self._stop = threading.Event()
            self._pid = os.getpid()
            arguments = (Follower, self._stop)
            self._thread = threading.Thread(target=self._run, args=arguments, name="relay-feed", daemon=True)
            self._thread.start()

    def stop(self, *, timeout_seconds: float = STOP_SECONDS) -> None:
        """Closes the tier and ends the thread. A second stop, or one before the start, does nothing."""
        with self._lock:
            thread = self._thread
        if thread is None or self._pid != os.getpid():
            return
        self._stop.set()
        thread.join(timeout_seconds)
        self._thread = None

    def health(self) -> Health:
        """How it is doing. Its progress age is that of its last proof of being up to date."""
        follower = self._follower
        is_running = self._thread is not None and self._thread.is_alive()
        if follower is None:
            return Health(is_running, {}, None, self._troubles.now())
        age = None if follower.proven is None else time.monotonic() - follower.proven
        return Health(is_running, follower.lag(), age, self._troubles.now())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _run(self, kind: type[Follower], stop: threading.Event) -> None:
        attempt = 0
        self._heard_at = time.monotonic()
        while not stop.is_set():
            began = time.monotonic()
            follower = kind(
                self._properties, self._topics, self._local, self._shared,
                limits=self._limits, on_proof=self._on_proof, name=self._name,
            )  # fmt: skip
            self._follower = follower
            cause = follower.follow(stop)
            self._follower = None
            self._local.close(cause)
            if stop.is_set():
                break
            self._troubles.begin("feed", "RLY-939", cause)
            say(logging.WARNING, "feed.closed", feed=self._name, cause=cause)
            attempt = 1 if time.monotonic() - began > 10 else attempt + 1
            stop.wait(backoff_seconds(attempt, random.random(), first=0.1, cap=2.0))  # noqa: S311

    def _on_proof(self, silence_seconds: float) -> None:
        self._heard_at = time.monotonic() - silence_seconds
        if self._local.is_open:
            self._troubles.end("feed")

    def _silence(self) -> Iterator[Sample]:
        """Read when somebody asks: shown at each proof, it would stand still as soon as there is none."""
        if self._thread is not None and self._thread.is_alive() and self._pid == os.getpid() and self._heard_at:
            yield Sample(FEED_SILENCE, (self._name,), time.monotonic() - self._heard_at)
