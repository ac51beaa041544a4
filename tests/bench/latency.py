"""From commit to consumer at a thousand single-row transactions a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.bench.load import Aside, Sent, percentile, produce, receive, write
from tests.bench.parts import SCALE, Bench, bench, report
from tests.support.relay_process import NOTHING, RelayProcess

RATE = 1000.0
SECONDS = 60
WARM_UP_SECONDS = 5
"""Connections, plans, the broker's compiler: what a process pays once is no event's latency."""


class Run(NamedTuple):
    """What one way from a sender to the receiver took: milliseconds by event."""

    from_return: list[float]
    """From the return of the commit, or of the call that handed the record to the client."""
    from_call: list[float]
    rate: float
    late_ms: float
    """How far the load fell behind its own schedule, at worst."""


def run(setup: Bench, send: Callable[..., Any], target: str) -> Run:
    """Sends to a fresh topic at the rate and receives; without what was sent during the warm-up."""
    topic = setup.topic()
    warm = int(RATE * WARM_UP_SECONDS)
    count = warm + int(RATE * max(2.0, SECONDS * SCALE))
    with (
        Aside(receive, setup.kafka.bootstrap, topic, count) as receiver,
        Aside(send, target, topic, RATE, count) as sender,
    ):
        receiver.hear()
        sender.tell()
        sent: dict[int, Sent] = sender.hear(count / RATE * 3 + 60)
        received: dict[int, int] = receiver.hear()
    numbers = range(warm, count)
    began = [sent[n].began for n in numbers]
    return Run(
        [(received[n] - sent[n].returned) / 1e6 for n in numbers],
        [(received[n] - sent[n].began) / 1e6 for n in numbers],
        (len(numbers) - 1) / ((max(began) - min(began)) / 1e9),
        max((sent[n].began - sent[n].due) / 1e6 for n in numbers),
    )


def latency() -> None:
    """One relay with its defaults; the limit is the same records produced straight to the same broker before."""
    with bench() as setup:
        bare = run(setup, produce, setup.kafka.bootstrap)
        with RelayProcess(setup.dsn, setup.kafka.bootstrap, base=NOTHING) as relay:
            relay.wait_started()
            through = run(setup, write, setup.dsn)
    for name, found in (("bare", bare), ("relay", through)):
        print(
            f"  {name}: {found.rate:,.0f}/s, from return p50 {percentile(found.from_return, 0.5):.2f}"
            f" p99 {percentile(found.from_return, 0.99):.2f} max {max(found.from_return):.1f} ms,"
            f" from call p50 {percentile(found.from_call, 0.5):.2f} p99 {percentile(found.from_call, 0.99):.2f}"
            f" max {max(found.from_call):.1f} ms, at most {found.late_ms:.1f} ms behind schedule",
            flush=True,
        )
    for share, bar in ((0.5, 4.0), (0.99, 15.0)):
        ours, limit = percentile(through.from_return, share), percentile(bare.from_return, share)
        name = f"p{share * 100:.0f}"
        report(
            f"commit to consumer, {name}", f"{ours:.2f} ms", f"bare produce {limit:.2f} ms", ours / limit,
            f"< {bar:g} ms", ours < bar,
        )  # fmt: skip
