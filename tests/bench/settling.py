"""What is published again while the database refuses to remove what was delivered, until somebody mends it."""

from __future__ import annotations

import time

import psycopg
from psycopg import sql

from relay.schema.grants import grants
from tests.bench.load import EMIT_BATCH
from tests.bench.parts import SCALE, Bench, bench, execute, report
from tests.support.relay_process import NOTHING, RelayProcess
from tests.support.scenario import wait_empty
from tests.support.topic import count_records

EVENTS = 1000
"""In one transaction, below the rows of a unit: so many records are one unit, in one go or in several."""
RAMP_SECONDS = 15.0
"""Pauses grow at first; the bar is about what they have grown to."""
SECONDS = max(15.0, 60 * SCALE)
ROLE = "bench_relay"

SPOILED = {
    "DELETE revoked": (
        f"REVOKE DELETE ON relay.outbox FROM {ROLE}",
        f"GRANT DELETE ON relay.outbox TO {ROLE}",
    ),
    "trigger refuses": (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$refused$$; END';"
        " CREATE TRIGGER refuse BEFORE DELETE ON relay.outbox FOR EACH STATEMENT EXECUTE FUNCTION refuse()",
        "DROP TRIGGER refuse ON relay.outbox; DROP FUNCTION refuse()",
    ),
}
"""What somebody does while the relay runs, and what mends it."""


def repeats(setup: Bench, name: str) -> None:
    """Prints how many units a second are published while none can be settled, and how soon all is well again."""
    topic = setup.topic()
    spoil, mend = SPOILED[name]
    dsn = setup.postgres.dsn(user=ROLE)
    with RelayProcess(dsn, setup.kafka.bootstrap, base=NOTHING) as relay:
        relay.wait_started()
        execute(setup.dsn, spoil)
        with psycopg.connect(setup.dsn, autocommit=True) as connection:
            connection.execute(EMIT_BATCH, {"topic": topic, "first": 0, "rows": EVENTS})
        time.sleep(RAMP_SECONDS)
        ramp, began = count_records(setup.kafka.bootstrap, topic), time.monotonic()
        time.sleep(SECONDS)
        later, seconds = count_records(setup.kafka.bootstrap, topic) - ramp, time.monotonic() - began
        losses = len(relay.events("database.lost"))
        execute(setup.dsn, mend)
        mended = time.monotonic()
        wait_empty(setup.dsn, 120)
    print(
        f"  {name}: {ramp:,} records of {EVENTS:,} events in the first {RAMP_SECONDS:.0f} s, {later:,} in the"
        f" {seconds:.0f} s after that, {losses} times database.lost; empty {time.monotonic() - mended:.1f} s after it"
        f" was mended",
        flush=True,
    )
    rate = later / EVENTS / seconds
    # One more than fits is the one that was due as the count began.
    holds = later / EVENTS <= seconds / 5 + 1
    report(f"repeats, {name}", f"{rate:.3f} units/s", "one in 5 s 0.200/s", rate / 0.2, "<= 0.2/s", holds)


def settling() -> None:
    """A role with the relay's grants, from which one is taken; a trigger that refuses."""
    with bench() as setup:
        create = sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(ROLE)).as_string()
        execute(setup.dsn, create, grants([("relay", ROLE)]))
        for name in SPOILED:
            repeats(setup, name)
