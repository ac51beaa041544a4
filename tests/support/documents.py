"""The parts of the documents that the code has already: written from it, so that there is one truth.

A document marks the place with `<!-- generated: NAME -->` and `<!-- end -->`; `make docs` writes what stands between
them, and tests/unit/test_documents.py fails if what is committed is something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click

from relay import errors, logs
from relay.cache.numbers import METRICS
from relay.cache.prometheus import PREFIX
from relay.cli.main import cli
from relay.config import SECTIONS, SHORT, Topic
from relay.kafka_properties import KAFKA_DEFAULTS, KAFKA_GUARDED, KAFKA_OURS, KAFKA_RANGES
from relay.metrics import READINGS, Metrics

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MARKED = re.compile(r"(<!-- generated: ([^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)

LOG_ROW = re.compile(r"^\| ([a-z._]+) \| (debug|info|warning|error) \| ([a-z_, ]+) \|$", re.MULTILINE)
"""A row of the table in relay/logs.py, which is the one list of events with their fields."""


def documents() -> list[Path]:
    """Everything that is written for people."""
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md")), ROOT / "examples" / "README.md"]


def rendered(text: str) -> str:
    """The document with its generated parts as the code has them.

    Raises:
        KeyError: a marker names no such part.
    """
    return MARKED.sub(lambda found: f"{found[1]}{part(found[2])}{found[3]}", text)


def part(name: str) -> str:
    """One generated part, with an empty line before and after it."""
    kind, _, rest = name.partition(" ")
    return "\n" + PARTS[kind](*([rest] if rest else [])) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def families() -> str:
    rows = [
        (f"`{cls.__name__}`", _codes_of(cls), str(cls.exit_code), (cls.__doc__ or "").split("\n")[0])
        for cls in errors.RelayError.__subclasses__()
    ]
    return table(("error", "codes", "exit status", "means"), rows)


def _codes_of(cls: type[errors.RelayError]) -> str:
    """As the picture in relay/errors.py says."""
    found = re.search(rf"{cls.__name__} +(RLY-\dxx)", errors.__doc__ or "")
    assert found, f"relay/errors.py does not say which codes {cls.__name__} has"
    return found[1]


def exit_statuses() -> str:
    by_code: dict[int, list[str]] = {}
    for cls in errors.RelayError.__subclasses__():
        if cls is not errors.EventError:
            by_code.setdefault(cls.exit_code, []).append(_codes_of(cls))
    said = {
        0: "Done.",
        1: "A check failed, or something could not be done",
        2: "The command line is wrong.",
        3: "A dependency cannot be reached",
        4: "The schema does not fit",
        6: "A setting is wrong",
    }
    return table(
        ("status", "means"),
        [
            (str(code), text + (f": {', '.join(by_code[code])}." if code in by_code else ""))
            for code, text in said.items()
        ],
    )


def settings(section: str) -> str:
    cls = Topic if section == "topics" else SECTIONS[section]
    short = {f"{name}.{key}": variable for variable, (name, key) in SHORT.items()}
    rows = []
    for spec in fields(cls):
        name = f"{section}.{spec.name}"
        variable = short.get(name, f"RELAY_{section.upper()}__{spec.name.upper()}")
        row = [f"`{name}`", f"`{variable}`", _shown(spec.default), _range(cls, spec), spec.metadata["doc"]]
        rows.append([f"`{spec.name}`", *row[2:]] if section == "topics" else row)
    head = ("setting", "variable", "default", "range", "means")
    return table(("setting", *head[2:]) if section == "topics" else head, rows)


def _shown(value: Any) -> str:
    if value is MISSING or value == "":
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _range(cls: type[Any], spec: Any) -> str:
    if choices := get_args(get_type_hints(cls)[spec.name]):
        return ", ".join(f"`{choice}`" for choice in choices)
    low, high = spec.metadata["low"], spec.metadata["high"]
    return "" if low is None else f"{low:,} to {high:,}"


def kafka_defaults() -> str:
    return table(("property", "value"), [(f"`{name}`", _shown(value)) for name, value in KAFKA_DEFAULTS.items()])


def kafka_guarded() -> str:
    rows = [
        (f"`{name}`", ", ".join(f"`{value}`" for value in guard.values), guard.because)
        for name, guard in KAFKA_GUARDED.items()
    ]
    rows += [(f"`{name}`", f"`{low}` to `{high}`", because) for name, (low, high, because) in KAFKA_RANGES.items()]
    rows += [
        (f"`{name}`", "not to be set", f"use `{use}`" if use else "Relay's own") for name, use in KAFKA_OURS.items()
    ]
    return table(("property", "may be", "otherwise"), rows)


def metrics() -> str:
    rows = []
    for metric in vars(Metrics()).values():
        kind = getattr(metric, "_type", None)
        if kind is None:
            continue
        name = metric._name + ("_total" if kind == "counter" else "")
        rows.append((f"`{name}`", kind, ", ".join(metric._labelnames), metric._documentation))
    rows += [(f"`{name}`", "gauge", ", ".join(labels), meaning) for name, meaning, labels in READINGS]
    return table(("metric", "kind", "labels", "means"), rows)


def cache_metrics() -> str:
    rows = [(f"`{PREFIX}{m.name}`", m.kind, ", ".join(m.labels), m.meaning) for m in METRICS]
    return table(("metric", "kind", "labels", "means"), rows)


def log_rows() -> list[tuple[str, str, list[str]]]:
    """Event, level and fields of every line that the daemon may write."""
    return [(name, level, given.split(", ")) for name, level, given in LOG_ROW.findall(logs.__doc__ or "")]


def log_events() -> str:
    rows = [(f"`{name}`", level, ", ".join(f"`{f}`" for f in given)) for name, level, given in log_rows()]
    return table(("event", "level", "fields"), rows)


def members(group: click.Group) -> dict[str, click.Command]:
    """The commands of a group, also of one that imports them when they are asked for."""
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def commands(group: click.Command = cli, path: str = "relay") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its path."""
    if isinstance(group, click.Group):
        for name, command in members(group).items():
            yield from commands(command, f"{path} {name}")
    else:
        yield path, group


def cli_command(name: str) -> str:
    path = f"relay {name}"
    command = dict(commands())[path]
    usage = " ".join([path, *command.collect_usage_pieces(click.Context(command, info_name=path))])
    rows = [
        (f"`{', '.join(option.opts)}{_metavar(option)}`", option.help or "")
        for option in command.params
        if isinstance(option, click.Option)
    ]
    paragraphs = (" ".join(one.split()) for one in (command.help or "").split("\n\n"))
    text = "\n\n".join(paragraphs)
    return f"### `{usage}`\n\n{text}\n" + ("\n" + table(("option", "means"), rows) if rows else "")


def _metavar(option: click.Option) -> str:
    if option.is_flag:
        return ""
    return " " + (option.metavar or ("N" if "INT" in type(option.type).__name__.upper() else "TEXT"))


PARTS = {
    "families": families,
    "exit": exit_statuses,
    "settings": settings,
    "kafka-defaults": kafka_defaults,
    "kafka-guarded": kafka_guarded,
    "metrics": metrics,
    "cache-metrics": cache_metrics,
    "log-events": log_events,
    "cli": cli_command,
}


def main() -> None:
    """Writes the generated parts of all documents."""
    for file in documents():
        text = file.read_text(encoding="utf-8")
        if rendered(text) != text:
            file.write_text(rendered(text), encoding="utf-8")
            print(f"wrote {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
