"""What the demo ends with: the checker's finding in words, and the exit code that goes with it."""

from __future__ import annotations

from collections.abc import Container

from relay.demo.history import MEANINGS, Verdict, check
from relay.demo.ledger import Ledger, in_words
from relay.demo.staleness import ReadFigures


def judge(ledger: Ledger, *, repeats_max: int, parked: Container[str] = ()) -> Verdict:
    """Gives the whole history to the checker. Without a fault nothing may be repeated at all.

    Raises:
        ValueError: the journal or the reading is broken, so that no verdict is possible.
    """
    return check(ledger.written, ledger.records, parked=parked, clean=not repeats_max, repeats_max=repeats_max)


NOBODY_READ = ReadFigures()


def is_kept(verdict: Verdict, left: int, reads: ReadFigures = NOBODY_READ) -> bool:
    """Whether the promise was kept, and the outbox is empty."""
    return verdict.ok and left == 0 and not reads.older


def lines(
    verdict: Verdict, ledger: Ledger, *, left: int, repeats_max: int, reads: ReadFigures = NOBODY_READ
) -> list[str]:
    """The figures, then everything the checker has to name, then one line that says it all."""
    rolled_back = sum(1 for event in ledger.written if event.outcome == "rolled_back")
    found = verdict.found
    bound = f"of at most {repeats_max:,} in flight when something broke" if repeats_max else "nothing broke"
    out = [
        _figure("written", verdict.committed, f"and {rolled_back:,} rolled back, which nobody may see"),
        _figure("published", verdict.events, f"in {verdict.keys} keys{_of_unknown(verdict)}"),
        _figure("lost", _count(verdict, "lost"), ""),
        _figure("reordered", sum(_count(verdict, name) for name in ("reordered", "ends_old", "suffix_broken")), ""),
        _figure("repeated", verdict.repeated, bound),
    ]
    if reads is not NOBODY_READ:
        out += _of_reads(reads)
    for name, anomaly in found.items():
        out.append(f"  {name}: {anomaly.count} ({MEANINGS[name]})")
        out += [f"    {example}" for example in anomaly.examples[:3]]
    if left:
        out.append("  the outbox did not become empty" + (f": {left} events are left" if left > 0 else ""))
    return [*out, "", _last_line(verdict, left, reads)]


def _of_reads(reads: ReadFigures) -> list[str]:
    """What the services got from their caches."""
    failed = f", {reads.failed} with neither a copy nor the database" if reads.failed else ""
    stale = (
        ""
        if reads.p99 is None
        else f"the rest stale: p99 of all {in_words(reads.p99)}, at most {in_words(reads.worst)}"
    )
    return [
        _figure(
            "reads",
            reads.reads,
            f"{reads.hit_rate:.1%} from a cache, {reads.loads:,} loads, {reads.saved:,} saved{failed}",
        ),
        f"  {'newest':<10}{reads.fresh:>9.2%}   {stale}".rstrip(),
        _figure("too old", reads.older, "reads below what had been applied: none is allowed"),
    ]


def _last_line(verdict: Verdict, left: int, reads: ReadFigures) -> str:
    if is_kept(verdict, left, reads):
        repeated = f", {verdict.repeated:,} repeated within the bound" if verdict.repeated else ", nothing repeated"
        copies = " No read was below what had been applied." if reads.reads else ""
        return f"verdict: OK. Nothing lost, nothing reordered{repeated}.{copies}"
    reasons = [*verdict.found, *(["outbox not empty"] if left else []), *(["read too old"] if reads.older else [])]
    return f"verdict: BROKEN. {', '.join(reasons)}."


def _of_unknown(verdict: Verdict) -> str:
    if not verdict.unknown:
        return ""
    came = verdict.events - verdict.committed + _count(verdict, "lost")
    return f"; {max(0, came)} of {verdict.unknown} commits that were cut off had happened"


def _count(verdict: Verdict, name: str) -> int:
    anomaly = verdict.found.get(name)
    return anomaly.count if anomaly else 0


def _figure(name: str, count: int, remark: str) -> str:
    return f"  {name:<10}{count:>9,}   {remark}".rstrip()
