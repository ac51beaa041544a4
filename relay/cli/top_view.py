"""The picture of `relay top`, as lines of text: a function of what was seen and of the room that there is."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from relay.cli.columns import shortened
from relay.cli.status import age
from relay.daemon.glance import Glance, rates
from relay.daemon.reach import Answer, as_sentence
from relay.daemon.whereabouts import Holder

Style = Literal["", "bold", "alarm"]
OLDEST_ALARM_SECONDS: Final = 10.0
WRITER_SECONDS_MIN: Final = 1.0
"""Every transaction that writes is open for a moment; these would be noise."""
FIXED_ROWS: Final = 10
"""Title, figures, headings and the blank lines between them."""
KAFKA_ROWS_MAX: Final = 5
OLD_SECONDS: Final = 5.0
"""An answer that is older is shown with its age."""


class Line(NamedTuple):
    """One line, no longer than the width, and how it stands out."""

    text: str
    style: Style = ""


def frame(glances: Sequence[Glance], kafka: Answer, title: str, width: int, height: int) -> list[Line]:
    """The whole picture: at most `height` lines of at most `width` characters.

    Args:
        glances: the newest last; rates are over all of them.
    """
    now = glances[-1]
    sections = [_topics(now), _lanes(now), _parked(now), _writers(now)]
    said = _kafka(kafka, width)
    room = max(len(sections), height - FIXED_ROWS - len(said) + 1)
    lines = [Line(title, "bold"), Line(""), *_figures(now, *rates(glances)), *said, Line("")]
    for (heading, rows), share in zip(sections, _shares([len(rows) for _, rows in sections], room), strict=True):
        lines += [heading, *_cut(rows, share)]
    return [Line(_fitted(line.text, width), line.style) for line in lines][:height]


def _figures(now: Glance, written: float, published: float) -> list[Line]:
    late = now.oldest_seconds > OLDEST_ALARM_SECONDS
    waiting = f"{'at least ' if now.waiting_is_least else ''}{now.waiting:,}"
    return [
        Line(f"written    {written:>9,.0f}/s    published  {published:>9,.0f}/s"),
        Line(
            f"waiting    {waiting:>11}    oldest     {age(now.oldest_seconds) if now.topics else '-':>11}",
            "alarm" if late and now.topics else "",
        ),
    ]


def _kafka(kafka: Answer, width: int) -> list[Line]:
    """Whole, since the end of Kafka's words may be what matters."""
    since = f", {age(kafka.age_seconds)} ago" if kafka.up is not None and kafka.age_seconds > OLD_SECONDS else ""
    text = f"kafka      {as_sentence(kafka)}{since}"
    lines = textwrap.wrap(text, max(width, 20), subsequent_indent=" " * 11, break_on_hyphens=False)
    return [Line(line, "alarm" if kafka.up is False else "") for line in lines[:KAFKA_ROWS_MAX]]


def _topics(now: Glance) -> tuple[Line, list[Line]]:
    by_size = sorted(now.topics.items(), key=lambda item: (-item[1], item[0]))
    rows = [Line(f"{count:>10,}  {shortened(topic, 60)}") for topic, count in by_size]
    return Line("waiting by topic" + ("" if rows else ": nothing waits"), "bold"), rows


def _lanes(now: Glance) -> tuple[Line, list[Line]]:
    relays = f"{len(now.relays)} relay{'' if len(now.relays) == 1 else 's'} connected"
    heading = f"lanes: {sum(now.holders.values())} of {now.lanes} held, {relays}"
    by_name = sorted(now.holders.items(), key=lambda item: (-item[1], item[0]))
    style: Style = "bold" if now.relays else "alarm"
    return Line(heading, style), [Line(f"{count:>10,}  {name}") for name, count in by_name]


def _parked(now: Glance) -> tuple[Line, list[Line]]:
    rows = [
        Line(f"{group.events:>10,}  {group.code}  {age(group.oldest_seconds):>6}  {shortened(group.topic, 48)}")
        for group in now.parked
    ]
    return Line("parked, why and since when" if rows else "parked: nothing", "alarm" if rows else "bold"), rows


def _writers(now: Glance) -> tuple[Line, list[Line]]:
    rows = [
        Line(f"{'?' if one.seconds is None else age(one.seconds):>10}  {_writer(one)}")
        for one in now.writers
        if one.seconds is None or one.seconds >= WRITER_SECONDS_MIN
    ]
    heading = "open transactions that wrote" if rows else "open transactions that wrote: none"
    if now.hides_writers:
        heading += " (GRANT pg_read_all_stats shows since when)"
    return Line(heading, "bold"), rows


def _writer(one: Holder) -> str:
    """What one needs to end it comes first; the name of a session may be long."""
    if one.pid is None:
        return "a prepared transaction (see pg_prepared_xacts)"
    return "  ".join([f"pid {one.pid}", one.role or "?", one.state or "?", one.session or "a session without a name"])


def _shares(wanted: Sequence[int], room: int) -> list[int]:
    """Room for each section: what it wants while all get as much, then row by row to whoever wants more."""
    shares = [0] * len(wanted)
    while sum(shares) < room and any(share < want for share, want in zip(shares, wanted, strict=True)):
        for number, want in enumerate(wanted):
            if shares[number] < want and sum(shares) < room:
                shares[number] += 1
    return shares


def _cut(rows: Sequence[Line], share: int) -> list[Line]:
    """The first rows; the last of them says how many more there are."""
    if len(rows) <= share:
        return list(rows)
    return [*rows[: max(0, share - 1)], Line(f"{'':>10}  and {len(rows) - max(0, share - 1):,} more")][:share]


def _fitted(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."
