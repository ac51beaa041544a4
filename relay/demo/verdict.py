"""What the demo ends with: the checker's finding in words, and the exit code that goes with it."""

from __future__ import annotations

from collections.abc import Container
from typing import Final, NamedTuple

from relay.demo.history import MEANINGS, Verdict, check
from relay.demo.ledger import Ledger, in_words
from relay.demo.staleness import ReadFigures


def judge(ledger: Ledger, *, repeats_max: int, parked: Container[str] = ()) -> Verdict:
    """Gives the whole history to the checker. Without a fault nothing may be repeated at all.

    Raises:
        ValueError: the journal or the reading is broken, so that no verdict is possible.
    """
    return check(ledger.written, ledger.records, parked=parked, clean=not repeats_max, repeats_max=repeats_max)


NOBODY_READ: Final = ReadFigures()


class End(NamedTuple):
    """How everything stood at the end."""

    left: int = 0
    """Events in the outbox; -1: it could not be asked."""
    behind: int = 0
    """Accounts that some service still read in an old version; -1: nobody could tell."""
    reads: ReadFigures = NOBODY_READ


def is_kept(verdict: Verdict, end: End) -> bool:
    """Whether the promise was kept, by the relays and by the copies."""
    return verdict.ok and not _reasons(end)


def lines(verdict: Verdict, ledger: Ledger, end: End, *, repeats_max: int) -> list[str]:
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
    if end.reads is not NOBODY_READ:
        out += _of_reads(end.reads)
    for name, anomaly in found.items():
        out.append(f"  {name}: {anomaly.count} ({MEANINGS[name]})")
        out += [f"    {example}" for example in anomaly.examples[:3]]
    if end.left:
        out.append("  the outbox did not become empty" + (f": {end.left} events are left" if end.left > 0 else ""))
    if end.behind:
        of = f" of {end.behind} accounts" if end.behind > 0 else ""
        out.append(f"  nobody saw that copies{of} became the newest when all was over")
    return [*out, "", _last_line(verdict, end)]


def _of_reads(reads: ReadFigures) -> list[str]:
    """What the services got from their caches."""
    copies = f"{reads.hit_rate:.1%} from copies; {reads.loads:,} loads, {reads.saved:,} saved"
    out = [
        _figure("reads", reads.reads, copies),
        _figure("too old", reads.older, "below what was applied: none may be, unless marked"),
        _figure("marked", reads.marked, "as stale: kept for when the database is away"),
        _figure("failed", reads.failed, "had no copy either"),
    ]
    for name, stale in (("calm", reads.calm), ("overall", reads.overall)):
        if stale.p50 is not None and stale.p99 is not None:
            times = f"p50 {in_words(stale.p50)}, p99 {in_words(stale.p99)}, max {in_words(stale.worst)}"
            out.append(_figure(name, stale.reads, f"{stale.fresh:.1%} newest; stale {times}"))
    return out


def _reasons(end: End) -> list[str]:
    """What is wrong besides the history of events."""
    wrong = {"outbox not empty": end.left, "read too old": end.reads.older, "copies not the newest": end.behind}
    return [name for name, count in wrong.items() if count]


def _last_line(verdict: Verdict, end: End) -> str:
    if is_kept(verdict, end):
        repeated = f"{verdict.repeated:,}" if verdict.repeated else "nothing"
        copies = ", no copy too old" if end.reads.reads else ""
        return f"verdict: OK. Nothing lost, nothing reordered, {repeated} repeated{copies}."
    return f"verdict: BROKEN. {', '.join([*verdict.found, *_reasons(end)])}."


def _of_unknown(verdict: Verdict) -> str:
    if not verdict.unknown:
        return ""
    came = verdict.events - verdict.committed + _count(verdict, "lost")
    return f"; {max(0, came)} of {verdict.unknown} commits cut off had happened"


def _count(verdict: Verdict, name: str) -> int:
    anomaly = verdict.found.get(name)
    return anomaly.count if anomaly else 0


def _figure(name: str, count: int, remark: str) -> str:
    return f"  {name:<10}{count:>9,}   {remark}".rstrip()
