"""docs/ADOPTING.md, done as it is written: every shell command of it, on a service that has rows and roles already."""

from __future__ import annotations

import json
import re

import psycopg
import pytest

from relay.schema.grants import grants
from tests.support.blocks import of_section
from tests.support.commands import relay
from tests.support.documents import DOCS, ROOT
from tests.support.examples import Example
from tests.support.hosts import EXAMPLES, Host
from tests.support.postgres import bare_database, drop_database, fresh_database
from tests.support.shell import Shell

FILE = "docs/ADOPTING.md"
TEXT = (DOCS / "ADOPTING.md").read_text(encoding="utf-8")

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
def kafka_for_topics(kafka):
    """Without those that step 5 creates, before and after."""
    yield kafka
    for name in ("relay.changes", "orders"):
        kafka.delete_topic(name)


@pytest.fixture
def neighbour(pg):
    """Another database of the server, in which another service lives with Relay, and with the same roles."""
    dsn = fresh_database(pg)
    yield dsn
    drop_database(pg, dsn)


def test_the_hour_goes_as_it_is_written(*, team, neighbour, pg, kafka_for_topics, tmp_path):
    """From a service without Relay to published events, and back to where it was, with roles that may do little."""
    kafka = kafka_for_topics
    service = Example("fastapi_async", tmp_path, team.replace("postgres@", "catalogue_owner@"))
    service.done(["upgrade", "head"])
    with psycopg.connect(team, autocommit=True) as admin:
        admin.execute(RIGHTS)
    as_service = team.replace("postgres@", "catalogue@")
    before = service.use(
        ("POST", "/products", {"sku": "t", "name": "Teapot", "price": "20", "stock": 3}), dsn=as_service
    )
    files = service.files()
    replaced = {
        "/path/to/a/checkout/of/relay": str(ROOT),
        "db.example/catalogue": team.rpartition("@")[2],
        "kafka.example:9092": kafka.bootstrap,
        # As the text below it says of a single broker.
        "--replication-factor 3 \\\n    --config min.insync.replicas=2": "--replication-factor 1",
    }
    shell = Shell(service.root, tmp_path / "kept", replaced, [pg.bin_dir])

    def section(heading: str, *, of: slice = slice(None)) -> str:
        return "".join(shell.type(one.text) for one in of_section(FILE, heading)[of] if one.language == "sh")

    section("1. Install")
    assert "No new upgrade operations detected" in section("2. Revision")
    section("3. Grants")
    with psycopg.connect(neighbour, autocommit=True) as admin:
        admin.execute(grants([("relay", "relay_daemon"), ("monitor", "relay_monitor"), ("admin", "relay_admin")]))
    service.adopt()
    answers = service.use(
        ("PATCH", "/products/1", {"price": "18"}), ("POST", "/orders", {"product_id": 1, "quantity": 1}), dsn=as_service
    )
    assert [status for status, _ in [*before, *answers]] == [201, 200, 201]
    section("4. The first events")
    section("5. Topics")
    said = section("6. Doctor, then the daemon")
    assert re.search(r"^ok +grants ", said, re.MULTILINE)
    assert not re.search(r"^failed ", said, re.MULTILINE)
    looked = section("7. Look")
    assert "published" in looked
    assert "relay.changes" in looked

    service.abandon()
    assert service.use(("GET", "/products/1", None), dsn=as_service)[0][1]["price"] == "18.00"
    section("Taking it out", of=slice(0, 1))
    with psycopg.connect(team) as admin:
        assert admin.execute("SELECT to_regnamespace('relay')").fetchone() == (None,)
    left = relay("status", settings={"RELAY_DATABASE_URL": neighbour.replace("postgres@", "relay_monitor@")})
    assert left.returncode == 0, left.stderr
    # The second block is for the last database of the server that has these roles.
    drop_database(pg, neighbour)
    section("Taking it out", of=slice(1, None))
    with psycopg.connect(team) as admin:
        named = admin.execute("SELECT count(*) FROM pg_roles WHERE rolname = ANY (%s)", (list(ROLES[:3]),))
        assert named.fetchone() == (0,)
    (revision,) = [path for path in service.files() - files if path.suffix == ".py"]
    (service.root / revision).unlink()
    assert {str(path) for path in service.files() - files} == {"upgrade.sql", "grants.sql", "relay.toml"}
    service.done(["check"])


def test_the_revision_that_is_shown_captures_and_goes_back(pg, tmp_path):
    """In the history of the billing service, whose statements in plain SQL it is for."""
    dsn = bare_database(pg)
    try:
        service = Host("sync_service", tmp_path, dsn, of=EXAMPLES)
        (shown,) = [one.text for one in of_section(FILE, "4. The first events") if one.language == "python"]
        (latest,) = re.findall(r"^revision: str = '(\w+)'", _last_revision(service), re.MULTILINE)
        names = f'revision = "c0ffee000001"\ndown_revision = "{latest}"\nbranch_labels = None\ndepends_on = None\n'
        (service.root / "migrations" / "versions" / "c0ffee000001_capture.py").write_text(f"{names}\n\n{shown}")
        service.done(["upgrade", "head"])
        listed = relay("capture", "list", "--json", settings={"RELAY_DATABASE_URL": dsn})
        assert [(one["table"], one["columns"]) for one in json.loads(listed.stdout)] == [("invoice", ["state"])]
        service.done(["downgrade", "-1"])
        assert json.loads(relay("capture", "list", "--json", settings={"RELAY_DATABASE_URL": dsn}).stdout) == []
    finally:
        drop_database(pg, dsn)


def _last_revision(service: Host) -> str:
    (path,) = (service.root / "migrations" / "versions").glob("*_relay_schema_*.py")
    return path.read_text()


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
