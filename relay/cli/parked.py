"""`relay parked`: events that were taken out of their key's way, and what to do with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from relay.cli.columns import shortened
from relay.cli.main import open_database
from relay.cli.status import age
from relay.daemon import parked as desk
from relay.daemon.parked import ParkedEvent, Result
from relay.database import Connection
from relay.schema.install import require_version

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="JSON for scripts.")
ALL_OPTION = click.option("--all", "every", is_flag=True, help="All that are broken, in id order.")
TOPIC_OPTION = click.option("--topic", help="Only events of this topic.")


@click.group()
def parked() -> None:
    """Events that Kafka refused: list, show, retry, drop."""


@parked.command("list")
@TOPIC_OPTION
@JSON_OPTION
def list_(topic: str | None, as_json: bool) -> None:
    """List parked events in id order: which, why, since when. Never their content."""
    with _open("list") as connection:
        events = desk.find_all(connection, topic)
    if as_json:
        click.echo(json.dumps([_data(event) for event in events]))
    elif not events:
        click.echo("nothing is parked" + (f" of topic {topic}" if topic else ""))
    else:
        click.echo(f"{'id':>12}  {'since':>7}  {'tries':>5}  {'policy':6}  {'code':7}  {'state':9}  topic")
        for event in events:
            click.echo(_line(event))


@parked.command(short_help="Show one parked event; its content only with --reveal.")
@click.argument("id", type=int)
@click.option("--reveal", is_flag=True, help="Show key, header values and payload as well.")
@JSON_OPTION
def show(id: int, reveal: bool, as_json: bool) -> None:
    """Show one parked event: its metadata, and its content only with --reveal."""
    with _open("show") as connection:
        data = _data(desk.find(connection, id)) | {"header_names": desk.header_names(connection, id)}
        if reveal:
            content = desk.reveal(connection, id)
            data |= {"key": content.key, "headers": dict(content.headers), "payload": _printable(content.payload)}
    if as_json:
        click.echo(json.dumps(data))
        return
    for name, value in data.items():
        click.echo(f"{name:14}  {_plain(value)}")


@parked.command(short_help="Send parked events again.")
@click.argument("id", type=int, required=False)
@ALL_OPTION
@TOPIC_OPTION
@click.option("--even-if-overtaken", is_flag=True, help="Also if later events of the key have been published.")
@JSON_OPTION
def retry(id: int | None, every: bool, topic: str | None, even_if_overtaken: bool, as_json: bool) -> None:
    """Send parked events again, each before the events of its key that came after it."""
    _check_target(id, every, topic)
    with _open("retry") as connection:
        if id is not None:
            result = desk.retry(connection, id, even_if_overtaken=even_if_overtaken)
        else:
            result = desk.retry_all(connection, topic, even_if_overtaken=even_if_overtaken)
    _say("retried", result, as_json)


@parked.command()
@click.argument("id", type=int, required=False)
@ALL_OPTION
@TOPIC_OPTION
@click.option("--yes", is_flag=True, help="Do it. What is dropped is gone, and was never published.")
@JSON_OPTION
def drop(id: int | None, every: bool, topic: str | None, yes: bool, as_json: bool) -> None:
    """Delete parked events for good. Those that waited behind them go on."""
    _check_target(id, every, topic)
    if not yes:
        raise click.UsageError("dropped events are gone and were never published: add --yes to drop them")
    with _open("drop") as connection:
        result = desk.drop(connection, id) if id is not None else desk.drop_all(connection, topic)
    _say("dropped", result, as_json)


@contextmanager
def _open(command: str) -> Iterator[Connection]:
    with open_database(f"parked {command}") as connection:
        require_version(connection)
        yield connection


def _check_target(id: int | None, every: bool, topic: str | None) -> None:
    if (id is None) != every:
        raise click.UsageError("name one ID, or --all")
    if topic is not None and not every:
        raise click.UsageError("--topic goes with --all")


def _say(done: str, result: Result, as_json: bool) -> None:
    """Exit code 1 if anything that was asked for was refused."""
    if as_json:
        refused = [{"id": r.id, "code": r.error.code, "reason": str(r.error)} for r in result.refused]
        click.echo(json.dumps({done: result.treated, "moved": result.moved, "refused": refused}))
    else:
        count = len(result.treated)
        click.echo(f"{done} {count:,} parked event" + ("" if count == 1 else "s"))
        for refusal in result.refused:
            click.echo(str(refusal.error), err=True)
    if result.refused:
        raise SystemExit(1)


def _state(event: ParkedEvent) -> str:
    if event.waits:
        return "waits"
    return "overtaken" if event.overtaken_at else "broken"


def _line(event: ParkedEvent) -> str:
    since = age((datetime.now(UTC) - event.parked_at).total_seconds())
    return (
        f"{event.id:>12}  {since:>7}  {event.attempts:>5}  {event.policy:6}  {event.code:7}  {_state(event):9}"
        f"  {shortened(event.topic, 20)}"
    )


def _data(event: ParkedEvent) -> dict[str, Any]:
    """The shape of `--json`: names are an interface, and are only added to."""
    shown = asdict(event) | {"event_id": str(event.event_id), "state": _state(event)}
    times = ("created_at", "parked_at", "overtaken_at")
    return shown | {name: shown[name] and shown[name].astimezone(UTC).isoformat() for name in times}


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_plain(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if value is None:
        return "-"
    # Content may hold sequences that rewrite what a terminal shows.
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))


def _printable(payload: bytes | None) -> str | None:
    """Bytes that are no UTF-8 text in hexadecimal, as Postgres writes them."""
    if payload is None:
        return None
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return "\\x" + payload.hex()
