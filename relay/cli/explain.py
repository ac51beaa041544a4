"""`relay explain`: where an event is, and what it waits for."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from uuid import UUID

import click

from relay.cli.main import open_database, settings
from relay.config import Settings
from relay.daemon.diagnosis.kafka import CHANGES
from relay.daemon.explanation import Explanation
from relay.daemon.explanation import explain as put_into_words
from relay.daemon.sightings import Search, search
from relay.daemon.whereabouts import Whereabouts, find
from relay.schema.install import require_version

WIDTH = 80


@click.command(short_help="Say where an event is, and what it waits for.")
@click.argument("event_id", type=click.UUID, required=False)
@click.option("--key", help="All events of this key instead.")
@click.option("--topic", help="The topic to look at; else relay.changes and what settings name.")
@click.option("--records", type=click.IntRange(1), default=10_000, show_default=True, help="Per topic, the newest.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 600), metavar="N", default=5, show_default=True, help="For all topics."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def explain(
    *, event_id: UUID | None, key: str | None, topic: str | None, records: int, seconds: float, as_json: bool
) -> None:
    """Say where an event is: parked, in which lane, behind what, held by whom, or at which partition and offset.

    Finds it in the outbox and among the parked events; else looks for it at the end of its topic. What is not committed
    is seen by nobody: then it names who holds the key, and who has transactions open. Shows no content.
    """
    if (event_id is None) == (key is None):
        raise click.UsageError("name one EVENT_ID, or --key")
    loaded = settings()
    with open_database("explain --key" if key is not None else "explain") as connection:
        require_version(connection)
        where = find(connection, event=event_id, key=key, topic=topic)
    wanted = {"event": str(event_id) if event_id else None, "key": key.encode() if key is not None else None}
    searches = (
        _search(loaded, where, wanted, topic=topic, records=records, seconds=seconds) if _asks_kafka(loaded) else []
    )
    explanation = put_into_words(
        where, searches, by_key=key is not None, asks_kafka=_asks_kafka(loaded), is_topic_named=topic is not None
    )
    click.echo(json.dumps(as_data(explanation)) if as_json else as_text(explanation))


def as_data(explanation: Explanation) -> dict[str, object]:
    """The shape of `--json`: names are an interface, and are only added to."""
    where = asdict(explanation.where)
    searches = [asdict(one) for one in explanation.searches]
    records = [record for one in searches for record in one.pop("found")]
    return {"state": explanation.state, "says": explanation.says, **where, "records": records, "searches": searches}


def as_text(explanation: Explanation) -> str:
    """For a person, 80 columns wide: the state, then one sentence after the other."""
    lines: list[str] = [explanation.state]
    for sentence in explanation.says:
        lines += textwrap.wrap(sentence, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def _asks_kafka(loaded: Settings) -> bool:
    return bool(loaded.kafka.get("bootstrap.servers"))


def _search(
    loaded: Settings, where: Whereabouts, wanted: Mapping[str, Any], *, topic: str | None, records: int, seconds: float
) -> list[Search]:
    """The topics in which it may be. Of what is still in the outbox only whether its topic is there is asked."""
    if topic is not None:
        topics = [topic]
    elif where.waiting or where.parked:
        topics = sorted({event.topic for event in where.waiting} | {event.topic for event in where.parked})
    else:
        topics = sorted({*loaded.topics, CHANGES} - {"*"})
    until = time.monotonic() + seconds
    return [
        search(loaded.kafka, name, records_max=records, seconds=max(0.2, until - time.monotonic()), **wanted)
        for name in topics
    ]
