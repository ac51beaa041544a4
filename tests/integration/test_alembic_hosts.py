"""Projects with an Alembic history take Relay in, and everything that they do with Alembic goes on as before."""

from __future__ import annotations

import itertools
import subprocess
import threading
from pathlib import Path

import psycopg
import pytest

from relay.schema.install import upgrade
from relay.schema.steps import VERSION
from tests.support.catalog import catalog
from tests.support.commands import emit, relay
from tests.support.hosts import HOSTS, Host, next_release
from tests.support.postgres import ONE_MAJOR, bare_database, drop_database

HEAD = {"plain": (), "awkward": ("--head", "billing@head")}
BACK = {"plain": "-1", "awkward": "billing@-1"}


@pytest.fixture(params=ONE_MAJOR)
def server(request):
    return request.getfixturevalue("pg" if request.param == 18 else "pg16")


@pytest.fixture
def databases(server):
    """Three databases without anything in them, of one server."""
    made = [bare_database(server) for _ in range(3)]
    yield made
    for dsn in made:
        drop_database(server, dsn)


@pytest.fixture
def bare(pg):
    dsn = bare_database(pg)
    yield dsn
    drop_database(pg, dsn)


@pytest.fixture
def plain(tmp_path, bare) -> Host:
    """The plain project with its tables and rows."""
    host = Host("plain", tmp_path, bare)
    host.done(["upgrade", "head"])
    host.fill()
    return host


def leave_relay_alone(host: Host) -> None:
    """The line that env.py needs where autogenerate compares all schemas, beside the filter that it has already."""
    host.edit(
        "db/env.py", "from models import Base\n", "from models import Base\nfrom relay.migrations import include_name\n"
    )
    host.edit("db/env.py", "return not (", "return include_name(name, type_, parent_names) and not (")


def body_of(path: Path) -> list[str]:
    """The statements of the functions of a revision, without docstrings and comments."""
    lines = [line.strip() for line in path.read_text().splitlines() if line.startswith("    ")]
    return [line for line in lines if not line.startswith(('"""', "#"))]


@pytest.mark.parametrize("name", ["plain", "awkward"])
def test_a_project_full_of_rows_takes_relay_in_and_out(server, databases, tmp_path, name):
    """Upgrade, check, autogenerate, downgrade, --sql, a fresh database: nothing of Relay's or the host's is touched."""
    reference, printed, fresh = databases
    host = Host(name, tmp_path, reference)
    host.done(["upgrade", "heads"])
    host.fill()
    rows = host.fingerprint()
    assert len(rows) >= 2

    written = host.revision(*HEAD[name])
    if name == "awkward":
        assert written["env_py_needs"]
        leave_relay_alone(host)
    assert host.changed_lines() == {"plain": 0, "awkward": 2}[name]
    assert (written["after"], written["upto"]) == (0, VERSION)
    assert host.revision(*HEAD[name]) == {
        "revision": None, "down_revision": [], "path": None, "after": VERSION, "upto": VERSION, "env_py_needs": None,
    }  # fmt: skip

    before = host.files()
    said = host.done(["upgrade", "heads"], ["check"], ["revision", "--autogenerate", "-m", "empty", *HEAD[name]])
    assert "No new upgrade operations detected." in said
    (empty,) = host.files() - before
    assert body_of(host.root / empty) == ["pass", "pass"]
    (host.root / empty).unlink()
    there = catalog(reference)

    host.done(["downgrade", BACK[name]])
    with psycopg.connect(reference) as connection:
        assert connection.execute("SELECT to_regnamespace('relay')").fetchone() == (None,)
    assert host.fingerprint() == rows
    sql = host.done(["upgrade", "heads"], ["upgrade", "heads", "--sql"])
    assert catalog(reference) == there
    assert host.fingerprint() == rows

    psql = [str(server.bin_dir / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", printed]
    done = subprocess.run(psql, input=sql, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert catalog(printed) == there
    assert "No new upgrade operations detected." in host.done(["check"], dsn=printed)
    host.done(["upgrade", "heads"], ["upgrade", "heads"], dsn=fresh)
    assert catalog(fresh) == there
    assert upgrade(fresh) == []


def test_the_project_s_own_template_names_and_hooks_hold(tmp_path):
    """Dated file name, the branch's own folder, the owner in the template; and a hook's talk is not in the report."""
    host = Host("awkward", tmp_path, "postgresql://127.0.0.1:1/none")
    before = host.files()
    written = host.revision("--head", "billing@head", "--message", "Events, at last")
    (path,) = host.files() - before
    assert str(path) == written["path"]
    assert path.match(f"db/billing/20??_??_{written['revision']}_events_at_last.py")
    assert written["down_revision"] == ["0100"]
    text = (host.root / path).read_text()
    assert "Owner: the platform team" in text
    assert body_of(host.root / path) == [f"upgrade_to({VERSION})", "downgrade_to(0)"]


def test_comparing_all_schemas_needs_the_line_that_is_named(tmp_path, bare):
    """Without it autogenerate would drop Relay's tables: `relay db revision` says so beforehand, and then is silent."""
    host = Host("awkward", tmp_path, bare)
    said = relay("db", "revision", "--head", "core@head", cwd=str(host.root))
    assert "include_name=relay.migrations.include_name" in said.stdout
    host.done(["upgrade", "heads"])
    without = host.alembic(["check"])
    assert without.returncode != 0
    assert "outbox" in without.stdout + without.stderr
    leave_relay_alone(host)
    host.done(["check"])
    assert host.revision("--head", "core@head")["env_py_needs"] is None


def test_several_heads_need_a_choice(tmp_path):
    """The heads are named with their branches, and no file is written."""
    host = Host("awkward", tmp_path, "")
    before = host.files()
    refused = relay("db", "revision", cwd=str(host.root))
    assert refused.returncode == 1
    assert refused.stderr == (
        "RLY-612: the Alembic history has 2 heads: 0001 (core), 0100 (billing). Fix: name one with --head\n"
    )
    assert host.files() == before


def test_what_is_no_alembic_project_is_named(tmp_path):
    """Here, and where --config points."""
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    for arguments in ((), ("--config", "pyproject.toml"), ("--config", "missing.ini")):
        refused = relay("db", "revision", *arguments, cwd=str(tmp_path))
        assert refused.returncode == 1
        assert refused.stderr.startswith("RLY-611: no Alembic project: ")
        assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("migrations/script.py.mako", '${upgrades if upgrades else "pass"}', "pass", "upgrade_to"),
        ("migrations/versions/c2a94d1be830_orders.py", "import sqlalchemy as sa", "import nowhere", "nowhere"),
        ("migrations/versions/c2a94d1be830_orders.py", '"5b1f0e0a7c11"', '"unknown"', "unknown"),
    ],
)
def test_a_project_that_alembic_cannot_use_is_refused_in_one_line(tmp_path, file, old, new, says):
    """A template without a place for the call, a revision that fails, a broken chain: named, and no file is written."""
    host = Host("plain", tmp_path, "")
    host.edit(file, old, new)
    before = host.files()
    refused = relay("db", "revision", cwd=str(host.root))
    assert refused.returncode == 1
    assert refused.stderr.startswith("RLY-613: ")
    assert refused.stderr.count("\n") == 1
    assert says in refused.stderr
    assert host.files() == before


def test_a_later_release_adds_its_steps_and_takes_back_no_more(plain, tmp_path):
    """The next revision follows Relay's first one, runs the new step alone, and its downgrade leaves the rest."""
    first = plain.revision()
    plain.done(["upgrade", "head"])
    there, rows = catalog(plain.dsn), plain.fingerprint()
    code = next_release(
        tmp_path / "next",
        "ALTER TABLE relay.outbox ADD COLUMN tenant text",
        oldest_code=VERSION,
        back="ALTER TABLE relay.outbox DROP COLUMN tenant",
    )
    second = plain.revision(code=code)
    assert (second["after"], second["upto"]) == (VERSION, VERSION + 1)
    assert second["down_revision"] == [first["revision"]]
    text = (plain.root / second["path"]).read_text()
    assert f"upgrade_to({VERSION + 1}, after={VERSION})" in text
    assert f"downgrade_to({VERSION})" in text

    with psycopg.connect(plain.dsn, autocommit=True) as connection:
        emit(connection, "k", "x")
        plain.done(["upgrade", "head"], ["check"], code=code)
        assert connection.execute("SELECT tenant FROM relay.outbox").fetchall() == [(None,)]
        plain.done(["downgrade", "-1"], code=code)
        assert connection.execute("SELECT count(*) FROM relay.outbox").fetchone() == (1,)
    assert catalog(plain.dsn) == there
    assert plain.fingerprint() == rows
    refused = plain.alembic(["downgrade", "-1"], code=code)
    assert refused.returncode != 0
    assert "RLY-404" in refused.stdout


def test_installing_under_load_fails_no_write(plain):
    """Writers with an impatient lock time-out notice nothing of an upgrade, a downgrade and an upgrade."""
    plain.revision()
    stop, failed, written = threading.Event(), [], itertools.count()

    def write(number: int) -> None:
        with psycopg.connect(plain.dsn, autocommit=True) as connection:
            connection.execute("SET lock_timeout = '500ms'; SET statement_timeout = '30s'")
            while not stop.is_set():
                try:
                    connection.execute(
                        "WITH renamed AS (UPDATE customer SET name = name || '!' WHERE id = %s RETURNING id)"
                        " INSERT INTO orders (customer_id, total) SELECT id, 1 FROM renamed",
                        (1 + next(written) % 2000,),
                    )
                except psycopg.Error as error:
                    failed.append(error.diag.message_primary)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    try:
        begun = next(written)
        plain.done(["upgrade", "head"], ["downgrade", "-1"], ["upgrade", "head"])
        ended = next(written)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert failed == []
    assert ended > begun + 50


def test_the_sample_projects_are_as_alembic_leaves_them():
    """Nothing of Relay's is in them beforehand."""
    assert not [path for path in HOSTS.rglob("*.py") if "relay" in path.read_text()]
