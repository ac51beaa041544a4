"""The shortest way in which each guard fails in the model, played on the code: with its guards, and without that one.

On the reference and on a real Redis, by the drivers for threads and for tasks. Without the guard something stale stays
for ever, or a reader gets less than it was promised; with it, and all else the same, neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, Final

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from relay.cache.redis import commands
from relay.cache.redis.async_shared import AsyncRedisShared
from relay.cache.reference import AsyncReferenceTier
from tests.simulation.backends import OnRedis, Reference
from tests.simulation.cases import WITHOUT
from tests.simulation.explorer import Move
from tests.simulation.model import explore
from tests.simulation.mutants import EDITS, Parts, parts
from tests.simulation.protocol import Case, Guards
from tests.simulation.replay import Replay
from tests.simulation.stepper import in_loop, in_thread
from tests.simulation.world import World

ELSEWHERE: Final = {"only_committed": "the outbox; see tests/integration/test_outbox.py"}
"""Guards that are not those of the cache or its consumer."""

CASES: Final = [case for case in WITHOUT if case.name.removeprefix("without ") not in ELSEWHERE]
FACES: Final = ("threads", "tasks")
TIERS: Final = ("reference", "redis")
SECONDS: Final = 60.0


@cache
def _trace(case: Case) -> tuple[Move, ...]:
    outcome = explore(case)
    assert outcome.trace
    return outcome.trace


def _guard(case: Case) -> str:
    return case.name.removeprefix("without ")


@contextmanager
def _world(code: Parts, tier: str, face: str, request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(code, is_async=face == "tasks")
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        shared: Any
        if tier == "reference":
            world.backend = Reference(world.clock_ms, world.fresh_token, code.reference)
            shared = AsyncReferenceTier(world.backend.tier)
            close = None
        else:
            url, namespace = request.getfixturevalue("redis_url"), request.getfixturevalue("namespace")
            client = Redis.from_url(url, protocol=2)
            world.backend = OnRedis(client, namespace, world.clock_ms, world.fresh_token)
            shared = AsyncRedisShared(
                AsyncRedis.from_url(url, protocol=2),
                namespace,
                commands=world.backend.commands,
                timeout_seconds=SECONDS,
                connect_timeout_seconds=SECONDS,
            )
            close = client.close
        world.perform = in_thread(world.backend.tier) if face == "threads" else in_loop(shared, loop)
        try:
            yield world
        finally:
            if close is not None:
                runner.run(shared.close())
                world.backend.tier.close()
                close()


def _stale_after(case: Case, world: World, trace: tuple[Move, ...]) -> list[str]:
    replay = Replay(world, case)
    for move in trace:
        replay.play(move)
    replay.settle()
    return replay.stale()


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("case", CASES, ids=_guard)
def test_the_code_refuses_what_the_guard_is_there_for(
    case: Case, tier: str, face: str, request: pytest.FixtureRequest
) -> None:
    """Played on the code as it is, the trace leaves every reader with what the database has."""
    trace = _trace(case)
    with _world(parts(), tier, face, request) as world:
        assert _stale_after(replace(case, guards=Guards()), world, trace) == []


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("case", CASES, ids=_guard)
def test_the_code_without_the_guard_lets_it_in(
    case: Case, tier: str, face: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Played on the code with that one guard taken out of it, the trace leaves something stale."""
    code = parts(EDITS.get(_guard(case), ()))
    for name, script in code.lua.items():
        monkeypatch.setattr(commands, name, script)
    with _world(code, tier, face, request) as world:
        assert _stale_after(case, world, _trace(case)) != []
