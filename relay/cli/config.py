"""`relay config`: what is set, by whom, and whether it can work."""

from __future__ import annotations

import json
import os
import textwrap
from dataclasses import fields
from typing import NamedTuple

import click

from relay.config import SECTIONS, Settings, Topic, load_with_origins, require_database, require_kafka
from relay.daemon.properties import check_properties
from relay.database import masked, parse
from relay.errors import RelayError
from relay.kafka_words import SECRET

WIDTH = 80


class Line(NamedTuple):
    """One setting as it holds in this process."""

    name: str
    value: object
    origin: str


@click.group()
def config() -> None:
    """The settings of this process."""


@config.command(short_help="Show every setting with value and origin.")
@click.option("--json", "as_json", is_flag=True, help="A JSON list of name, value, origin.")
def check(as_json: bool) -> None:
    """Show every setting with value and origin; exit code 6 if `relay run` would refuse one. Connects to nothing."""
    settings, origins = load_with_origins(os.environ)
    refusal = _refusal(settings)
    # A name that librdkafka does not know may be a secret's name with a typing error.
    lines = _lines(settings, origins, hidden=refusal is not None)
    if as_json:
        click.echo(json.dumps([line._asdict() for line in lines]))
    else:
        width = max(len(line.name) for line in lines)
        for line in lines:
            click.echo(_shown(line, width))
    if refusal:
        raise refusal


def _refusal(settings: Settings) -> RelayError | None:
    """Why `relay run` would not start with these."""
    try:
        parse(require_database(settings))
        check_properties(require_kafka(settings))
    except RelayError as error:
        return error
    return None


def _lines(settings: Settings, origins: dict[str, str], *, hidden: bool) -> list[Line]:
    """One line per setting; `hidden` keeps back the values of Kafka properties that were given."""
    lines = []
    for section, cls in SECTIONS.items():
        for spec in fields(cls):
            name = f"{section}.{spec.name}"
            value = getattr(getattr(settings, section), spec.name)
            shown = masked(value) if spec.metadata["secret"] and value else value
            lines.append(Line(name, shown, origins.get(name, "default")))
    for topic, policy in settings.topics.items():
        origin = origins[f"topics.{topic}"]
        lines += [Line(f'topics."{topic}".{f.name}', getattr(policy, f.name), origin) for f in fields(Topic)]
    for name, value in settings.kafka.items():
        is_given = f"kafka.{name}" in origins
        shown = "***" if SECRET.search(name) or (hidden and is_given) else value
        lines.append(Line(f"kafka.{name}", shown, origins.get(f"kafka.{name}", "default")))
    return lines


def _shown(line: Line, width: int) -> str:
    """One line of a terminal; where it does not fit one, the name with value and origin below it."""
    value, origin = _text(line.value), f"({line.origin})"
    whole = f"{line.name:{width}}  {value}  {origin}"
    if len(whole) <= WIDTH:
        return whole
    below = textwrap.TextWrapper(WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join([line.name, *below.wrap(value), *below.wrap(origin)])


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else "-"
