"""Every `relay` command that a document shows exists, with the options that it shows; so do the names in alerts."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from relay.cli.main import cli
from tests.support.documents import DOCS, MARKED, ROOT, documents, members

FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(relay [^`\n]+(?:\n[^`\n]+)?)`")
PROGRAM = re.compile(r"(?:^|[\s/])(relay [a-z][^|>&;#\n]*)", re.MULTILINE)


def shown(text: str) -> list[str]:
    """The commands of a document, without what is generated from the command line itself."""
    text = MARKED.sub("", text)
    blocks = "".join(FENCED.findall(text)).replace("\\\n", " ")
    lines = [line for line in blocks.splitlines() if not re.match(r"ok |warning |failed |- |[+-]", line)]
    return [*PROGRAM.findall("\n".join(lines)), *INLINE.findall(FENCED.sub("", text))]


def check(command: str) -> None:
    """Fails if a group, a command or an option of it does not exist."""
    at: click.Command = cli
    for word in shlex.split(command)[1:]:
        if word.startswith("--"):
            options = {name for parameter in at.params for name in parameter.opts} | {"--help", "--version"}
            assert word.partition("=")[0] in options, command
        elif isinstance(at, click.Group):
            found = members(at)
            assert word in found, command
            at = found[word]


@pytest.mark.parametrize("file", documents(), ids=lambda file: str(file.relative_to(ROOT)))
def test_every_command_that_is_shown_exists(file):
    """A reader who types it gets what is promised, not a usage error."""
    for command in shown(file.read_text(encoding="utf-8")):
        check(command)


def test_the_check_of_commands_finds_what_is_wrong():
    """A verb or an option that does not exist, in a block or in the text."""
    commands = shown("```sh\nrelay db upgrad\n```\nor `relay run --drian`, then `relay doctor`")
    assert commands == ["relay db upgrad", "relay run --drian", "relay doctor"]
    for wrong in commands[:2]:
        with pytest.raises(AssertionError):
            check(wrong)
    check(commands[2])


def test_the_alerts_name_metrics_that_exist():
    """An alert on a name that nobody writes never rings."""
    metrics = set(re.findall(r"^\| `(relay_[a-z_]+)`", (DOCS / "OPERATING.md").read_text(encoding="utf-8"), re.M))
    named = set(re.findall(r"\brelay_[a-z_]+(?:seconds|events|total|up)\b", (DOCS / "ADOPTING.md").read_text("utf-8")))
    assert len(named) >= 3
    assert named <= metrics
