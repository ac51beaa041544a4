"""`relay db sql`: what somebody else runs, who has nobody to ask."""

from __future__ import annotations

import subprocess

import psycopg
import pytest

from relay.schema.steps import LOCK_ID, script
from tests.support.postgres import bare_database, drop_database


@pytest.fixture
def bare(pg):
    dsn = bare_database(pg)
    yield dsn
    drop_database(pg, dsn)


def run(pg, dsn: str) -> subprocess.CompletedProcess[str]:
    command = [str(pg.bin_dir / "psql"), "-X", "-q", "-d", dsn]
    return subprocess.run(command, input=script(), capture_output=True, text=True, check=False)


def test_a_lock_that_is_not_to_be_had_leaves_nothing_behind_and_a_second_run_succeeds(pg, bare):
    """As the first lines of the script say to whom it is given."""
    assert "After a lock time-out" in script().partition("\nBEGIN ")[0]
    with psycopg.connect(bare) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_ID,))
        refused = run(pg, bare)
    assert "lock timeout" in refused.stderr
    with psycopg.connect(bare) as connection:
        assert connection.execute("SELECT to_regnamespace('relay')").fetchone() == (None,)
    assert not run(pg, bare).stderr
    with psycopg.connect(bare) as connection:
        assert connection.execute("SELECT count(*) > 0 FROM relay.lane").fetchone() == (True,)
