"""docs/ADOPTING.md, done as it is written: every shell command of it, on a service that has rows and roles already."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.support.documents import DOCS
from tests.support.examples import Example
from tests.support.hosts import EXAMPLES
from tests.support.postgres import bare_database, drop_database

TEXT = (DOCS / "ADOPTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)

ROLES = ("relay_daemon", "relay_monitor", "relay_admin", "catalogue", "catalogue_owner")

#: A team as many are: the role that migrates owns the database, the service's role only its tables' rows.
TEAM = """\
CREATE ROLE catalogue_owner LOGIN; CREATE ROLE catalogue LOGIN; GRANT catalogue_owner TO postgres"""
RIGHTS = """\
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO catalogue;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO catalogue"""


@pytest.fixture
def team(pg):
    """A database whose owner is no superuser; the roles of the document go with it."""
    dsn = bare_database(pg)
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(TEAM)
        admin.execute(f"ALTER DATABASE {dsn.rpartition('/')[2]} OWNER TO catalogue_owner")
    yield dsn
    drop_database(pg, dsn)
    with psycopg.connect(pg.dsn(), autocommit=True) as admin:
        for role in ROLES:
            admin.execute(f"DROP ROLE IF EXISTS {role}")


@pytest.fixture
def topics(kafka):
    """Those of step 5."""
    names = ("relay.changes", "orders")
    for name in names:
        kafka.create_topic(name)
    yield
    for name in names:
        kafka.delete_topic(name)


class Shell:
    """A terminal in the project's folder: what one block exports, the next one has."""

    def __init__(self, service: Example, tools: Path, replacements: dict[str, str]) -> None:
        self._service = service
        self._kept = service.root.parent / "exported"
        self._kept.write_text("")
        self._replacements = replacements
        path = [str(Path(sys.executable).parent), str(tools), os.environ["PATH"]]
        kept = {name: os.environ[name] for name in ("HOME", "PYTHONPATH") if name in os.environ}
        self._environment = {"PATH": os.pathsep.join(path), **kept}

    def section(self, heading: str) -> str:
        """Runs the blocks under a heading; returns what they printed."""
        start = TEXT.index(f"\n## {heading}\n")
        end = TEXT.find("\n## ", start + 1)
        (block,) = BLOCK.findall(TEXT[start : end if end > 0 else None])
        for written, real in self._replacements.items():
            block = block.replace(written, real)
        ended = subprocess.run(
            ["bash", "-c", f'set -eu -o pipefail; . "{self._kept}"\n{block}\nexport -p > "{self._kept}"'],
            cwd=self._service.root,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert ended.returncode == 0, f"{block}\n{ended.stdout}{ended.stderr}"
        return ended.stdout


def test_the_hour_goes_as_it_is_written(team, pg, kafka, topics, tmp_path):
    """From a service without Relay to published events, and back to where it was, with roles that may do little."""
    service = Example("fastapi_async", tmp_path, team.replace("postgres@", "catalogue_owner@"))
    service.done(["upgrade", "head"])
    with psycopg.connect(team, autocommit=True) as admin:
        admin.execute(RIGHTS)
    as_service = team.replace("postgres@", "catalogue@")
    before = service.use(
        ("POST", "/products", {"sku": "t", "name": "Teapot", "price": "20", "stock": 3}), dsn=as_service
    )
    files = service.files()
    place = team.rpartition("@")[2]
    shell = Shell(service, pg.bin_dir, {"db.example/catalogue": place, "kafka.example:9092": kafka.bootstrap})

    shell.section("1. Install")
    assert "No new upgrade operations detected" in shell.section("2. Revision")
    shell.section("3. Grants")
    service.adopt()
    answers = service.use(
        ("PATCH", "/products/1", {"price": "18"}), ("POST", "/orders", {"product_id": 1, "quantity": 1}), dsn=as_service
    )
    assert [status for status, _ in [*before, *answers]] == [201, 200, 201]
    shell.section("4. The first events")
    said = shell.section("6. Doctor, then the daemon")
    assert re.search(r"^ok +grants ", said, re.MULTILINE)
    assert not re.search(r"^failed ", said, re.MULTILINE)
    looked = shell.section("7. Look")
    assert "published" in looked
    assert "relay.changes" in looked

    service.abandon()
    assert service.use(("GET", "/products/1", None), dsn=as_service)[0][1]["price"] == "18.00"
    shell.section("Taking it out")
    with psycopg.connect(team) as admin:
        assert admin.execute("SELECT to_regnamespace('relay')").fetchone() == (None,)
    (revision,) = [path for path in service.files() - files if path.suffix == ".py"]
    (service.root / revision).unlink()
    assert {str(path) for path in service.files() - files} == {"upgrade.sql", "grants.sql", "relay.toml"}
    service.done(["check"])


def test_the_lines_that_are_shown_are_those_of_the_patch():
    """What the document adds to the service is what the patch adds, no more and no less."""
    shown = [line for block in re.findall(r"^```diff\n(.*?)^```$", TEXT, re.M | re.S) for line in block.splitlines()]
    patch = (EXAMPLES / "fastapi_async.patch").read_text().splitlines()
    added = [line for line in patch if line.startswith("+") and not line.startswith("+++")]
    assert not [line for line in patch if line.startswith("-") and not line.startswith("---")]
    assert sorted(filter(None, shown)) == sorted(line for line in added if line != "+")


def test_the_numbers_of_changed_lines_are_those_of_the_patches(tmp_path):
    """As the document says them."""
    counts = []
    for name in ("fastapi_async", "sync_service"):
        service = Example(name, tmp_path / name, "")
        service.adopt()
        counts.append(service.changed_lines())
    assert f"{counts[0]} and {counts[1]} lines" in TEXT
