"""What a relay costs while there is nothing to do, and how soon it is there again when there is."""

from __future__ import annotations

import random
import time

import psycopg

from tests.bench.load import EMIT, Aside, Sent, payload, percentile, produce, receive
from tests.bench.parts import SCALE, Bench, bench, execute, processor_seconds, report
from tests.support.relay_process import NOTHING, RelayProcess, eventually

IDLE_SECONDS = max(10.0, 60 * SCALE)
EVENTS = max(5, int(50 * SCALE))
WARM_UP_EVENTS = 4
"""The first ones wait until the producers have an id from the broker; the broker has only just started."""
FLUSH_SECONDS = 11
"""A backend reports its transactions when a second has passed since its last report, or ten once it is idle."""

TRANSACTIONS = """\
SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s"""


def transactions_per_second(meter: psycopg.Connection, database: str) -> float:
    """What the database counts; between two reports at the most a second's worth is missing at either end."""

    def count() -> int:
        row = meter.execute(TRANSACTIONS, [database]).fetchone()
        assert row is not None
        return row[0]

    before, started = count(), time.monotonic()
    time.sleep(IDLE_SECONDS)
    return (count() - before) / (time.monotonic() - started)


def fall_asleep(relay: RelayProcess) -> None:
    """Returns when the relay waits to be woken."""
    eventually(lambda: relay.metric("relay_asleep") == 1, 60, "the relay to fall asleep")


def first_events(setup: Bench, relay: RelayProcess, count: int) -> list[float]:
    """Milliseconds from the commit of one event to its arrival, each after the relay has fallen asleep again."""
    topic = setup.topic()
    draw = random.Random(3)
    returned: dict[int, int] = {}
    with (
        Aside(receive, setup.kafka.bootstrap, topic, count) as receiver,
        psycopg.connect(setup.dsn, autocommit=True, prepare_threshold=0) as connection,
    ):
        receiver.hear()
        for number in range(count):
            fall_asleep(relay)
            # Anywhere between two looks of the sleeper: a look that comes by at the right time is no wake-up.
            time.sleep(0.2 + draw.random())
            connection.execute(EMIT, (topic, f"key-{number}", payload(number)))
            returned[number] = time.monotonic_ns()
            # It says that it sleeps until it has been woken.
            time.sleep(0.5)
        received: dict[int, int] = receiver.hear()
    return [(received[number] - returned[number]) / 1e6 for number in range(count)]


def bare_events(setup: Bench) -> list[float]:
    """Milliseconds from producing one record to its arrival, one every half second."""
    topic = setup.topic()
    count = WARM_UP_EVENTS + EVENTS
    with (
        Aside(receive, setup.kafka.bootstrap, topic, count) as receiver,
        Aside(produce, setup.kafka.bootstrap, topic, 2.0, count) as sender,
    ):
        receiver.hear()
        sender.tell()
        sent: dict[int, Sent] = sender.hear(count + 60)
        received: dict[int, int] = receiver.hear()
    return [(received[number] - sent[number].returned) / 1e6 for number in range(WARM_UP_EVENTS, count)]


def idle() -> None:
    """A relay that has published something and fallen asleep; the meter reads from another database of the server."""
    with bench() as setup:
        execute(setup.dsn, "CREATE DATABASE meter")
        database = psycopg.conninfo.conninfo_to_dict(setup.dsn)["dbname"]
        bare = bare_events(setup)
        with (
            RelayProcess(setup.dsn, setup.kafka.bootstrap, base=NOTHING) as relay,
            psycopg.connect(setup.postgres.dsn("meter"), autocommit=True) as meter,
        ):
            relay.wait_started()
            first_events(setup, relay, WARM_UP_EVENTS)
            fall_asleep(relay)
            time.sleep(FLUSH_SECONDS)
            used, started = processor_seconds(relay.pid), time.monotonic()
            rate = transactions_per_second(meter, str(database))
            share = (processor_seconds(relay.pid) - used) / (time.monotonic() - started)
            slept = relay.metric("relay_asleep") == 1
            first = first_events(setup, relay, EVENTS)
    p50, p99, bare_p99 = percentile(first, 0.5), percentile(first, 0.99), percentile(bare, 0.99)
    print(
        f"  {IDLE_SECONDS:.0f} s, asleep at the end: {'yes' if slept else 'NO'}; {EVENTS} first events"
        f" p50 {p50:.1f} p99 {p99:.1f} max {max(first):.1f} ms;"
        f" bare p50 {percentile(bare, 0.5):.1f} p99 {bare_p99:.1f} max {max(bare):.1f} ms",
        flush=True,
    )
    report("idle, transactions", f"{rate:.2f} tx/s", "a look a second 1.00/s", rate, "<= 2/s", rate <= 2)
    report("idle, processor", f"{share * 1000:.1f} ms/s", "a whole core 1000 ms/s", share, "< 0.01", share < 0.01)
    report("first event after idling, p99", f"{p99:.1f} ms", f"bare produce {bare_p99:.1f} ms", p99 / bare_p99,
           "< 50 ms", p99 < 50)  # fmt: skip
