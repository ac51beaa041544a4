"""A terminal in which the blocks of documents are typed as they are printed, with the names of hosts replaced.

Three commands stand for what would need the network or would not end: `pip` compares what is asked for with what is
here, `kafka-topics.sh` creates topics through a client, and a server is stopped, cleanly, once it serves.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

from packaging.requirements import Requirement

from relay.demo.server import free_port
from tests.support.documents import ROOT

NOTHING: Mapping[str, str] = MappingProxyType({})

SERVERS = """\
served() {  # NAME OF WHAT IT SAYS, COMMAND: starts it, waits until it serves, and stops it as an operator does
    local says="$1" log="$KEPT/served.log"; shift
    "$@" > "$log" 2>&1 & local pid=$!
    for _ in $(seq 1200); do
        if grep -q "$says" "$log"; then kill -TERM $pid; wait $pid && return 0; [ $? = 143 ] && return 0; break; fi
        kill -0 $pid 2> /dev/null || break
        sleep 0.1
    done
    kill -KILL $pid 2> /dev/null || true; cat "$log" >&2; return 1
}
relay() { if [ "$*" = run ]; then served 'relay.started' command relay run; else command relay "$@"; fi; }
uvicorn() { served 'Application startup complete' command uvicorn "$@" --port "$FREE_PORT"; }
make() { command make -n "$@" > /dev/null; }
"""

TOOL = """\
#!{python}
import sys
sys.path.insert(0, {root!r})
from tests.support.shell import {main}
{main}(sys.argv[1:])
"""


class Shell:
    """What one block exports, the next one has.

    Args:
        cwd: where it is typed.
        kept: a folder for what it keeps between blocks.
        replacements: what is printed to what is there.
        paths: further folders of commands.
    """

    def __init__(
        self, cwd: Path, kept: Path, replacements: Mapping[str, str], paths: Sequence[Path] = (), kafka: str = ""
    ) -> None:
        self._cwd = cwd
        self._replacements = replacements
        kept.mkdir(exist_ok=True)
        self._exported = kept / "exported"
        self._exported.write_text("")
        for name, main in (("pip", "pip"), ("kafka-topics.sh", "kafka_topics")):
            tool = kept / name
            tool.write_text(TOOL.format(python=sys.executable, root=str(ROOT), main=main))
            tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        path = [str(kept), str(Path(sys.executable).parent), *map(str, paths), os.environ["PATH"]]
        home = {name: os.environ[name] for name in ("HOME", "PYTHONPATH") if name in os.environ}
        self._environment = {
            **home,
            "PATH": os.pathsep.join(path),
            "KEPT": str(kept),
            "FREE_PORT": str(free_port()),
            "RELAY_LOG__FORMAT": "json",
            "TEST_KAFKA": kafka,
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def type(self, text: str) -> str:
        """Runs a block; returns what it printed. Each of its commands has to succeed."""
        for written, real in self._replacements.items():
            text = text.replace(written, real)
        kept = self._exported
        ended = subprocess.run(
            ["bash", "-c", f'set -eu -o pipefail; . "{kept}"\n{SERVERS}\n{text}\nexport -p > "{kept}"'],
            cwd=self._cwd,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert ended.returncode == 0, f"{text}\n{ended.stdout}{ended.stderr}"
        return ended.stdout


def pip(arguments: Sequence[str]) -> None:
    """`pip install ...` without the network: each path is a project that has these extras, and all that is asked for is
    installed here, in a version that will do."""
    assert arguments[0] == "install", arguments
    for argument in arguments[1:]:
        if "/" in argument or argument.startswith("."):
            path, _, extras = argument.partition("[")
            needed = _of_project(Path(path), [one for one in extras.rstrip("]").split(",") if one])
        else:
            needed = [argument]
        for one in needed:
            requirement = Requirement(one)
            assert metadata.version(requirement.name) in requirement.specifier, one


def _of_project(path: Path, extras: Iterable[str]) -> list[str]:
    project = tomllib.loads((path / "pyproject.toml").read_text())["project"]
    found = list(project["dependencies"])
    for extra in extras:
        for one in project["optional-dependencies"][extra]:
            requirement = Requirement(one)
            found += _of_project(path, requirement.extras) if requirement.name == project["name"] else [one]
    return found


def kafka_topics(arguments: Sequence[str]) -> None:
    """`kafka-topics.sh --create`, whose classes are not among the jars of the tests, through a client."""
    from confluent_kafka.admin import AdminClient, NewTopic

    options = {name: value for name, value in pairwise(arguments) if name.startswith("--")}
    config = [value for name, value in pairwise(arguments) if name == "--config"]
    assert "--create" in arguments
    assert set(options) <= {
        "--bootstrap-server", "--create", "--topic", "--partitions", "--replication-factor", "--config",
    }  # fmt: skip
    new = NewTopic(
        options["--topic"],
        int(options["--partitions"]),
        int(options["--replication-factor"]),
        config=dict(one.split("=", 1) for one in config),
    )
    admin = AdminClient({"bootstrap.servers": options["--bootstrap-server"]})
    admin.create_topics([new], operation_timeout=30)[new.topic].result(30)
