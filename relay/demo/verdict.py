"""What the demo ends with: the checker's finding in words, and the exit code that goes with it."""

from __future__ import annotations

from collections.abc import Container

from relay.demo.history import MEANINGS, Verdict, check
from relay.demo.ledger import Ledger


def judge(ledger: Ledger, *, repeats_max: int, parked: Container[str] = ()) -> Verdict:
    """Gives the whole history to the checker. Without a fault nothing may be repeated at all.

    Raises:
        ValueError: the journal or the reading is broken, so that no verdict is possible.
    """
    return check(ledger.written, ledger.records, parked=parked, clean=not repeats_max, repeats_max=repeats_max)


def is_kept(verdict: Verdict, left: int) -> bool:
    """Whether the promise was kept, and the outbox is empty."""
    return verdict.ok and left == 0


def lines(verdict: Verdict, ledger: Ledger, *, left: int, repeats_max: int) -> list[str]:
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
    for name, anomaly in found.items():
        out.append(f"  {name}: {anomaly.count} ({MEANINGS[name]})")
        out += [f"    {example}" for example in anomaly.examples[:3]]
    if left:
        out.append("  the outbox did not become empty" + (f": {left} events are left" if left > 0 else ""))
    return [*out, "", _last_line(verdict, left)]


def _last_line(verdict: Verdict, left: int) -> str:
    if is_kept(verdict, left):
        repeated = f", {verdict.repeated:,} repeated within the bound" if verdict.repeated else ", nothing repeated"
        return f"verdict: OK. Nothing lost, nothing reordered{repeated}."
    reasons = [*verdict.found, *(["outbox not empty"] if left else [])]
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
