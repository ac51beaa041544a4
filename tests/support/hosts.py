"""Projects that have an Alembic history before they have Relay: copies of tests/hosts and of examples/, driven as their
owners do."""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg
from psycopg import sql

from relay.migrations.revision import IMPORT
from tests.support.commands import NOTHING, relay

HOSTS = Path(__file__).parents[1] / "hosts"
EXAMPLES = Path(__file__).parents[2] / "examples"

#: Several commands in one process, because starting one costs more than most of them do.
ALEMBIC = "import json, sys; from alembic.config import main; [main(argv) for argv in json.loads(sys.argv[1])]"

DRIVERS = {"plain": "psycopg", "awkward": "asyncpg", "fastapi_async": "asyncpg", "sync_service": "psycopg"}

TABLES = """\
SELECT n.nspname, c.relname, c.oid::bigint, pg_relation_filenode(c.oid)::bigint
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname IN ('public', 'shop', 'legacy')
  AND c.relname NOT IN ('alembic_version', 'revisions')
ORDER BY 1, 2"""

ROWS = "SELECT count(*), md5(string_agg(t::text || t.xmin::text, ',' ORDER BY t.id)) FROM {} AS t"


class Host:
    """A copy of one project, and the database that it works on."""

    def __init__(self, name: str, where: Path, dsn: str, *, of: Path = HOSTS) -> None:
        self.name = name
        self.root = where / name
        self.dsn = dsn
        self.original = of / name
        self._driver = DRIVERS[name]
        shutil.copytree(self.original, self.root, ignore=shutil.ignore_patterns("__pycache__"))

    def url(self, dsn: str) -> str:
        """The address with the driver that the project takes."""
        return dsn.replace("postgresql://", f"postgresql+{self._driver}://")

    def alembic(
        self, *commands: Sequence[str], dsn: str | None = None, code: Mapping[str, str] = NOTHING
    ) -> subprocess.CompletedProcess[str]:
        """Runs `alembic ...`, one command after the other, on the project's database or another.

        Args:
            code: the environment of another release of Relay.
        """
        return self.python(ALEMBIC, commands, dsn=dsn, code=code)

    def python(
        self, program: str, given: object, *, dsn: str | None = None, code: Mapping[str, str] = NOTHING
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program in the project, with what it is given as JSON."""
        return subprocess.run(
            [sys.executable, "-c", program, json.dumps(given)],
            cwd=self.root,
            env={**os.environ, "DATABASE_URL": self.url(self.dsn if dsn is None else dsn), **code},
            capture_output=True,
            text=True,
            check=False,
        )

    def done(self, *commands: Sequence[str], dsn: str | None = None, code: Mapping[str, str] = NOTHING) -> str:
        """As `alembic`, where nothing may fail; returns what was printed."""
        ended = self.alembic(*commands, dsn=dsn, code=code)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def revision(self, *arguments: str, code: Mapping[str, str] = NOTHING) -> dict:
        """Runs `relay db revision --json`."""
        ended = relay("db", "revision", "--json", *arguments, cwd=str(self.root), settings=code)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    def edit(self, file: str, old: str, new: str) -> None:
        """Changes one place of a file, as the project's owner does."""
        path = self.root / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} has no one place that reads {old!r}"
        path.write_text(text.replace(old, new))

    def files(self) -> set[Path]:
        """All files of the project, without what Python leaves."""
        return _files(self.root)

    def changed_lines(self) -> int:
        """How many lines are new or gone since it was copied, a changed one counted once; without Relay's revisions."""
        return changed_lines(self.original, self.root)

    def fill(self) -> None:
        """Rows in every table, as a service has them."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute((self.root / "rows.sql").read_text())

    def fingerprint(self) -> list[tuple]:
        """Every table of the project with its identity on disk and all of its rows, each with who wrote it."""
        with psycopg.connect(self.dsn) as connection:
            return [
                (*table, *connection.execute(sql.SQL(ROWS).format(sql.Identifier(*table[:2]))).fetchone())
                for table in connection.execute(TABLES).fetchall()
            ]


def changed_lines(before: Path, after: Path) -> int:
    """How many lines differ, in files that came or went too, but for the revisions that `relay db revision` writes."""
    count = 0
    for path in _files(before) | _files(after):
        was, now = ((root / path).read_text() if (root / path).is_file() else "" for root in (before, after))
        if IMPORT not in was + now:
            matcher = difflib.SequenceMatcher(None, was.splitlines(), now.splitlines(), autojunk=False)
            count += sum(max(b - a, d - c) for kind, a, b, c, d in matcher.get_opcodes() if kind != "equal")
    return count


def _files(root: Path) -> set[Path]:
    found = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root) for path in found}


def next_release(
    where: Path, step: str, *, oldest_code: int, oldest_schema: int = 1, back: str | None = None
) -> Mapping[str, str]:
    """A copy of this code as the next release might be: one more step of the schema. Returns the environment to run it.

    Args:
        step: the SQL of the step, without the line that notes it.
        oldest_code: the oldest code that works with the step, as the step says it.
        oldest_schema: the oldest schema that the new code works with.
        back: the SQL that undoes the step; without it there is no way back.
    """
    shutil.copytree(HOSTS.parents[1] / "relay", where / "relay", ignore=shutil.ignore_patterns("__pycache__"))
    steps = where / "relay" / "schema" / "steps.py"
    text = steps.read_text()
    version = int(re.search(r"^VERSION = (\d+)$", text, re.MULTILINE)[1]) + 1
    text = re.sub(r"^VERSION = \d+$", f"VERSION = {version}", text, flags=re.MULTILINE)
    steps.write_text(re.sub(r"^OLDEST_SCHEMA = \d+$", f"OLDEST_SCHEMA = {oldest_schema}", text, flags=re.MULTILINE))
    note = f"INSERT INTO relay.schema_version (version, oldest_code) VALUES ({version}, {oldest_code});\n"
    (where / "relay" / "schema" / "steps" / f"{version:04d}.sql").write_text(f"{step};\n{note}")
    if back is not None:
        (where / "relay" / "schema" / "steps" / f"{version:04d}.down.sql").write_text(f"{back};\n")
    # The working directory would come first otherwise, and may be that of this code.
    return {"PYTHONPATH": str(where), "PYTHONSAFEPATH": "1"}
