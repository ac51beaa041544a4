"""What a capture trigger costs: a captured table and one like it that is not, in turn, in one run.

Single rows are written by eight clients in a closed loop, as in `writers`. The bulk update changes 100,000 rows in one
statement, of a table as narrow as can be and of one as services have them: a dozen columns, five indexes, of which the
update touches two.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import psycopg

from relay.demo.postgres import EmbeddedPostgres
from relay.schema.install import upgrade
from tests.bench.parts import SCALE, execute, median, report
from tests.bench.writers import CLIENTS, pgbench

ROWS = max(1000, round(100_000 * SCALE))
ROUNDS = 6
BULK_ROUNDS = 5

NARROW = "(id bigint PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 80)"
WIDE = (
    "(id bigint PRIMARY KEY, email text NOT NULL UNIQUE, name text NOT NULL, street text, city text, country text,"
    " phone text, status text NOT NULL, balance numeric(12, 2) NOT NULL, note text, created_at timestamptz NOT NULL,"
    " updated_at timestamptz NOT NULL)"
)
WIDE_INDEXES = ("(country, city)", "(status)", "(updated_at)")
WIDE_ROW = (
    "g, 'user' || g || '@example.org', 'Name ' || g, g || ' Long Street', 'City ' || g % 500, 'C' || g % 90,"
    " '+49 30 ' || g, 'new', g, repeat('x', 60), now(), now()"
)
BULK = {
    "narrow": "UPDATE {} SET balance = balance + 1",
    "wide": "UPDATE {} SET status = CASE status WHEN 'new' THEN 'old' ELSE 'new' END, updated_at = now()",
}


def prepare(dsn: str, rows: int) -> None:
    """Two tables of each kind; the captured one's entities have versions, since most changes are not the first."""
    for table in ("narrow", "narrow_captured"):
        execute(
            dsn, f"CREATE TABLE {table} {NARROW}", f"INSERT INTO {table} SELECT g, 0 FROM generate_series(1, {rows}) g"
        )
    for table in ("wide", "wide_captured"):
        execute(dsn, f"CREATE TABLE {table} {WIDE}", *(f"CREATE INDEX ON {table} {index}" for index in WIDE_INDEXES))
        execute(dsn, f"INSERT INTO {table} SELECT {WIDE_ROW} FROM generate_series(1, {rows}) AS g")
    for table in ("narrow_captured", "wide_captured"):
        execute(dsn, f"SELECT relay.capture('{table}')")
        execute(dsn, f"INSERT INTO relay.entity_version SELECT '{table}', id::text, 1 FROM {table}")
    execute(dsn, "VACUUM ANALYZE", "CHECKPOINT")


def single(postgres: EmbeddedPostgres, dsn: str) -> None:
    """Milliseconds of a transaction that updates one row."""
    found: dict[str, list[float]] = {"narrow": [], "narrow_captured": [], "touch": []}
    statements = {table: f"UPDATE {table} SET balance = balance + 1 WHERE id = :id" for table in found}
    statements["touch"] = f"{statements['narrow']} RETURNING relay.touch('narrow_captured', id::text)"
    with tempfile.TemporaryDirectory() as folder:
        kinds = list(found)
        for number in range(ROUNDS):
            for kind in kinds[number % 3 :] + kinds[: number % 3]:
                script = Path(folder) / f"{kind}.sql"
                script.write_text(f"\\set id random(1, {ROWS})\n{statements[kind]};\n")
                found[kind].append(pgbench(postgres, dsn, script))
                execute(dsn, "TRUNCATE relay.outbox")
    for kind, name, bar in (("narrow_captured", "captured", 1.4), ("touch", "touch, for comparison", None)):
        show(f"one row, {CLIENTS} clients, {name}", found[kind], found["narrow"], bar)


def bulk(dsn: str) -> None:
    """Milliseconds of one statement that updates all rows, with its commit."""
    for kind, statement in BULK.items():
        found: dict[str, list[float]] = {kind: [], f"{kind}_captured": []}
        for number in range(BULK_ROUNDS + 1):
            for table, times in sorted(found.items(), reverse=number % 2 == 1):
                execute(dsn, "TRUNCATE relay.outbox", f"VACUUM {table}", "VACUUM relay.entity_version", "CHECKPOINT")
                with psycopg.connect(dsn, autocommit=True) as connection:
                    start = time.perf_counter()
                    connection.execute(statement.format(table))
                    times.append((time.perf_counter() - start) * 1000)
        # The first round fills what vacuum frees for the later ones.
        show(f"{ROWS:,} rows, {kind}, captured", found[f"{kind}_captured"][1:], found[kind][1:], 1.5)


def show(name: str, ours: list[float], plain: list[float], bar: float | None) -> None:
    """The median of the ratios of the rounds: what drifts, drifts for both."""
    times = median([one / other for one, other in zip(ours, plain, strict=True)])
    report(
        name,
        f"{median(ours):.3f} ms",
        f"plain {median(plain):.3f} ms",
        times,
        f"<= {bar}" if bar else "none",
        bar is None or times <= bar,
    )


def capture() -> None:
    """Without a relay, which has its own machine's processors."""
    with EmbeddedPostgres(18, settings={"shared_buffers": "512MB", "max_wal_size": "8GB"}) as postgres:
        dsn = postgres.dsn()
        upgrade(dsn)
        prepare(dsn, ROWS)
        single(postgres, dsn)
        bulk(dsn)
