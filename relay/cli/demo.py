"""`relay demo`."""

from __future__ import annotations

import os
import sys

import click


@click.command(short_help="Watch events survive kill -9, outages and crashes.")
@click.option("--script", is_flag=True, help="Play all faults in a fixed order, even on a terminal.")
def demo(script: bool) -> None:
    """Watch events survive kill -9, a frozen relay, an outage of Kafka and a crash of Postgres.

    And watch copies follow them, while Redis is flushed and the consumer stands still: no read may be too old.

    Needs nothing: brings a Postgres, a mock of Kafka and a Redis, and removes them at the end. With RELAY_DATABASE_URL,
    RELAY_KAFKA_BOOTSTRAP_SERVERS or RELAY_REDIS_URL set, it uses a database, a topic or a namespace of its own
    there, which it removes as well.
    """
    # A program of its own, with parts that the command line does not have: this process becomes it.
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "relay.demo", *(["--script"] if script else [])])  # noqa: S606
