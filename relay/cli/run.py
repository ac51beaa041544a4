"""`relay run`."""

from __future__ import annotations

import gc
import os
import sys

import click

from relay.cli.main import settings
from relay.daemon import failpoints
from relay.daemon.relay import Relay
from relay.logs import set_up


@click.command()
@click.option("--drain", is_flag=True, help="Publish what is in the outbox, then exit.")
def run(drain: bool) -> None:
    """Run the daemon until SIGTERM.

    Needs RELAY_DATABASE_URL and RELAY_KAFKA_BOOTSTRAP_SERVERS. Start as many instances as you like. SIGTERM finishes
    what is in flight and exits 0; a second one exits at once. --drain exits 3 if Kafka does not answer.
    """
    loaded = settings()
    # Units make thousands of tuples and no cycles: the collector would look through all of them for nothing, which
    # took 15 % of the drain's processor time. It still runs, seldom.
    gc.freeze()
    gc.set_threshold(200_000, 50, 50)
    failpoints.arm(os.environ)
    sys.exit(Relay(loaded, set_up(loaded.log), drain=drain).run())
