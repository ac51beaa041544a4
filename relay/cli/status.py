"""`relay status`: one screen that says whether events flow, and `--json` for scripts."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict

import click

from relay.cli.columns import shortened
from relay.cli.main import open_database, settings
from relay.daemon.overview import Overview, look
from relay.daemon.reach import ANSWER_SECONDS, Answer, Reach, as_sentence
from relay.schema.install import require_version


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(as_json: bool) -> None:
    """Show what waits, who works on it, and whether Kafka answers.

    Backlog, parked events, lanes and connected relays. Reads only, and locks nothing. Kafka is asked from here, for two
    seconds at most, if the settings name it.
    """
    reach = Reach(settings().kafka)
    reach.ask()
    with open_database("status") as connection:
        require_version(connection)
        overview = look(connection)
    kafka = reach.ask(ANSWER_SECONDS + 0.5)
    click.echo(json.dumps(as_data(overview, kafka)) if as_json else as_text(overview, kafka))


def as_data(overview: Overview, kafka: Answer) -> dict[str, object]:
    """The shape of `--json`: names are an interface, and are only added to."""
    return {
        "backlog": overview.backlog,
        "oldest_age_seconds": round(overview.oldest_age_seconds, 3),
        "parked": {
            "total": overview.parked_broken + overview.parked_waiting,
            "broken": overview.parked_broken,
            "waiting": overview.parked_waiting,
            "oldest_age_seconds": overview.parked_oldest_age_seconds,
        },
        "topics": [asdict(topic) for topic in overview.topics],
        "lanes": {
            "total": overview.lanes,
            "held": overview.lanes_held,
            "holders": [{"session": name, "lanes": count} for name, count in sorted(overview.holders.items())],
        },
        "relays": overview.relays,
        "kafka": {"up": kafka.up, "brokers": kafka.brokers, "reason": kafka.reason},
    }


def as_text(overview: Overview, kafka: Answer) -> str:
    """For a person, 80 columns wide."""
    lines = [f"backlog   {_events(overview.backlog)}" + _oldest(overview)]
    lines += [_topic_line(topic.topic, topic.events, topic.oldest_age_seconds) for topic in overview.topics]
    lines.append("parked    " + _parked(overview))
    lines.append(f"lanes     {overview.lanes_held} of {overview.lanes} held at this moment")
    lines += [f"  {count:>12,}  {name}" for name, count in sorted(overview.holders.items())]
    relays = ", ".join(overview.relays) or "none is connected; start `relay run`"
    lines += textwrap.wrap(f"relays    {relays}", 80, subsequent_indent=" " * 10, break_on_hyphens=False)
    sentence = f"kafka     {as_sentence(kafka)}"
    lines += textwrap.wrap(sentence, 80, subsequent_indent=" " * 10, break_on_hyphens=False)
    return "\n".join(lines)


def _events(count: int) -> str:
    return f"{count:,} event" + ("" if count == 1 else "s")


def _oldest(overview: Overview) -> str:
    return f", the oldest {age(overview.oldest_age_seconds)} old" if overview.backlog else ""


def _topic_line(topic: str, events: int, seconds: float) -> str:
    return f"  {events:>12,}  {age(seconds):>8}  {shortened(topic, 50)}"


def _parked(overview: Overview) -> str:
    if not overview.parked_broken + overview.parked_waiting:
        return "none"
    since = age(overview.parked_oldest_age_seconds or 0.0)
    return (
        f"{overview.parked_broken:,} broken, {overview.parked_waiting:,} waiting behind them, since {since}"
        "\n          see `relay parked list`"
    )


def age(seconds: float) -> str:
    """A duration in its largest whole unit: 12 s, 4 min, 3 h, 2 d. A clock that was set back shows as 0 s."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
