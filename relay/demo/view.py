"""The live view: what is written, what waits, how the parts are, and what happened. Fits 80 columns by 24 rows."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from relay.demo.ledger import in_words
from relay.demo.relays import Relay
from relay.demo.stage import Stage
from relay.demo.staleness import Stale
from relay.terminal import key, raw_keys

FRAME_SECONDS: Final = 0.2
LIMIT_SECONDS: Final = 300.0
"""Journal and topic are kept in memory, and the mock's log gets slow: then the verdict comes by itself."""
HISTORY: Final = 40
BARS: Final = " ▁▂▃▄▅▆▇█"
KEYS: Final = {"k": "kill", "z": "freeze", "r": "flush", "c": "consumer", "b": "brokers", "d": "database"}
COLORS: Final = {"working": "green", "starting": "yellow", "frozen": "cyan", "dead": "red", "stopped": "dim"}


class View:
    """Draws a stage and acts on keys until somebody quits."""

    def __init__(self, console: Console, stage: Stage, happened: deque[tuple[float, str]]) -> None:
        self._console = console
        self._stage = stage
        self._happened = happened
        self._waiting: deque[int] = deque(maxlen=HISTORY)
        self._started_at = time.monotonic()

    def run(self) -> None:
        """Until [q], or for five minutes."""
        with raw_keys() as terminal:
            with Live(console=self._console, screen=True, auto_refresh=False, redirect_stdout=False) as live:
                while time.monotonic() - self._started_at < LIMIT_SECONDS:
                    live.update(self._draw(), refresh=True)
                    pressed = key(terminal, FRAME_SECONDS)
                    if pressed == "q":
                        return
                    self._act(pressed)
                    self._stage.tick()

    def _act(self, pressed: str) -> None:
        fault = KEYS.get(pressed)
        if fault is None:
            return
        if fault not in self._stage.possible:
            owners = {"brokers": self._stage.brokers.label, "flush": "your Redis"}
            owner = owners.get(fault, self._stage.database.label)
            self._stage.say(f"{owner} is not ours to break: unset its variable to see that")
            return
        actions = {
            "kill": self._stage.kill,
            "freeze": self._stage.freeze,
            "flush": self._stage.flush,
            "consumer": self._stage.toggle_consumer,
            "brokers": self._stage.toggle_brokers,
            "database": self._stage.crash_database,
        }
        actions[fault]()

    def _draw(self) -> RenderableType:
        self._waiting.append(self._stage.gauge.waiting.count)
        head: list[RenderableType] = [
            self._title(),
            Text(),
            self._parts(),
            Text(),
            self._figures(),
            Text(),
            self._relays(),
            *self._copies(),
            Text(),
        ]
        rows = max(3, self._console.height - 17)
        return Group(*head, *self._log(rows), Text(), self._help())

    def _title(self) -> Table:
        line = _grid(3)
        seconds = int(time.monotonic() - self._started_at)
        line.add_row(
            Text(" relay demo", style="bold"),
            Text("temporary data, removed at the end", style="dim"),
            Text(f"{seconds // 60}:{seconds % 60:02} ", style="dim", justify="right"),
        )
        return line

    def _parts(self) -> Text:
        stage = self._stage
        line = Text(" ")
        for label, is_up in ((stage.database.label, stage.database_is_up), (stage.brokers.label, stage.brokers.is_up)):
            line.append("● " if is_up else "○ ", style="green" if is_up else "red")
            line.append(label + (" up" if is_up else " DOWN"), style="" if is_up else "bold red")
            line.append("    ")
        line.append("● ", style="green" if stage.database_is_up else "yellow")
        line.append("application writing" if stage.database_is_up else "application waits")
        return line

    def _figures(self) -> Table:
        now, waiting = self._stage.ledger.figures(), self._stage.gauge.waiting
        table = Table.grid(padding=(0, 1), expand=False)
        for width in (10, 9, 2, 8, 8, 2, 30):
            table.add_column(width=width, no_wrap=True)
        oldest = Text(f"{waiting.oldest:.1f} s", justify="right", style="bold yellow" if waiting.oldest > 1 else "")
        bound = f"of at most {self._stage.repeats_max:,}" if self._stage.repeats_max else "nothing broke yet"
        rows = (
            ("written", f"{now.written:,}", "waiting", _right(f"{waiting.count:,}"), self._spark()),
            ("published", f"{now.published:,}", "oldest", oldest, _delays(now.p50, now.p99)),
            ("repeated", f"{now.repeated:,}", "rate", _right(f"{now.rate:.0f}/s"), Text(bound, style="dim")),
        )
        for name, count, other, value, last in rows:
            table.add_row(Text(" " + name), _right(count), "", other, value, "", last)
        return table

    def _spark(self) -> Text:
        """The waiting events of the last seconds; a handful of them is nothing to look at."""
        top = max(*self._waiting, 200) if len(self._waiting) > 1 else 200
        newest = list(self._waiting)[-30:]
        return Text("".join(BARS[min(8, round(count * 8 / top))] for count in newest), style="yellow")

    def _relays(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for relay in self._stage.relays:
            table.add_row(*_relay_row(relay))
        return table

    def _copies(self) -> list[Text]:
        """The consumer, and what the services read."""
        copies = self._stage.copies
        if copies is None:
            return [Text(), Text(), Text()]
        now = copies.figures()
        state = "frozen" if copies.is_frozen else ", ".join(copies.problems) or "working"
        color = "cyan" if copies.is_frozen else "red" if copies.problems else "green"
        consumer = Text(" ● ", style=color)
        consumer.append("consumer", style="default")
        consumer.append(f"  {state:<11}", style=color)
        behind = "" if copies.is_frozen else f"{copies.lag:,} behind, "
        consumer.append(f"  {copies.applied:,} applied, {behind}epoch {copies.epochs}", style="default")
        services = Text(" ● ", style="green" if copies.is_open else "yellow")
        reads = f"services  {now.reads:,} reads, {now.hit_rate:.1%} from copies, {now.saved:,} loads saved, "
        services.append(reads, style="default")
        services.append(f"too old {now.older}", style="bold red" if now.older else "green")
        stale = Text(f"   stale     {_stale(now.overall)}")
        stale.append(f"    while calm: {_stale(now.calm)}", style="dim")
        return [consumer, services, stale]

    def _log(self, rows: int) -> list[Text]:
        newest = list(self._happened)[-rows:]
        lines = [Text(f"{at:7.1f} s  {what}", no_wrap=True, overflow="ellipsis") for at, what in newest]
        for line in lines:
            line.stylize("dim", 0, 10)
        return lines + [Text() for _ in range(rows - len(lines))]

    def _help(self) -> Text:
        stage = self._stage
        names = {
            "k": "kill relay",
            "z": "thaw relay" if stage.frozen else "freeze relay",
            "b": "brokers " + ("away" if stage.brokers.is_up else "back"),
            "d": "crash Postgres",
            "r": "flush Redis",
            "c": "thaw consumer" if stage.copies is not None and stage.copies.is_frozen else "freeze consumer",
            "q": "quit",
        }
        line = Text()
        for pressed, name in names.items():
            allowed = KEYS.get(pressed, "kill") in stage.possible
            line.append("\n " if pressed == "r" else " ")
            line.append(f"[{pressed}]", style="bold" if allowed else "dim strike")
            line.append(f" {name} ", style="" if allowed else "dim strike")
        return line


def _relay_row(relay: Relay) -> tuple[Text, ...]:
    state = relay.problem or relay.condition
    color = "red" if relay.problem else COLORS[relay.condition]
    name = Text(" ● ", style=color)
    name.append(relay.name, style="default")
    busy = relay.condition == "working"
    lanes = f"lanes {relay.lanes}" if busy and relay.lanes else ""
    return (
        name,
        Text(f"{state:<11}", style=color),
        Text(f"pid {relay.pid:<7}", style="dim"),
        _right(f"{relay.rate:4.0f}/s"),
        _right(f"{relay.units:,} units"),
        Text(lanes, style="dim"),
    )


def _delays(p50: float | None, p99: float | None) -> Text:
    if p50 is None or p99 is None:
        return Text("to the reader: nothing lately", style="dim")
    return Text(f"to reader p50 {in_words(p50)} p99 {in_words(p99)}")


def _stale(stale: Stale) -> str:
    if stale.p50 is None or stale.p99 is None:
        return "not known yet"
    return f"p50 {in_words(stale.p50)} p99 {in_words(stale.p99)}"


def _right(text: str) -> Text:
    return Text(text, justify="right")


def _grid(columns: int) -> Table:
    table = Table.grid(expand=True)
    for number in range(columns):
        table.add_column(justify=("left", "center", "right")[number] if columns == 3 else "left")
    return table
