"""`relay doctor`: would it work here, and if not, why, in less than five seconds."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from dataclasses import asdict
from itertools import groupby

import click

from relay.cli.main import settings
from relay.daemon.diagnosis.examine import complete, examine
from relay.daemon.diagnosis.finding import Finding, refused
from relay.errors import ConfigError

WIDTH = 80
MARGIN = 23
"""State and check stand before what was found."""


@click.command(short_help="Check whether it would work here, and say what to do.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list with one object per check.")
def doctor(as_json: bool) -> None:
    """Check settings, database and Kafka as `relay run` would meet them.

    Each check is ok, a warning, failed, or unknown where it is not to be told from here; exit code 1 if any failed. Run
    it where the relay runs, with its settings. Changes nothing, and takes less than five seconds.
    """
    try:
        findings = examine(settings())
    except ConfigError as error:
        findings = complete([refused("settings", error)], has_database=False, has_kafka=False)
    click.echo(json.dumps([asdict(finding) for finding in findings]) if as_json else as_text(findings))
    if any(finding.state == "failed" for finding in findings):
        raise SystemExit(1)


def as_text(findings: list[Finding]) -> str:
    """For a person, 80 columns wide: one line for what is well, three or so for what is not."""
    lines = [line for finding in _gathered(findings) for line in lines_of(finding)]
    counts = Counter(finding.state for finding in findings)
    summary = ", ".join(f"{counts[state]} {state}" for state in ("ok", "warning", "failed", "unknown") if counts[state])
    return "\n".join([*lines, "", summary])


def _gathered(findings: list[Finding]) -> list[Finding]:
    """Checks that could not be made for one and the same reason are one entry: who reads it has one thing to do."""
    gathered: list[Finding] = []
    for (state, found, fix), several in groupby(findings, lambda one: (one.state, one.found, one.fix)):
        same = list(several)
        if state == "unknown" and len(same) > 1:
            names = ", ".join(one.check for one in same)
            gathered.append(Finding(f"{len(same)} checks", state, f"{names}: {found}", same[0].code, fix))
        else:
            gathered += same
    return gathered


def lines_of(finding: Finding) -> list[str]:
    """One finding for a person, 80 columns wide."""
    subject = f"{finding.subject}: " if finding.subject else ""
    code = f" ({finding.code})" if finding.code else ""
    head = f"{finding.state:8} {finding.check:13} "
    lines = _wrapped(head, f"{subject}{finding.found}{code}")
    return lines + (_wrapped(" " * MARGIN, f"fix: {finding.fix}") if finding.fix else [])


def _wrapped(head: str, text: str) -> list[str]:
    """Names of topics and hosts are kept whole where they fit a line."""
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * MARGIN, break_on_hyphens=False)
