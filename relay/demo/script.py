"""The demo without a terminal: all faults in a fixed order, one after the other, in about half a minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from relay.demo.ledger import in_words
from relay.demo.stage import Stage

CALM_SECONDS: Final = 2.5
OUTAGE_SECONDS: Final = 2.5
FROZEN_SECONDS: Final = 1.5
PATIENCE_SECONDS: Final = 12.0


def play(stage: Stage) -> None:
    """Plays the faults that these parts allow."""
    _pass(stage, CALM_SECONDS)
    _say_figures(stage)
    for name in stage.possible:
        _ACTS[name](stage)
        _say_figures(stage)


def _kill(stage: Stage) -> None:
    stage.kill()
    _settle(stage)


def _freeze(stage: Stage) -> None:
    stage.freeze()
    _pass_until(stage, lambda: not stage.lanes_are_stuck)
    _pass(stage, 0.5)
    stage.freeze()
    _settle(stage)


def _flush(stage: Stage) -> None:
    stage.flush()
    _settle(stage)


def _consumer(stage: Stage) -> None:
    stage.toggle_consumer()
    _pass(stage, FROZEN_SECONDS)
    stage.toggle_consumer()
    _settle(stage)


def _brokers(stage: Stage) -> None:
    stage.toggle_brokers()
    _pass(stage, OUTAGE_SECONDS)
    stage.toggle_brokers()
    _settle(stage)


def _database(stage: Stage) -> None:
    stage.crash_database()
    _pass_until(stage, lambda: not stage.is_crashing)
    _settle(stage)


_ACTS: Final[dict[str, Callable[[Stage], None]]] = {
    "kill": _kill,
    "freeze": _freeze,
    "flush": _flush,
    "consumer": _consumer,
    "brokers": _brokers,
    "database": _database,
}


def _settle(stage: Stage) -> None:
    """Until everything works again and what had to wait is on its way."""
    _pass(stage, 0.5)
    _pass_until(stage, lambda: stage.is_well)


def _pass(stage: Stage, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stage.tick()
        time.sleep(0.1)


def _pass_until(stage: Stage, holds: Callable[[], bool]) -> None:
    """Goes on when it holds, or when patience ends: the verdict will tell what did not come back."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not holds() and time.monotonic() < until:
        _pass(stage, 0.1)


def _say_figures(stage: Stage) -> None:
    now, waiting = stage.ledger.figures(), stage.gauge.waiting
    facts = f"{now.written} written, {now.published} published, {waiting.count} waiting, {now.repeated} repeated"
    delay = "" if now.p50 is None or now.p99 is None else f"; p50 {in_words(now.p50)} p99 {in_words(now.p99)}"
    stage.say(f"= {facts}{delay}")
    if stage.copies is not None:
        reads = stage.copies.figures()
        stale = "" if reads.overall.p99 is None else f"; stale p99 {in_words(reads.overall.p99)}"
        facts = f"{reads.reads} reads, {reads.hit_rate:.1%} from copies, {reads.older} below what was applied"
        stage.say(f"= {facts}, {reads.marked} marked{stale}")
