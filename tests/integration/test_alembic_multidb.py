"""One Alembic history of several databases, as `alembic init -t multidb` makes it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from relay.schema.steps import VERSION
from tests.support.commands import relay
from tests.support.postgres import bare_database, drop_database


@pytest.fixture
def both(pg):
    """The databases of engine1 and engine2."""
    made = [bare_database(pg) for _ in range(2)]
    yield made
    for dsn in made:
        drop_database(pg, dsn)


@pytest.fixture
def project(tmp_path, both, monkeypatch) -> Config:
    """A new project, in whose folder we are."""
    monkeypatch.chdir(tmp_path)
    command.init(Config("alembic.ini", stdout=io.StringIO()), "migrations", template="multidb")
    text = Path("alembic.ini").read_text()
    urls = iter([*both, "postgresql://nobody@127.0.0.1:1/third"])
    text = re.sub(
        r"^sqlalchemy\.url = .*$",
        lambda _: f"sqlalchemy.url = {next(urls).replace('postgresql://', 'postgresql+psycopg://')}",
        text,
        flags=re.MULTILINE,
    )
    # Its loggers would replace those of the tests.
    Path("alembic.ini").write_text(text.replace("[loggers]", "[no_loggers]"))
    env = Path("migrations/env.py")
    env.write_text(env.read_text().replace("fileConfig(config.config_file_name)", "pass"))
    return Config("alembic.ini")


def has_schema(dsn: str) -> bool:
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT to_regclass('relay.outbox') IS NOT NULL").fetchone() == (True,)


def test_the_template_of_several_databases_is_refused_and_the_advice_works(project, both):
    """Which database has the outbox cannot be guessed. A revision as the message says brings the schema there only."""
    refused = relay("db", "revision")
    assert refused.returncode == 1
    assert refused.stderr.startswith("RLY-613: ")
    assert refused.stderr.count("\n") == 1
    assert not list(Path("migrations/versions").glob("*.py"))

    advice = re.search(r"write a revision with `(.+)`, (upgrade_to\(.+?\)) and (downgrade_to\(.+?\));", refused.stderr)
    imports, up, down = advice.groups()
    script = command.revision(project, "relay")
    path = Path(script.path)
    text = path.read_text().replace("import sqlalchemy as sa", f"import sqlalchemy as sa\n{imports}")
    for call, name in ((up, "upgrade_engine1"), (down, "downgrade_engine1")):
        text = re.sub(rf'(def {name}\(\) -> None:\n    """.*"""\n    )pass', rf"\g<1>{call}", text)
    path.write_text(text)

    command.upgrade(project, "head")
    assert [has_schema(dsn) for dsn in both] == [True, False]
    said = relay("db", "revision")
    assert (said.returncode, said.stdout) == (0, f"nothing to do: the history reaches schema version {VERSION}\n")
    command.downgrade(project, "base")
    assert [has_schema(dsn) for dsn in both] == [False, False]
    assert len(ScriptDirectory.from_config(project).get_heads()) == 1
