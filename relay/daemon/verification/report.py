"""What the checker says: for each scale how many nines, of how many samples, and of what."""

from __future__ import annotations

from typing import Any

from relay.core.nines import nines, upper_bound
from relay.daemon.verification.knowledge import ENTRY, EVENT, KINDS, READ, Tally
from relay.daemon.verification.verifier import Verifier

MEANS = {
    EVENT: "events, since they arrived",
    ENTRY: "records, since the database was asked",
    READ: "reads, at random moments",
}


def as_data(verifier: Verifier, seconds: float) -> dict[str, Any]:
    """The shape of `--json`: names are an interface, and are only added to."""
    tally = verifier.tally
    return {
        "seconds": round(seconds, 1),
        "share": verifier.share,
        "scales": [_scale(tally, scale) for scale in tally.scales],
        "healed": len(tally.healed_seconds),
        "heal_seconds_median": _quantile(tally.healed_seconds, 0.5),
        "heal_seconds_max": _quantile(tally.healed_seconds, 1.0),
        "unhealed": verifier.unhealed,
        "ahead": tally.ahead,
        "unconfirmed": tally.unconfirmed,
        "missed": tally.missed,
        "tier_failures": verifier.tier_failures,
    }


def _scale(tally: Tally, scale: float) -> dict[str, Any]:
    violations, samples = tally.total(scale)
    return {
        "scale_seconds": scale,
        "samples": samples,
        "violations": violations,
        "rate_upper": upper_bound(violations, samples),
        "nines": nines(violations, samples),
        "kinds": [_kind(tally, scale, kind) for kind in KINDS],
    }


def _kind(tally: Tally, scale: float, kind: str) -> dict[str, Any]:
    violations, samples = tally.violations[kind, scale], tally.samples[kind, scale]
    return {"kind": kind, "samples": samples, "violations": violations, "nines": nines(violations, samples)}


def as_text(data: dict[str, Any]) -> str:
    """For a person, 80 columns wide."""
    lines = [f"{'scale':>7}  {'nines':>5}  {'violations':>10}  {'samples':>10}  rate below (95 %)"]
    for scale in data["scales"]:
        lines.append(
            f"{scale['scale_seconds']:>5g} s  {_nines(scale):>5}  {scale['violations']:>10,}  {scale['samples']:>10,}"
            f"  {scale['rate_upper']:.2g}"
        )
        lines += [
            f"{'':7}  {_nines(kind):>5}  {kind['violations']:>10,}  {kind['samples']:>10,}  {MEANS[kind['kind']]}"
            for kind in scale["kinds"]
        ]
    lines.append("")
    if data["healed"]:
        median, longest = data["heal_seconds_median"], data["heal_seconds_max"]
        lines.append(f"healed   {data['healed']:,}, median {median:.1f} s, longest {longest:.1f} s")
    for name, says in SAYS.items():
        if data[name]:
            lines.append(f"{name:<8} {data[name]:,} {says}")
    if data["share"] < 1:
        lines.append(f"sampled  {data['share']:.3%} of all keys: there was more than one process can follow")
    lines.append(f"process tiers are not seen from here; looked for {data['seconds']:g} s")
    return "\n".join(lines)


SAYS = {
    "unhealed": "still stale at the end",
    "ahead": "newer than the database: was it restored? see `relay cache reset`",
    "unconfirmed": "suspects that the primary did not confirm",
    "missed": "looks came too late to count",
    "tier_failures": "times Redis did not answer",
}


def _nines(of: dict[str, Any]) -> str:
    return f"{of['nines']:.1f}" if of["samples"] else "-"


def _quantile(values: list[float], share: float) -> float | None:
    return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 3) if values else None
