"""Drain rates: against the bare loop and the article's loop, two processes and one, deep and shallow backlogs."""

from __future__ import annotations

import json

import psycopg

from tests.bench.parts import SCALE, Bench, bench, broker_rate, drain, execute, fill, median, report, start

ROUNDS = 5


def run_loop(setup: Bench, name: str, topic: str) -> None:
    """One of the loops to its end."""
    if start(["-m", "tests.bench.loops", name, setup.dsn, setup.kafka.bootstrap, topic]).wait(1800):
        raise RuntimeError(f"the {name} loop failed")


def fill_article(dsn: str, rows: int) -> None:
    """The same events in the article's kind of table."""
    execute(
        dsn,
        "DROP TABLE IF EXISTS article_outbox",
        "CREATE TABLE article_outbox (id bigserial PRIMARY KEY, key text, headers jsonb, payload bytea,"
        " published_at timestamptz)",
        "CREATE INDEX ON article_outbox (id) WHERE published_at IS NULL",
    )
    headers = json.dumps({"trace": "4bf92f3577b34da6a3ce929d0e0e4736", "content-type": "application/json"})
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO article_outbox (key, headers, payload) SELECT 'key-' || (g %% 10000), %s::jsonb,"
            " convert_to('{\"n\":' || lpad(g::text, 10, '0') || ',\"text\":\"' || repeat('abcdefgh', 26)"
            " || 'abcdef\"}', 'UTF8') FROM generate_series(1, %s) AS g",
            (headers, rows),
        )
        connection.execute("CHECKPOINT")


def drain_against_bare() -> None:
    """1 M events: bare loop, relay, article's loop, in turn, several times in one run."""
    rows = int(1_000_000 * SCALE)
    rates: dict[str, list[float]] = {"bare": [], "relay": [], "article": []}
    with bench() as setup:
        for _ in range(ROUNDS):
            bare_topic, relay_topic, article_topic = setup.topic(), setup.topic(), setup.topic()
            fill(setup.dsn, relay_topic, rows)
            run_loop(setup, "bare", bare_topic)
            drain(setup)
            fill_article(setup.dsn, rows // 2)
            run_loop(setup, "article", article_topic)
            for name, topic in (("bare", bare_topic), ("relay", relay_topic), ("article", article_topic)):
                rates[name].append(broker_rate(setup.kafka.bootstrap, topic))
            setup.kafka.delete_topic(bare_topic)
            setup.kafka.delete_topic(relay_topic)
            print("  round: " + ", ".join(f"{name} {values[-1]:,.0f}/s" for name, values in rates.items()), flush=True)
    ratio = median([relay / bare for relay, bare in zip(rates["relay"], rates["bare"], strict=True)])
    figure, limit = f"{median(rates['relay']):,.0f} events/s", f"bare loop {median(rates['bare']):,.0f}/s"
    report("drain of 1 M", figure, limit, ratio, ">= 0.6", ratio >= 0.6)
    peer = median([relay / other for relay, other in zip(rates["relay"], rates["article"], strict=True)])
    report("the same against the article's loop", figure, f"peer {median(rates['article']):,.0f}/s", peer, "none", True)


def two_processes() -> None:
    """The same backlog with one process and with two."""
    rows = int(1_000_000 * SCALE)
    rates: dict[int, list[float]] = {1: [], 2: []}
    with bench() as setup:
        for _ in range(ROUNDS):
            for relays in (1, 2):
                topic = setup.topic()
                fill(setup.dsn, topic, rows)
                drain(setup, relays)
                rates[relays].append(broker_rate(setup.kafka.bootstrap, topic))
                setup.kafka.delete_topic(topic)
            print(f"  round: one {rates[1][-1]:,.0f}/s, two {rates[2][-1]:,.0f}/s", flush=True)
    ratio = median([two / one for one, two in zip(rates[1], rates[2], strict=True)])
    report(
        "two processes against one",
        f"{median(rates[2]):,.0f} events/s",
        f"one {median(rates[1]):,.0f}/s",
        ratio,
        ">= 1.0",
        ratio >= 1.0,
    )


def depth() -> None:
    """The rate at a backlog of 5 M against that at 100 k; the shallow one several times, since it is over so soon."""
    deep_rows, shallow_rows = int(5_000_000 * SCALE), int(100_000 * max(SCALE, 0.5))
    deep: list[float] = []
    shallow: list[float] = []
    with bench() as setup:
        for _ in range(2):
            for rows, rates, rounds in ((shallow_rows, shallow, 4), (deep_rows, deep, 1)):
                for _round in range(rounds):
                    topic = setup.topic()
                    fill(setup.dsn, topic, rows)
                    drain(setup)
                    rates.append(broker_rate(setup.kafka.bootstrap, topic))
                    setup.kafka.delete_topic(topic)
            print(f"  round: 5 M {deep[-1]:,.0f}/s, 100 k {median(shallow[-4:]):,.0f}/s", flush=True)
    ratio = median(deep) / median(shallow)
    report(
        "5 M backlog against 100 k",
        f"{median(deep):,.0f} events/s",
        f"100 k {median(shallow):,.0f}/s",
        ratio,
        ">= 0.9",
        ratio >= 0.9,
    )
