"""Every command reads well: help within 80 columns, completion that answers, and --json on whatever reports."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from relay.cli.completion import SHELLS
from relay.cli.main import cli
from tests.support.documents import commands, members

GROUPS = {"relay": cli} | {
    f"relay {name}": command for name, command in members(cli).items() if isinstance(command, click.Group)
}
ACTS = {"relay demo", "relay run", "relay db sql", "relay db grants", "relay completion"}
"""They do something, or print something that is for another program as it is."""


@pytest.mark.parametrize("path", [*GROUPS, *(path for path, _ in commands())])
def test_help_fits_the_terminal_and_says_something(path):
    """80 columns are enough for every help text."""
    said = CliRunner().invoke(cli, [*path.split()[1:], "--help"], terminal_width=80)
    assert said.exit_code == 0
    lines = said.output.splitlines()
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    assert any(line.strip() and not line.startswith("Usage") for line in lines)
    assert "\x1b" not in said.output


@pytest.mark.parametrize("path", GROUPS)
def test_every_command_of_a_list_has_a_whole_sentence(path):
    """Who reads "Say where an event is: parked, in which lane,..." has to ask again."""
    said = CliRunner().invoke(cli, [*path.split()[1:], "--help"], terminal_width=80)
    assert "..." not in said.output.partition("Commands:")[2]


def test_config_check_fits_the_terminal(monkeypatch, tmp_path):
    """Names of hosts and files that are long take lines of their own, whole."""
    hosts = "first-of-the-hosts.example.org,second-of-the-hosts.example.org"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RELAY_DATABASE_URL", f"postgresql://someone:hushhush@{hosts}/database?sslmode=verify-full")
    monkeypatch.setenv("RELAY_KAFKA_BOOTSTRAP_SERVERS", hosts)
    said = CliRunner().invoke(cli, ["config", "check"])
    assert said.exit_code == 0, said.output
    lines = said.output.splitlines()
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    assert said.output.count(hosts) == 2
    assert "hushhush" not in said.output


def test_a_line_of_the_log_fits_the_terminal():
    """Short ones at least, with the fields in the order in which they are documented."""
    program = (
        "from relay.config import Log; from relay.logs import set_up\n"
        "set_up(Log(format='console')).info('topic.resumed', topic='a-topic', b=1, a=2)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    line = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).rstrip()
    assert len(line) <= 80
    assert line.endswith("topic=a-topic b=1 a=2")


def test_whatever_reports_has_json():
    """A script must not have to read sentences."""
    without = {path for path, command in commands() if not any("--json" in option.opts for option in command.params)}
    assert without == ACTS


@pytest.mark.parametrize("shell", SHELLS)
def test_the_completion_script_names_the_command_and_the_variable(shell):
    """What the shell evaluates."""
    said = CliRunner().invoke(cli, ["completion", shell])
    assert said.exit_code == 0
    assert "_RELAY_COMPLETE" in said.output
    assert "relay" in said.output


@pytest.mark.parametrize(
    ("words", "word", "answers"),
    [("relay pa", 1, {"parked"}), ("relay parked re", 2, {"retry"}), ("relay status --j", 2, {"--json"})],
)
def test_completion_answers(words, word, answers):
    """As bash asks: with the words in the environment, from the program that it is asked for."""
    program = "import sys; sys.argv[0] = 'relay'; from relay.__main__ import main; main()"
    asked = {"_RELAY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(word)}
    said = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert {line.partition(",")[2] for line in said.stdout.split()} == answers, said.stderr
