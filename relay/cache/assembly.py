"""What both faces have in common: readers made from settings, sessions, counting, and what a fork takes away."""

from __future__ import annotations

import inspect
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any, Final
from weakref import WeakSet

from relay.cache.arguments import digest_of_arguments
from relay.cache.callables import Stats
from relay.cache.codecs import JsonCodec
from relay.cache.heat import Heat
from relay.cache.local import Local
from relay.cache.numbers import BREAKER_OPEN, EVICTIONS, LOCAL_ENTRIES, READS, TIER_OPEN, Numbers, Recorder, Sample
from relay.cache.plan import Plan
from relay.cache.reader import BYPASS, BYPASSES, Reader, Target
from relay.cache.server_clock import ServerClock
from relay.cache.sessions import OpenSession, Sessions
from relay.cache.settings import DerivedSettings, EntitySettings
from relay.core.names import derived_name, record_name, stamp_name, versioned_prefix
from relay.core.policy import Session
from relay.errors import CacheError

_all: WeakSet[Assembly] = WeakSet()


class Assembly:
    """The readers of one cache, and what they share."""

    def __init__(
        self,
        name: str,
        local: Local | None,
        sessions: Sessions | None,
        recorder: Recorder | None,
        *,
        has_shared: bool,
        clock: Callable[[], float] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.name: Final = name
        self.local: Final = local
        self.recorder: Recorder = recorder or Numbers()
        self.sessions: Final = sessions or Sessions(namespace=name, recorder=self.recorder)
        self.readers: Final[dict[str, Reader]] = {}
        self.has_shared = has_shared
        self._server_clock = ServerClock()
        # One clock for both: entries carry moments of it.
        self._clock = clock or (time.monotonic if local is None else local.clock)
        self._draw = draw
        self._heats: list[Heat] = []
        self.recorder.ask(self._samples)
        if local is not None:
            self.sessions.tell(local.apply)
        _all.add(self)

    def session(self, token: str | None = None) -> OpenSession:
        """A session to be entered with `with` or `async with`; see `relay.cache.sessions`."""
        return self.sessions.open(token)

    @contextmanager
    def bypass(self) -> Iterator[None]:
        """For a transaction that has written and not committed: reads come from the source and are kept nowhere.

        Without it a loader that runs in such a transaction makes copies of rows that may be rolled back, and copies of
        before hide from the transaction what it has written itself.
        """
        token = BYPASS.set(True)
        BYPASSES.append(None)
        try:
            yield
        finally:
            BYPASSES.pop()
            BYPASS.reset(token)

    def make_entity(self, name: str, settings: EntitySettings, loader: Callable[..., Any]) -> tuple[Reader, Heat]:
        """The reader of an entity."""
        own: dict[str, Any] = dict(settings)
        prefix = record_name(name, "")

        def target(id_: Any) -> Target:
            key = f"{id_}"
            return Target(key, prefix + key, (id_,))

        is_local, load_many = own.pop("local", True), own.pop("load_many", None)
        reader = Reader(
            self._plan(name, own),
            target,
            loader,
            recorder=self.recorder,
            local=self.local if is_local else None,
            has_shared=self.has_shared,
            server_clock=self._server_clock,
            clock=self._clock,
            draw=self._draw,
        )
        reader.load_many = load_many
        heat = Heat(reader.space.take_heat)
        self._heats.append(heat)
        self._add(name, reader)
        return reader, heat

    def make_values(self, name: str, settings: Mapping[str, Any], loader: Callable[..., Any]) -> Reader:
        """The reader of single versions of an entity, by `relay.cache.versioned.Key`."""
        own: dict[str, Any] = dict(settings)
        local, prefix = (self.local if own.pop("local", True) else None), versioned_prefix(name)
        reader = Reader(
            self._plan(f"{name}.values", own),
            lambda key: Target(f"{key}", f"{prefix}{key}", key),
            loader,
            recorder=self.recorder,
            local=local,
            has_shared=self.has_shared,
            server_clock=self._server_clock,
            clock=self._clock,
            draw=self._draw,
        )
        if local is not None:
            # No event is meant for these: an entity whose name is that of the plan may have floors.
            reader.space = local.space(f"v:{name}")
        self._add(f"values of {name}", reader)
        return reader

    def make_derived(self, name: str, settings: DerivedSettings, function: Callable[..., Any]) -> Reader:
        """The reader of the results of a function."""
        own: dict[str, Any] = dict(settings)
        depends = own.pop("depends", None)
        ttl = own.pop("ttl", 60.0)
        if isinstance(own.get("policy"), Session):
            raise CacheError(
                "RLY-915", f"{name} is derived and has the policy Session", "a session knows versions of entities only"
            )
        signature = inspect.signature(function)

        def target(call: tuple[tuple[Any, ...], dict[str, Any]]) -> Target:
            bound = signature.bind(*call[0], **call[1])
            bound.apply_defaults()
            try:
                digest = digest_of_arguments(bound.arguments)
            except TypeError as error:
                raise CacheError("RLY-916", f"{name}: {error}", "pass plain values, or dataclasses of them") from error
            stamps = () if depends is None else tuple(map(stamp_name, depends(*call[0], **call[1])))
            return Target(digest, derived_name(name, digest), (bound,), stamps)

        reader = Reader(
            self._plan(name, {**own, "hard_ttl": ttl, "negative_ttl": ttl}),
            target,
            update_wrapper(lambda bound: function(*bound.args, **bound.kwargs), function),
            recorder=self.recorder,
            # Stamps are renewed in the shared tier: an entry of the process tier would not hear of it.
            local=None if self.has_shared else self.local,
            has_shared=self.has_shared,
            is_derived=True,
            server_clock=self._server_clock,
            clock=self._clock,
            draw=self._draw,
        )
        self._add(f"derived {name}", reader)
        return reader

    def void_derived(self) -> None:
        """Drops all results of the process tier."""
        if self.local is not None:
            for reader in self.readers.values():
                if reader.is_derived:
                    self.local.void(reader.space)

    def switch(self, reader: Reader, *, is_off: bool) -> None:
        """Off or on. Entries of before are gone either way."""
        reader.is_off = is_off
        if reader.local is not None:
            reader.local.turn(reader.space, is_off=is_off)

    @staticmethod
    def stats_of(reader: Reader) -> Stats:
        """Counts of this moment."""
        return Stats(reader.space.hits, len(reader.space.entries), reader.bulkhead.waiting, reader.is_off)

    def _plan(self, name: str, own: Mapping[str, Any]) -> Plan:
        codec = own.get("codec") or (JsonCodec() if self.has_shared else None)
        early = float(own.get("early", 1.0))
        return Plan(name, **{**own, "codec": codec, "early": early})

    def _add(self, name: str, reader: Reader) -> None:
        if name in self.readers:
            raise CacheError("RLY-915", f"there are two caches of {name}", "give one of them another name")
        self.readers[name] = reader

    def _samples(self) -> Iterable[Sample]:
        for reader in self.readers.values():
            if reader.local is not None:
                yield Sample(READS, (reader.plan.name, "local", "hit"), reader.space.hits)
            if reader.has_shared:
                yield Sample(READS, (reader.plan.name, "shared", "hit"), reader.shared_hits)
        # The tiers of each face are their own; whichever has a breaker has it under this name.
        breaker = getattr(getattr(self, "shared", None), "breaker", None)
        if breaker is not None:
            yield Sample(BREAKER_OPEN, ("shared",), float(breaker.is_open))
        if self.local is not None:
            size = self.local.size()
            yield Sample(LOCAL_ENTRIES, (), size.entries)
            yield Sample(EVICTIONS, (), size.evictions)
            yield Sample(TIER_OPEN, ("local",), float(self.local.is_open))

    def after_fork(self) -> None:
        """In a child: no thread of the parent is there to end what it has begun."""
        for reader in self.readers.values():
            reader.flights.forget_all()
            reader.bulkhead.reset()
        for heat in self._heats:
            heat.reset()
        if isinstance(self.recorder, Numbers):
            self.recorder.after_fork()


def _after_fork() -> None:
    for assembly in list(_all):
        assembly.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
