"""`relay db revision`: a thin revision in the host project's own Alembic history. Needs no database.

Relay has no branch, no head and no version table of its own there: `alembic upgrade head`, `downgrade -1` and
`revision --autogenerate` fail or change their meaning in a history with a second head.
"""

from __future__ import annotations

import ast
import os
import sys
import tomllib
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError, rev_id

from relay.errors import OperatorError
from relay.schema.steps import VERSION

IMPORT = "from relay.migrations import downgrade_to, upgrade_to"
INCLUDE_NAME = "include_name=relay.migrations.include_name"


@dataclass(frozen=True, slots=True)
class Revision:
    """What was written, and what is left to do by hand."""

    revision: str
    down_revision: list[str]
    path: str
    after: int
    upto: int


@dataclass(frozen=True, slots=True)
class Project:
    """The host's history as it is."""

    config: Config
    scripts: ScriptDirectory
    last: Script | None
    """The last of its revisions that is Relay's."""
    version: int
    """The schema version that the history reaches; 0 if Relay is not in it."""
    needs_include_name: bool
    """Whether env.py compares all schemas, and nothing in it says that Relay's is not the project's."""


def open_project(named: str | None, section: str) -> Project:
    """Reads the history, which imports its revisions, as Alembic does for every command.

    Args:
        named: an .ini file or a pyproject.toml; None for those of the working directory.
        section: of the .ini file.

    Raises:
        OperatorError: there is no Alembic project, or Alembic cannot read it.
    """
    config = _config(named, section)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            scripts = ScriptDirectory.from_config(config)
            ours = [(script, step) for script in scripts.walk_revisions() if (step := _step_of(script))]
        except Exception as error:  # the host's own files, which may fail as they like
            # Of a broken chain Alembic warns with its names, and then fails over one of them.
            raise _refused("read", error, *[str(one.message) for one in warned]) from error
    last, version = max(ours, key=lambda found: found[1], default=(None, 0))
    env = Path(scripts.env_py_location)
    return Project(config, scripts, last, version, env.is_file() and _compares_all_schemas(env.read_text("utf-8")))


def write(project: Project, *, head: str | None, message: str | None, revision: str | None) -> Revision:
    """Writes the revision that takes the history from its schema version to this code's.

    The project's file_template, script.py.mako, version_locations and post-write hooks hold.

    Raises:
        OperatorError: several heads and none named, or Alembic refuses. No file was written.
    """
    scripts = project.scripts
    heads = scripts.get_heads()
    if head is None and len(heads) > 1:
        shown = ", ".join(_shown(scripts, one) for one in heads)
        raise OperatorError("RLY-612", f"the Alembic history has {len(heads)} heads: {shown}", "name one with --head")
    after = f", after={project.version}" if project.version else ""
    try:
        with _stdout_as_stderr():
            script = scripts.generate_revision(
                revision or rev_id(),
                message or f"relay schema {VERSION}",
                head=head or "head",
                depends_on=_depends_on(project, head or "head"),
                config=project.config,
                imports=IMPORT,
                upgrades=f"upgrade_to({VERSION}{after})",
                downgrades=f"downgrade_to({project.version})",
            )
    except CommandError as error:
        raise _refused("write to", error) from error
    if script is None or _step_of(script) != VERSION:
        if script is not None:
            Path(script.path).unlink()
        raise OperatorError(
            "RLY-613",
            "the project's script.py.mako leaves out ${imports}, ${upgrades} or ${downgrades}",
            f"write a revision with `{IMPORT}`, upgrade_to({VERSION}{after}) and downgrade_to({project.version});"
            " where the history is of several databases, in the functions of the one with the outbox",
        )
    down = script.down_revision
    parents = [down] if isinstance(down, str) else list(down or ())
    return Revision(script.revision, parents, _near(Path(script.path)), project.version, VERSION)


def _config(named: str | None, section: str) -> Config:
    is_toml = named is not None and Path(named).name == "pyproject.toml"
    ini = Path(named) if named is not None and not is_toml else Path("alembic.ini")
    toml = Path(named) if named is not None and is_toml else Path("pyproject.toml")
    has_toml = toml.is_file() and "alembic" in tomllib.loads(toml.read_text("utf-8")).get("tool", {})
    if not (has_toml if is_toml else ini.is_file() or (named is None and has_toml)):
        raise OperatorError(
            "RLY-611",
            f"no Alembic project: {named} is not there or not one"
            if named
            else "no Alembic project: here is neither an alembic.ini nor a pyproject.toml with [tool.alembic]",
            "run it where you run alembic, or name the file with --config",
        )
    quiet = Namespace(quiet=True)
    if has_toml:
        return Config(ini, toml_file=toml, ini_section=section, cmd_opts=quiet)
    return Config(ini, ini_section=section, cmd_opts=quiet)


def _step_of(script: Script) -> int | None:
    """The schema version that a revision of Relay's reaches; None for all others."""
    path = Path(script.path)
    if path.suffix != ".py" or "relay.migrations" not in (source := path.read_text("utf-8")):
        return None
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return max((step for call in calls if (step := _upgrade_to(call)) is not None), default=None)


def _upgrade_to(call: ast.Call) -> int | None:
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", None)
    if name != "upgrade_to" or not (call.args and isinstance(call.args[0], ast.Constant)):
        return None
    return call.args[0].value if isinstance(call.args[0].value, int) else None


def _compares_all_schemas(env: str) -> bool:
    if "relay.migrations" in env and "include_name" in env:
        return False
    tree = ast.parse(env)
    given = [word.value for word in ast.walk(tree) if isinstance(word, ast.keyword) and word.arg == "include_schemas"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            given += [value for key, value in pairs if getattr(key, "value", None) == "include_schemas"]
    return any(not (isinstance(value, ast.Constant) and not value.value) for value in given)


def _depends_on(project: Project, head: str) -> str | None:
    """The revision before ours, where the head that was named does not come after it by itself."""
    if project.last is None:
        return None
    before = {script.revision for script in project.scripts.walk_revisions("base", head)}
    return None if project.last.revision in before else project.last.revision


def _shown(scripts: ScriptDirectory, head: str) -> str:
    script = scripts.get_revision(head)
    labels = sorted(script.branch_labels)
    return f"{head} ({', '.join(labels)})" if labels else head


def _refused(deed: str, error: Exception, *warned: str) -> OperatorError:
    first = (str(error).strip().splitlines() or [""])[0]
    said = warned[0] if warned else first if isinstance(error, CommandError) else f"{type(error).__name__}: {first}"
    return OperatorError("RLY-613", f"Alembic cannot {deed} the history: {said}", "see that `alembic heads` works here")


def _near(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@contextmanager
def _stdout_as_stderr() -> Iterator[None]:
    """What post-write hooks print is no report: stdout belongs to ours."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        # Before 1 is stdout again: what Alembic has said of its hooks may still lie in the buffer.
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)
