"""An application that writes events loads its own database library and nothing more."""

from __future__ import annotations

import subprocess
import sys

import pytest

FOREIGN = {"confluent_kafka", "psycopg", "sqlalchemy", "click", "structlog", "prometheus_client", "asyncpg"}


@pytest.mark.parametrize("module", ["relay", "relay.outbox"])
def test_the_write_side_loads_no_library_that_the_application_did_not_load(module):
    program = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not FOREIGN & set(done.stdout.split())


def test_writing_through_psycopg_does_not_load_sqlalchemy():
    program = (
        "import sys, psycopg, relay.outbox\n"
        "from relay.errors import EventError\n"
        "try: relay.outbox.emit(object(), 't', key=None, payload=None)\n"
        "except EventError as error: print(error.code)\n"
        "print('sqlalchemy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["RLY-111", "False"]


def test_a_revision_loads_nothing_but_alembic():
    """The host's driver is its own affair, and Kafka has nothing to do with it."""
    program = "import sys, relay.migrations; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "alembic" in loaded
    assert not (FOREIGN - {"sqlalchemy"}) & loaded


WITHOUT = """\
import sys
for name in ("redis", "hiredis", "orjson", "pydantic", "confluent_kafka", "prometheus_client", "psycopg", "sqlalchemy"):
    sys.modules[name] = None
import relay.consumer
from relay.cache import Cache, Local, Need, Versioned
cache = Cache("alone", local=Local())
@cache.entity("user")
def user(id: int, need: Need):
    return Versioned({"id": id}, 1)
print(user(7), user(7))
"""


def test_the_process_tier_needs_nothing_that_is_optional():
    """A cache without a shared tier works where none of the extras is installed, and the consumer can be imported."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "{'id': 7} {'id': 7}", done.stderr
