"""`relay top`: everything that moves, live; as plain text where there is no terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import click

from relay.cli.columns import is_narrow
from relay.cli.main import settings
from relay.cli.rights import named
from relay.cli.top_view import Line, frame
from relay.config import Settings, require_database
from relay.daemon.glance import Glance, glance, rates
from relay.daemon.reach import ANSWER_SECONDS, Answer, Reach
from relay.database import Connection, connect
from relay.errors import GrantError, RelayError, UnreachableError
from relay.schema.install import require_version
from relay.terminal import key, raw_keys

WINDOW_SECONDS = 5.0
"""Rates are over so long: sessions report what they did about once a second."""
DEADLINE_SECONDS = 5.0
WIDE = 1000
"""More than any line of it has, for a pipe."""
STYLES = {"bold": "\x1b[1m", "alarm": "\x1b[1;31m", "": ""}
PLAIN = "\x1b[0m"


@click.command(short_help="Watch rates, backlog, lanes and open writers, live.")
@click.option("--once", is_flag=True, help="One look as plain text, and exit; so does a pipe.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 60),
    metavar="N",
    default=1,
    show_default=True,
    help="Seconds between looks.",
)
@click.option("--no-color", is_flag=True, help="No colours; so does NO_COLOR.")
@click.option("--json", "as_json", is_flag=True, help="One look as a JSON object, and exit.")
def top(once: bool, interval: float, no_color: bool, as_json: bool) -> None:
    """Watch rates, backlog, lanes, parked events and open writers, live.

    Press q to quit. Reads only, locks nothing, and costs the database a few milliseconds per look. Rates are what was
    written to the outbox and removed from it. Whether Kafka answers is asked from here, if the settings name it.
    """
    screen = Screen(settings())
    with screen:
        if once or as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
            screen.look()
            time.sleep(interval)
            screen.look(kafka_seconds=ANSWER_SECONDS + 0.5)
            click.echo(json.dumps(as_data(screen.glances, screen.kafka)) if as_json else screen.text())
        else:
            screen.run(interval, colors=not (no_color or os.environ.get("NO_COLOR")))


def as_data(glances: deque[Glance], kafka: Answer) -> dict[str, object]:
    """The shape of `--json`: names are an interface, and are only added to."""
    now = glances[-1]
    written, published = rates(glances)
    return {
        "written_per_second": round(written, 1),
        "published_per_second": round(published, 1),
        "waiting": now.waiting,
        "waiting_is_least": now.waiting_is_least,
        "oldest_age_seconds": round(now.oldest_seconds, 3),
        "topics": [{"topic": topic, "events": count} for topic, count in sorted(now.topics.items())],
        "lanes": {
            "total": now.lanes,
            "held": sum(now.holders.values()),
            "holders": [{"session": name, "lanes": count} for name, count in sorted(now.holders.items())],
        },
        "relays": now.relays,
        "parked": [asdict(group) for group in now.parked],
        "writers": [asdict(writer) for writer in now.writers],
        "writers_hidden": now.hides_writers,
        "kafka": {"up": kafka.up, "brokers": kafka.brokers, "reason": kafka.reason},
    }


class Screen:
    """What has been seen of one database lately. A connection that is lost is opened anew at the next look."""

    def __init__(self, loaded: Settings) -> None:
        self._url = require_database(loaded)
        self._connect_seconds = loaded.database.connect_timeout_seconds
        self._connection: Connection | None = None
        self._reach = Reach(loaded.kafka)
        self.kafka = self._reach.ask()
        self.glances: deque[Glance] = deque()

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def look(self, kafka_seconds: float = 0.0) -> None:
        """Looks once more.

        Args:
            kafka_seconds: how long to wait for Kafka's answer; otherwise the latest one is shown, with its age.

        Raises:
            RelayError: it could not; what had been seen is forgotten, since rates over a gap mean nothing.
        """
        self.kafka = self._reach.ask(kafka_seconds)
        try:
            if self._connection is None:
                self._connection = self._open()
            self.glances.append(_glance(self._connection))
        except RelayError:
            self._close()
            self.glances.clear()
            raise
        while len(self.glances) > 2 and self.glances[-1].at - self.glances[0].at > WINDOW_SECONDS:
            self.glances.popleft()

    def text(self) -> str:
        """The picture at once: as long as it gets, and 80 columns wide in a terminal."""
        width = 80 if is_narrow() else WIDE
        return "\n".join(line.text for line in frame(self.glances, self.kafka, self._title(), width, 200))

    def run(self, interval: float, *, colors: bool) -> None:
        """Draws until [q]."""
        with raw_keys() as terminal, _alternate_screen():
            while True:
                size = shutil.get_terminal_size()
                _draw(self._picture(size.columns, size.lines - 2), size.lines, colors=colors)
                until = time.monotonic() + interval
                while (left := until - time.monotonic()) > 0:
                    if key(terminal, left) == "q":
                        return

    def _picture(self, width: int, height: int) -> list[Line]:
        """A database that is away for a while is something to watch; a schema or a right that is missing is not."""
        try:
            self.look()
        except UnreachableError as error:
            return [Line("relay top", "bold"), Line(""), Line(str(error)[:width], "alarm"), Line("Trying again.")]
        return frame(self.glances, self.kafka, self._title(), width, height)

    def _title(self) -> str:
        info = self._connection.info if self._connection else None
        where = f"{info.dbname} at {info.host}:{info.port}" if info else ""
        return f"relay top  {where}  {time.strftime('%H:%M:%S')}"

    def _open(self) -> Connection:
        connection = connect(
            self._url,
            "relay top",
            connect_timeout_seconds=self._connect_seconds,
            deadline_seconds=DEADLINE_SECONDS,
        )
        try:
            require_version(connection)
        except GrantError as error:
            wanted = named(connection, "top", error)
            connection.close()
            raise wanted from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _glance(connection: Connection) -> Glance:
    try:
        return glance(connection)
    except GrantError as error:
        raise named(connection, "top", error) from None


@contextmanager
def _alternate_screen() -> Iterator[None]:
    """The terminal's second screen without a cursor; what stood there before is back afterwards."""
    sys.stdout.write("\x1b[?1049h\x1b[?25l")
    try:
        yield
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()


def _draw(lines: list[Line], height: int, *, colors: bool) -> None:
    """Over what is there, line by line, so that nothing flickers."""
    shown = [f"{STYLES[line.style]}{line.text}{PLAIN}" if colors and line.style else line.text for line in lines]
    shown += [""] * (height - 1 - len(shown)) + ["[q] quit"]
    sys.stdout.write("\x1b[H" + "\x1b[K\r\n".join(shown) + "\x1b[K")
    sys.stdout.flush()
