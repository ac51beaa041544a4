"""Resident memory at its peak, of a relay that drains many small events and then large ones."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psycopg

from tests.bench.parts import SCALE, bench, fill, report, resident_mb
from tests.support.relay_process import NOTHING, RelayProcess, eventually

SMALL = int(1_000_000 * SCALE)
LARGE = max(500, int(20_000 * SCALE))
LARGE_BYTES = 100_000
SETTLE_SECONDS = 5

FILL_LARGE = """\
INSERT INTO relay.outbox (lane, topic, key, payload)
SELECT relay.lane_of('key-' || g), %(topic)s, 'key-' || g, %(payload)s FROM generate_series(1, %(rows)s) AS g"""
"""One payload of random bytes for all: lz4 does not look back as far as the last copy, so nothing is compressed."""


def peak_mb(pid: int) -> float:
    """The most that the process has ever held, by the kernel's own account: no peak falls between two looks."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"the kernel does not say what process {pid} held")


def memory() -> None:
    """One relay for both backlogs; the limit is a relay that has found nothing to do."""
    with bench() as setup:
        with RelayProcess(setup.dsn, setup.kafka.bootstrap, base=NOTHING) as idler:
            idler.wait_started()
            time.sleep(SETTLE_SECONDS)
            nothing = peak_mb(idler.pid)
        topic = setup.topic()
        fill(setup.dsn, topic, SMALL)
        with RelayProcess(setup.dsn, setup.kafka.bootstrap, base=NOTHING) as relay:
            relay.wait_started()
            eventually(lambda: relay.metric("relay_published_events_total") >= SMALL, 600, "the small events")
            small = peak_mb(relay.pid)
            with psycopg.connect(setup.dsn, autocommit=True) as connection:
                rows = {"topic": topic, "rows": LARGE, "payload": os.urandom(LARGE_BYTES)}
                connection.execute(FILL_LARGE, rows)
            eventually(lambda: relay.metric("relay_published_events_total") >= SMALL + LARGE, 600, "the large events")
            large = peak_mb(relay.pid)
            time.sleep(SETTLE_SECONDS)
            after = resident_mb(relay.pid)
    print(
        f"  idle {nothing:.0f} MB, after {SMALL:,} small {small:.0f} MB, after {LARGE:,} of {LARGE_BYTES // 1000} KB"
        f" {large:.0f} MB at the peak; {after:.0f} MB {SETTLE_SECONDS} s later",
        flush=True,
    )
    report("resident memory, peak", f"{large:.0f} MB", f"idle relay {nothing:.0f} MB", large / nothing, "< 120 MB",
           large < 120)  # fmt: skip
