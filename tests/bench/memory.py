"""Resident memory at its peak, of a relay that drains many small events, then large ones, then large keys."""

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
WIDE = max(100, int(600 * SCALE))
"""Half of them with a large key, half with a large header."""
WIDE_BYTES = 900_000
SETTLE_SECONDS = 5

FILL_LARGE = """\
INSERT INTO relay.outbox (lane, topic, key, payload)
SELECT relay.lane_of('key-' || g), %(topic)s, 'key-' || g, %(payload)s FROM generate_series(1, %(rows)s) AS g"""
"""One payload of random bytes for all: lz4 does not look back as far as the last copy, so nothing is compressed."""

FILL_WIDE = """\
INSERT INTO relay.outbox (lane, topic, key, headers, payload)
SELECT relay.lane_of(e.key), %(topic)s, e.key, e.headers, '\\x00'
FROM generate_series(1, %(rows)s) AS g
CROSS JOIN LATERAL (
    SELECT CASE WHEN g %% 2 = 0 THEN 'key-' || g || %(wide)s ELSE 'key-' || g END AS key,
           CASE WHEN g %% 2 = 1 THEN E'wide\\x1f' || %(wide)s || E'\\x1f' ELSE '' END AS headers
) AS e"""


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
            with psycopg.connect(setup.dsn, autocommit=True) as connection:
                connection.execute(FILL_WIDE, {"topic": topic, "rows": WIDE, "wide": os.urandom(WIDE_BYTES // 2).hex()})
            total = SMALL + LARGE + WIDE
            eventually(lambda: relay.metric("relay_published_events_total") >= total, 600, "the large keys")
            wide = peak_mb(relay.pid)
            time.sleep(SETTLE_SECONDS)
            after = resident_mb(relay.pid)
    print(
        f"  at the peak: idle {nothing:.0f} MB, after {SMALL:,} small {small:.0f} MB, after {LARGE:,} of"
        f" {LARGE_BYTES // 1000} KB {large:.0f} MB, after {WIDE} keys and headers of {WIDE_BYTES // 1000} KB"
        f" {wide:.0f} MB; {after:.0f} MB {SETTLE_SECONDS} s later",
        flush=True,
    )
    for name, found in (("resident memory, peak", large), ("the same with large keys", wide)):
        limit = f"idle relay {nothing:.0f} MB"
        report(name, f"{found:.0f} MB", limit, found / nothing, "< 120 MB", found < 120)
