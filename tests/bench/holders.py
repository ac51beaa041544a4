"""The rate of a relay while somebody holds back what it has removed: a snapshot, or a writer that does not end.

Three servers, so that no holder is felt by the others (an open transaction keeps back every snapshot that is taken
anywhere on its server), one broker, one relay each. All get the same history at the same time, while the holder of
two of them is open: ten minutes of 5,000 events a second each. Then, with the holders still there, the same backlog
is put into each in turn, several times: what a relay can do shows in a backlog, and not in what writers happen to
write.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg

from tests.bench.load import EMIT_BATCH, Aside, write_batches
from tests.bench.parts import FILL, SCALE, Bench, bench, broker_rate, database, median, report
from tests.support.relay_process import NOTHING, RelayProcess, eventually
from tests.support.topic import read_topic

HISTORY_SECONDS = max(10.0, 600 * SCALE)
RATE = 5000.0
BACKLOG = max(20_000, int(500_000 * SCALE))
ROUNDS = 5
HELD_ROWS = 10_000
LOOK_SECONDS = 5.0


@contextmanager
def snapshot(setup: Bench) -> Iterator[psycopg.Connection]:
    """A reader in REPEATABLE READ that has read something: nothing that is removed from now on can be cleaned up."""
    with psycopg.connect(setup.dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT count(*) FROM relay.lane")
        yield connection


@contextmanager
def writer(setup: Bench, topic: str) -> Iterator[psycopg.Connection]:
    """A writer with many uncommitted events."""
    with psycopg.connect(setup.dsn) as connection:
        connection.execute(EMIT_BATCH, {"topic": topic, "first": 0, "rows": HELD_ROWS})
        yield connection


def published(relay: RelayProcess) -> float:
    """How many events it has published."""
    return relay.metric("relay_published_events_total")


def history(setup: Bench, relay: RelayProcess, name: str) -> None:
    """Ten minutes of events that the relay keeps up with; prints how well it did."""
    topic = setup.topic()
    before, worst, oldest = published(relay), 0.0, 0.0
    with Aside(write_batches, setup.dsn, topic, RATE) as load:
        load.hear()
        started = time.monotonic()
        while (left := started + HISTORY_SECONDS - time.monotonic()) > 0:
            time.sleep(min(LOOK_SECONDS, left))
            # As the relay samples it itself: counting from outside would walk what cannot be cleaned up.
            oldest = relay.metric("relay_oldest_event_age_seconds")
            worst = max(worst, oldest)
        load.tell()
        written = load.hear()
        seconds, behind = time.monotonic() - started, written - (published(relay) - before)
    eventually(lambda: published(relay) - before >= written, 120, "the relay to catch up")
    print(
        f"  {name}: {written / seconds:,.0f} events/s for {seconds:.0f} s; at the end the oldest was {oldest:.3f} s old"
        f" (at worst {worst:.3f} s), {behind:,.0f} events behind",
        flush=True,
    )
    setup.kafka.delete_topic(topic)


def backlog_rate(setup: Bench, relay: RelayProcess) -> float:
    """Events a second of a backlog that becomes visible at once to a relay that has been there all the time."""
    topic = setup.topic()
    before = published(relay)
    with psycopg.connect(setup.dsn, autocommit=True) as connection:
        connection.execute(FILL, {"topic": topic, "rows": BACKLOG})
    eventually(lambda: published(relay) - before >= BACKLOG, 600, "the backlog to be drained")
    rate = broker_rate(setup.kafka.bootstrap, topic)
    setup.kafka.delete_topic(topic)
    return rate


def held_rows_arrive(setup: Bench, connection: psycopg.Connection, topic: str) -> None:
    """Ends the writer; each of its rows must arrive, and nothing else was ever in their topic."""
    early = len(read_topic(setup.kafka.bootstrap, topic))
    connection.commit()
    started = time.monotonic()

    def arrived() -> set[str | None]:
        return {record.event_id for record in read_topic(setup.kafka.bootstrap, topic)}

    eventually(lambda: len(arrived()) >= HELD_ROWS, 60, "the rows of the writer that has ended")
    seconds, count = time.monotonic() - started, len(arrived())
    report(
        "rows of the held writer", f"{count:,} in {seconds:.1f} s", f"written {HELD_ROWS:,}", count / HELD_ROWS,
        "all", count == HELD_ROWS and not early,
    )  # fmt: skip


def holders() -> None:
    """Nobody, a snapshot and a writer, in one run."""
    with bench() as free, database(free.kafka) as read, database(free.kafka) as written:
        held_topic = written.topic()
        setups = {"nobody": free, "snapshot": read, "writer": written}
        rates: dict[str, list[float]] = {name: [] for name in setups}
        with (
            RelayProcess(free.dsn, free.kafka.bootstrap, base=NOTHING) as one,
            RelayProcess(read.dsn, free.kafka.bootstrap, base=NOTHING) as two,
            RelayProcess(written.dsn, free.kafka.bootstrap, base=NOTHING) as three,
        ):
            relays = {"nobody": one.wait_started(), "snapshot": two.wait_started(), "writer": three.wait_started()}
            with snapshot(read), writer(written, held_topic) as open_writer:
                with ThreadPoolExecutor(len(setups)) as pool:
                    list(pool.map(lambda name: history(setups[name], relays[name], name), setups))
                for _ in range(ROUNDS):
                    for name, setup in setups.items():
                        rates[name].append(backlog_rate(setup, relays[name]))
                    latest = ", ".join(f"{name} {values[-1]:,.0f}/s" for name, values in rates.items())
                    print(f"  round: {latest}", flush=True)
                held_rows_arrive(written, open_writer, held_topic)
            breaches = {name: relay.metric("relay_floor_breaches_total") for name, relay in relays.items()}
    print("  relay_floor_breaches_total: " + ", ".join(f"{name} {n:.0f}" for name, n in breaches.items()), flush=True)
    for name in ("snapshot", "writer"):
        ratio = median([held / alone for held, alone in zip(rates[name], rates["nobody"], strict=True)])
        report(
            f"rate while a {name} is held", f"{median(rates[name]):,.0f} events/s",
            f"nobody {median(rates['nobody']):,.0f}/s", ratio, ">= 0.9", ratio >= 0.9 and not breaches[name],
        )  # fmt: skip
