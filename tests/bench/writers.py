"""What an event costs the transaction that writes it: saturated writers, in many short rounds of each kind in turn."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from relay.demo.postgres import EmbeddedPostgres
from tests.bench.parts import SCALE, Bench, bench, execute, median, report
from tests.support.relay_process import NOTHING, RelayProcess

CLIENTS = 8
ROUNDS = 6
ROUND_SECONDS = max(1, round(3 * SCALE))
ACCOUNTS = 100_000
TOPIC = "bench-writers"

PREPARE = (
    "CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 80)",
    f"INSERT INTO account SELECT g, 0 FROM generate_series(1, {ACCOUNTS}) AS g",
    # Entities that exist are touched more often than new ones.
    f"INSERT INTO relay.entity_version SELECT 'account', g::text, 1 FROM generate_series(1, {ACCOUNTS}) AS g",
    "CREATE TABLE plain_outbox (id bigint GENERATED ALWAYS AS IDENTITY, lane smallint NOT NULL, event_id uuid NOT NULL"
    " DEFAULT gen_random_uuid(), created_at timestamptz NOT NULL DEFAULT clock_timestamp(), topic text NOT NULL,"
    " key text, headers text NOT NULL DEFAULT '', payload bytea, PRIMARY KEY (lane, id))",
    "VACUUM ANALYZE",
    "CHECKPOINT",
)

UPDATE = "UPDATE account SET balance = balance + 1 WHERE id = :id"
DOCUMENT = "jsonb_build_object('id', id, 'balance', balance)"

TOUCH = f"{UPDATE} RETURNING relay.touch('account', id::text)"
EMIT = f"{UPDATE} RETURNING relay.emit('{TOPIC}', id::text, {DOCUMENT})"
INSERT = (
    f"WITH changed AS ({UPDATE} RETURNING id, balance) INSERT INTO plain_outbox (lane, topic, key, headers, payload)"
    f" SELECT id & 63, '{TOPIC}', id::text, '', convert_to({DOCUMENT}::text, 'UTF8') FROM changed"
)
SELECT_TOUCH = "SELECT relay.touch('account', :id::text)"
SELECT_EMIT = f"SELECT relay.emit('{TOPIC}', :id::text, jsonb_build_object('id', :id::bigint, 'balance', 1))"


def transaction(*statements: str) -> str:
    """As services write: begun and committed by statements of their own."""
    return "".join(f"{statement};\n" for statement in ("BEGIN", *statements, "COMMIT"))


KINDS = {
    "plain": transaction(UPDATE),
    "touch": transaction(TOUCH),
    "emit": transaction(EMIT),
    "insert": transaction(INSERT),
    "touch apart": transaction(UPDATE, SELECT_TOUCH),
    "emit apart": transaction(UPDATE, SELECT_EMIT),
    "plain auto": f"{UPDATE};",
    "touch auto": f"{TOUCH};",
    "emit auto": f"{EMIT};",
}
"""The first four have the same number of round trips; those apart have one more. `auto` is one statement in autocommit.
`insert` is the limit: the same row into a table of the same columns, without functions, checks or locks."""


def milliseconds(setup: Bench, kind: str, folder: Path) -> float:
    """The mean latency of a transaction: pgbench, prepared statements, a closed loop of all clients."""
    script = folder / f"{kind.replace(' ', '-')}.sql"
    script.write_text(f"\\set id random(1, {ACCOUNTS})\n{KINDS[kind]}\n")
    return pgbench(setup.postgres, setup.dsn, script)


def pgbench(postgres: EmbeddedPostgres, dsn: str, script: Path) -> float:
    """The mean latency of a script's transaction in milliseconds, in one short round."""
    command = [str(postgres.bin_dir / "pgbench"), "-n", "-M", "prepared", "-c", str(CLIENTS), "-j", "2"]
    done = subprocess.run(
        [*command, "-T", str(ROUND_SECONDS), "-f", str(script), dsn], capture_output=True, text=True, check=False
    )
    found = re.search(r"latency average = ([\d.]+) ms", done.stdout)
    failed = re.search(r"number of failed transactions: (\d+)", done.stdout)
    if done.returncode or found is None or (failed and int(failed[1])):
        raise RuntimeError(f"pgbench failed:\n{done.stdout}{done.stderr}")
    return float(found[1])


def rounds(setup: Bench, count: int, empty: bool) -> dict[str, list[float]]:
    """Milliseconds of each kind in each round; the order rotates, so that none always runs after the same other."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    kinds = list(KINDS)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            for kind in [*kinds[number:], *kinds[:number]]:
                found[kind].append(milliseconds(setup, kind, Path(folder)))
                execute(setup.dsn, "TRUNCATE plain_outbox", *(["TRUNCATE relay.outbox"] if empty else []))
            print("  round: " + ", ".join(f"{kind} {values[-1]:.3f}" for kind, values in found.items()), flush=True)
    return found


def ratio(found: dict[str, list[float]], kind: str, base: str) -> float:
    """The median of the ratios of the rounds: what drifts, drifts for both."""
    return median([ours / theirs for ours, theirs in zip(found[kind], found[base], strict=True)])


def show(found: dict[str, list[float]], kind: str, base: str, where: str, bar: float | None) -> None:
    """One line: this kind against its own update without an event."""
    times = ratio(found, kind, base)
    report(
        f"update + {kind}, {where}",
        f"{median(found[kind]):.3f} ms",
        f"{base} update {median(found[base]):.3f} ms",
        times,
        f"<= {bar}" if bar else "none",
        bar is None or times <= bar,
    )


def writers() -> None:
    """First without a relay: the writer's own cost, which the bars are about, since a relay has its own machine's
    processors. Then with a relay that drains beside it and competes for the same two."""
    with bench() as setup:
        execute(setup.dsn, *PREPARE)
        setup.kafka.create_topic(TOPIC)
        setup.kafka.create_topic("relay.changes")
        alone = rounds(setup, ROUNDS, empty=True)
        with RelayProcess(setup.dsn, setup.kafka.bootstrap, base=NOTHING) as relay:
            relay.wait_started()
            beside = rounds(setup, 2, empty=False)
    bars = {"touch": 1.4, "emit": 1.2}
    for found, where, bar in ((alone, "alone", bars.get), (beside, "with a relay", {}.get)):
        for kind in ("touch", "emit", "insert", "touch apart", "emit apart"):
            show(found, kind, "plain", where, bar(kind))
        for kind in ("touch auto", "emit auto"):
            show(found, kind, "plain auto", where, None)
