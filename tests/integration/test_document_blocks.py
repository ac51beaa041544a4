"""Every block of every document does what it says, as it is printed: run on real parts, or of a kind that cannot be."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from relay.cache import Local, Need, RedisShared, Versioned
from relay.config import Daemon
from relay.consumer import Consumer
from relay.daemon.diagnosis.examine import ORDER
from relay.errors import CODES
from relay.outbox import get_versioned
from tests.support.blocks import FENCED, block, blocks
from tests.support.commands import relay
from tests.support.consumers import Writer, fresh_group, until
from tests.support.documents import ROOT, documents
from tests.support.postgres import bare_database, drop_database
from tests.support.shell import Shell

HERE = "tests/integration/test_document_blocks.py"
ADOPTING = "tests/integration/test_adopting.py"

#: Block to the test that runs it, or compares each line of it with what it stands for.
PLAYED = {
    "README.md#1": f"{HERE}::test_the_commands_of_a_document_work",
    "README.md#2": f"{HERE}::test_the_commands_of_a_document_work",
    "README.md#3": f"{HERE}::test_the_example_of_writing_writes",
    "README.md#4": f"{HERE}::test_the_examples_of_reading_read",
    "docs/CACHING.md#1": f"{HERE}::test_the_commands_of_a_document_work",
    "docs/CACHING.md#2": f"{HERE}::test_the_examples_of_reading_read",
    "docs/CACHING.md#3": f"{HERE}::test_the_example_of_a_session_reads_what_it_wrote",
    "docs/CACHING.md#4": f"{HERE}::test_the_example_of_a_hook_is_called",
    "docs/CLI.md#1": f"{HERE}::test_what_doctor_is_shown_to_say_it_says",
    "docs/ADOPTING.md#1": f"{ADOPTING}::test_the_hour_goes_as_it_is_written",
    "docs/ADOPTING.md#2": f"{ADOPTING}::test_the_hour_goes_as_it_is_written",
    "docs/ADOPTING.md#3": f"{ADOPTING}::test_the_hour_goes_as_it_is_written",
    "docs/ADOPTING.md#4": f"{ADOPTING}::test_the_hour_goes_as_it_is_written",
    "docs/ADOPTING.md#5": f"{ADOPTING}::test_the_hour_goes_as_it_is_written",
    "docs/ADOPTING.md#6": f"{ADOPTING}::test_the_lines_that_are_shown_are_those_of_the_patch",
    "docs/ADOPTING.md#7": f"{ADOPTING}::test_the_lines_that_are_shown_are_those_of_the_patch",
    "docs/ADOPTING.md#8": f"{ADOPTING}::test_the_lines_that_are_shown_are_those_of_the_patch",
    "docs/ADOPTING.md#9": f"{ADOPTING}::test_the_revision_that_is_shown_captures_and_goes_back",
    "docs/ADOPTING.md#10": f"{ADOPTING}::test_the_hour_goes_as_it_is_written",
    "docs/ADOPTING.md#11": f"{ADOPTING}::test_the_hour_goes_as_it_is_written",
    "docs/ADOPTING.md#12": f"{ADOPTING}::test_the_hour_goes_as_it_is_written",
    "docs/ADOPTING.md#13": f"{HERE}::test_the_unit_starts_the_daemon_and_lets_it_finish",
    "docs/ADOPTING.md#14": f"{ADOPTING}::test_the_hour_goes_as_it_is_written",
    "docs/ADOPTING.md#15": "tests/unit/test_document_commands.py::test_the_alerts_name_metrics_that_exist",
    "docs/ADOPTING.md#16": f"{ADOPTING}::test_the_hour_goes_as_it_is_written",
    "docs/ADOPTING.md#17": f"{ADOPTING}::test_the_hour_goes_as_it_is_written",
    "examples/README.md#1": f"{HERE}::test_the_commands_of_a_document_work",
    "examples/README.md#2": f"{HERE}::test_the_commands_of_a_document_work",
    "examples/README.md#3": f"{HERE}::test_the_commands_of_a_document_work",
}

#: Block to why nothing in it can be run.
LOOKED_AT = {
    "docs/ARCHITECTURE.md#1": "a picture of the write side",
    "docs/ARCHITECTURE.md#2": "a picture of the read side",
}

LANGUAGES = {"sh", "python", "diff", "ini", "yaml", "text"}

COMMANDS = [name for name, test in PLAYED.items() if test.endswith("test_the_commands_of_a_document_work")]


def test_every_block_has_its_place_in_the_tables():
    """A new one has to be run, and what is gone takes its line along."""
    found = [one for file in documents() for one in blocks(file)]
    assert sorted(one.name for one in found) == sorted([*PLAYED, *LOOKED_AT])
    assert {one.language for one in found} <= LANGUAGES
    assert {block(name).language for name in LOOKED_AT} == {"text"}


@pytest.mark.parametrize("name", PLAYED)
def test_the_test_that_plays_a_block_is_there(name):
    """And a block that no fence marks, which nothing would find, is in no document."""
    path, _, test = PLAYED[name].partition("::")
    assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("file", documents(), ids=lambda file: file.name)
def test_what_is_to_be_copied_stands_between_fences(file):
    """Four spaces would make a block, too, of which no test knew."""
    prose = FENCED.sub("", file.read_text(encoding="utf-8"))
    assert not re.findall(r"\n\n    \S.*", prose)


# Commands


@pytest.fixture
def bare(pg) -> Iterator[str]:
    dsn = bare_database(pg)
    yield dsn
    drop_database(pg, dsn)


@pytest.fixture
def changes(kafka) -> Iterator[None]:
    """The topic of entity changes."""
    kafka.create_topic("relay.changes")
    yield
    kafka.delete_topic("relay.changes")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_of_a_document_work(*, bare, kafka, changes, redis_url, tmp_path, pg, name):
    """In the root of a checkout, before a database that has nothing of Relay's yet, unless the text says otherwise."""
    place = bare.partition("://")[2]
    replaced = {
        "user:password@host/db": place,
        "postgres:relay@localhost/postgres": place,
        "postgres:relay@localhost/catalogue": place,
        "localhost:29092": kafka.bootstrap,
        "redis://localhost:6379/0": redis_url,
        "host:9092": kafka.bootstrap,
    }
    if name == "examples/README.md#3":
        assert relay("db", "upgrade", settings={"RELAY_DATABASE_URL": bare}).returncode == 0
    Shell(ROOT, tmp_path / "kept", replaced, [pg.bin_dir]).type(block(name).text)


def test_an_example_is_given_all_that_it_asks_for():
    """The line that installs by hand names each requirement of the service's own project."""
    for number in (1, 2, 3):
        text = block(f"examples/README.md#{number}").text
        (folder,) = re.findall(r"^cd (\S+)$", text, re.MULTILINE)
        wanted = set(re.findall(r'^  "([a-z\[\]]+)', (ROOT / folder / "pyproject.toml").read_text(), re.MULTILINE))
        (line,) = re.findall(r"^pip install (.+)$", text, re.MULTILINE)
        given = {one.strip("'") for one in line.split()}
        of_relay = {one.replace(".[", "relay[") for one in given}
        missing = {one for one in wanted if not any(one == each for each in of_relay)} - {"sqlalchemy"}
        assert not {one for one in missing if not one.startswith("relay[")}, folder


# Python


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name}


@pytest.fixture
def given(database) -> Iterator[dict[str, Any]]:
    """What the examples take for granted: an engine, a class and one of its rows."""
    engine = create_engine(database.replace("postgresql://", "postgresql+psycopg://"))
    Base.metadata.create_all(engine)
    with Session(engine, expire_on_commit=False) as session, session.begin():
        session.add(User(id=42, name="Augusta"))
    with Session(engine, expire_on_commit=False) as session:
        user = session.get(User, 42)
    yield {"engine": engine, "Session": Session, "User": User, "user": user}
    engine.dispose()


def execute(name: str, namespace: dict[str, Any], replaced: dict[str, str]) -> None:
    """Runs a block of Python as it is printed."""
    text = block(name).text
    for written, real in replaced.items():
        assert written in text
        text = text.replace(written, real)
    exec(compile(text, name, "exec", dont_inherit=True), namespace)


def test_the_example_of_writing_writes(given, database):
    """A version and two events, with the change."""
    execute("README.md#3", given, {})
    assert given["version"] == 1
    with psycopg.connect(database) as connection:
        written = connection.execute("SELECT topic, key FROM relay.outbox ORDER BY id").fetchall()
    assert written == [("relay.changes", "user:42"), ("orders", "o-1")]


@pytest.mark.parametrize("name", ["README.md#4", "docs/CACHING.md#2"])
def test_the_examples_of_reading_read(given, kafka, changes, redis_url, name):
    """From a source that has the row, through both tiers, with a consumer and a feed."""
    text = block(name).text
    (servers,) = set(re.findall(r'"bootstrap.servers": "([^"]+)"', text))
    (url,) = re.findall(r'from_url\("([^"]+)"', text)
    fresh = {
        'namespace="shop"': f'namespace="shop-{uuid4().hex[:8]}"',
        'group="shop-cache"': f'group="{fresh_group()}"',
    }
    execute(name, given, {servers: kafka.bootstrap, url: redis_url, **fresh})
    assert given["user"](42) == {"id": 42, "name": "Augusta"}


def test_the_example_of_a_session_reads_what_it_wrote(given, redis_url):
    """With the cookie that it sets, also in the next request."""
    cookies: dict[str, str] = {}
    request = SimpleNamespace(cookies=cookies)
    response = SimpleNamespace(set_cookie=lambda name, value, httponly: cookies.update({name: value}))
    shared = RedisShared.from_url(redis_url, f"shop-{uuid4().hex[:8]}")
    shared.open("test", ())

    def load_user(id_: int, need: Need) -> Versioned:
        with Session(given["engine"]) as reading:
            row = get_versioned(reading, User, id_, entity="user")
            return Versioned(row.value and row.value.as_json(), row.version, row.cacheable)

    with Session(given["engine"]) as database:
        namespace = {
            **given, "database": database, "local": Local(), "shared": shared, "key": b"k" * 32,
            "request": request, "response": response, "load_user": load_user,
        }  # fmt: skip
        execute("docs/CACHING.md#3", namespace, {'namespace="shop"': f'namespace="shop-{uuid4().hex[:8]}"'})
    assert cookies["relay_session"]
    assert namespace["version"] == 1
    assert namespace["user"].read(42).version == 1


def test_the_example_of_a_hook_is_called(kafka, topic, namespace, redis_url):
    """For an event of its entity; what it returns is invalidated."""
    sent: list[str] = []
    shared = RedisShared.from_url(redis_url, namespace)
    with_hook = Consumer(
        kafka={"bootstrap.servers": kafka.bootstrap}, topics=[topic], group=fresh_group(), shared=shared,
        from_beginning=True,
    )  # fmt: skip
    execute("docs/CACHING.md#4", {"consumer": with_hook, "send_mail": sent.append, "owner_of": lambda id_: "7"}, {})
    Writer(kafka.bootstrap, topic).touch_all([("order", "12", 1)])
    with with_hook:
        until("the mail is sent", lambda: "12" in sent)
        until("nothing is in its way", lambda: with_hook.health().is_healthy)


# Others


def test_what_doctor_is_shown_to_say_it_says():
    """Each line begins with a state and a check, or goes on below one, and each code is what the check is about."""
    for line in block("docs/CLI.md#1").text.splitlines():
        assert len(line) <= 80
        found = re.fullmatch(r"(ok|warning|failed|unknown) +([a-z]+) +\S.*", line)
        assert found or line.startswith(" " * 23)
        assert not found or found[2] in ORDER
        assert set(re.findall(r"RLY-\d{3}", line)) <= set(CODES)


def test_the_unit_starts_the_daemon_and_lets_it_finish():
    """Longer than a stopping relay may take."""
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(block("docs/ADOPTING.md#13").text)
    service = unit["Service"]
    assert service["ExecStart"].endswith("/relay run")
    assert int(service["TimeoutStopSec"]) > Daemon().shutdown_seconds
    assert Path(service["EnvironmentFile"]).is_absolute()
