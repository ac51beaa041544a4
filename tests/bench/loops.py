"""The loops that Relay is measured against: `python -m tests.bench.loops NAME DSN BOOTSTRAP TOPIC`.

`bare` is the limit: the same rows by one cursor, produced with the same client settings, nothing awaited one by one,
nothing removed, no guarantee at all. `article` is the peer: the loop that every article shows and a team writes in an
afternoon (`SKIP LOCKED LIMIT 1000`, produce, flush, mark as published). It reorders as soon as it runs twice.
"""

from __future__ import annotations

import gc
import sys

import psycopg
from confluent_kafka import Producer
from psycopg.types.string import ByteaBinaryLoader

from relay.kafka_properties import KAFKA_DEFAULTS

ROWS = 4000


def producer(bootstrap: str) -> Producer:
    """A producer with the settings that Relay uses."""
    return Producer({**KAFKA_DEFAULTS, "bootstrap.servers": bootstrap, "queue.buffering.max.messages": 1_000_000})


def bare(dsn: str, bootstrap: str, topic: str) -> int:
    """Reads all rows by one server-side cursor and produces them."""
    out = producer(bootstrap)
    count = 0
    with psycopg.connect(dsn) as connection, connection.cursor("bare", binary=True) as cursor:
        cursor.adapters.register_loader("text", ByteaBinaryLoader)
        cursor.itersize = ROWS
        cursor.execute("SELECT key, headers::varchar, event_id::text, payload FROM relay.outbox")
        while rows := cursor.fetchmany(ROWS):
            for key, headers, event_id, payload in rows:
                parts = iter(headers.split("\x1f"))
                pairs = [("event_id", event_id), *zip(parts, parts, strict=False)]
                while True:
                    try:
                        out.produce(topic, payload, key, headers=pairs)
                        break
                    except BufferError:
                        out.poll(0.01)
            count += len(rows)
            out.poll(0)
        out.flush()
    return count


def article(dsn: str, bootstrap: str, topic: str) -> int:
    """The article's loop, on its own kind of table, without order between instances."""
    out = producer(bootstrap)
    count = 0
    with psycopg.connect(dsn) as connection:
        while True:
            rows = connection.execute(
                "SELECT id, key, headers, payload FROM article_outbox WHERE published_at IS NULL"
                " ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED"
            ).fetchall()
            if not rows:
                return count
            for _id, key, headers, payload in rows:
                out.produce(topic, payload, key, headers=list(headers.items()))
            out.flush()
            connection.execute(
                "UPDATE article_outbox SET published_at = now() WHERE id = ANY (%s)", ([row[0] for row in rows],)
            )
            connection.commit()
            count += len(rows)


if __name__ == "__main__":
    gc.freeze()
    gc.set_threshold(200_000, 50, 50)  # as Relay does: the limit should be a fair one
    loop = {"bare": bare, "article": article}[sys.argv[1]]
    print(loop(*sys.argv[2:5]))
