"""What database and topics have shown, put into sentences: where the event is, and what it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from relay.daemon.sightings import Search
from relay.daemon.whereabouts import SHOWN_MAX, Holder, Waiting, Whereabouts

State = Literal["waiting", "parked", "published", "unknown"]
STUCK_SECONDS = 10.0
"""A free lane with work is taken within milliseconds; an event that is older and first in one is remarkable."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where it is, in sentences, and from what that was concluded."""

    state: State
    says: list[str]
    where: Whereabouts
    searches: list[Search]


def explain(
    where: Whereabouts, searches: Sequence[Search], *, by_key: bool, asks_kafka: bool, is_topic_named: bool
) -> Explanation:
    """The sentences, most important first.

    Args:
        searches: of the topics that were looked at; for events in the outbox only their topics are asked for.
        asks_kafka: whether Kafka is named by the settings at all.
        is_topic_named: whether one topic was asked about; else it may be in one that the settings do not name.
    """
    records = [record for search in searches for record in search.found]
    if where.waiting:
        state: State = "waiting"
        says = _waiting(where, searches, by_key=by_key)
    elif where.parked:
        state, says = "parked", []
    elif records:
        state, says = "published", []
    else:
        state, says = "unknown", [_nowhere(by_key=by_key)]
    says += [_parked(where, number) for number in range(len(where.parked))]
    if state in ("published", "unknown") or by_key:
        # That the topic of the first that waits is missing or away has been said, as its reason.
        reason = where.waiting[0].topic if where.waiting else None
        others = [search for search in searches if not (search.problem and search.topic == reason)]
        says += _published(others, by_key=by_key, asks_kafka=asks_kafka)
    if state == "unknown" and asks_kafka and not is_topic_named:
        says.append("No other topic was looked at: name its topic with --topic.")
    if state == "unknown" or by_key:
        says += _uncommitted(where, by_key=by_key)
    says += [f"Hidden from this role: {what}." for what in where.hidden]
    return Explanation(state, says, where, list(searches))


def _waiting(where: Whereabouts, searches: Sequence[Search], *, by_key: bool) -> list[str]:
    first, count = where.waiting[0], len(where.waiting)
    if by_key:
        are = "event of this key is" if count == 1 else "events of this key are"
        what = f"{count}{' or more' if count == SHOWN_MAX else ''} {are}"
    else:
        what = "It is"
    says = [
        f"{what} committed and in the outbox, in lane {first.lane}"
        f" (topic {first.topic}, {'the first ' if count > 1 else ''}{duration(first.age_seconds)} old)."
    ]
    if first.before_in_lane:
        before = first.before_in_lane
        goes = "event of its lane goes" if before == 1 else "events of its lane go"
        says.append(f"{before:,} {goes} before {'the first of them' if count > 1 else 'it'}.")
    else:
        says.append(f"{'The first of them' if count > 1 else 'It'} is the first of its lane.")
    return says + _reasons(where, first, {search.topic: search for search in searches})


def _reasons(where: Whereabouts, first: Waiting, searches: dict[str, Search]) -> list[str]:
    """Returns the known reasons why the event is still there, or says that none is known."""
    reasons = []
    search = searches.get(first.topic, Search(first.topic))
    if where.blocked_by is not None:
        reasons.append(
            f"Parked event {where.blocked_by} blocks its key (RLY-704): see `relay parked show {where.blocked_by}`."
        )
    if search.problem == "missing":
        reasons.append(f"Its topic {first.topic} does not exist (RLY-702): create it, and its events go on.")
    if search.problem == "unreadable":
        reasons.append(f"Kafka refuses its topic {first.topic} (RLY-702): {search.reason}.")
    if search.problem == "unreachable":
        reasons.append(f"Kafka does not answer (RLY-701): {search.reason}. Everything waits, and nothing is lost.")
    if not where.relays:
        reasons.append("No relay is connected: start `relay run`.")
    reasons += [
        f"Its lane is held by {who(holder)}: a relay publishes its events now." for holder in where.lane_holders
    ]
    if not reasons and first.age_seconds < STUCK_SECONDS:
        reasons.append("Its lane is free and a relay is connected: it goes next.")
    elif not reasons:
        # A relay skips what lies below its floors, and looks there step by step, every ten seconds.
        reasons.append(
            "Nothing that can be seen from here holds it up. Look at `relay doctor` and at the relay's log;"
            " relays look through each lane from its beginning every few minutes, so it is not passed over for ever."
        )
    return reasons


def _parked(where: Whereabouts, number: int) -> str:
    event = where.parked[number]
    since = f"Parked as {event.id} since {duration(event.parked_seconds)} (topic {event.topic}, {event.code})"
    if event.waits:
        return f"{since}: it is not broken itself, an earlier event blocks its key. See `relay parked list`."
    return f"{since}: {event.reason}. See `relay parked show {event.id}`."


def _nowhere(*, by_key: bool) -> str:
    if by_key:
        return "No event of this key is in the outbox or parked."
    return (
        "It is neither in the outbox nor parked. So it has been published, or dropped by an operator, or its"
        " transaction was rolled back or is still open, or there never was one."
    )


def _published(searches: Sequence[Search], *, by_key: bool, asks_kafka: bool) -> list[str]:
    says = []
    for search in searches:
        for record in search.found:
            event = f" (event {record.event_id})" if by_key and record.event_id else ""
            since = f", {duration(record.age_seconds)} ago" if record.age_seconds is not None else ""
            place = f"partition {record.partition}, offset {record.offset:,}"
            says.append(f"Acknowledged at topic {record.topic}, {place}{since}{event}.")
        if not search.found:
            says.append(_unseen(search))
    if not asks_kafka:
        says.append("Kafka is not named by the settings, so no topic was looked at.")
    return says


def _unseen(search: Search) -> str:
    if search.problem == "missing":
        return f"Topic {search.topic} does not exist."
    if search.problem == "unreadable":
        return f"Topic {search.topic} could not be read: Kafka refuses it, {search.reason}."
    if search.problem:
        return f"Topic {search.topic} could not be read: Kafka does not answer, {search.reason}."
    if search.complete:
        return f"Not among the {search.records:,} records that topic {search.topic} holds there now."
    return (
        f"Not among the newest {search.records:,} records of topic {search.topic}; older ones were not looked at"
        " (see --records and --seconds)."
    )


def _uncommitted(where: Whereabouts, *, by_key: bool) -> list[str]:
    says = [
        f"The lock of this key is held by {who(holder)}: what that wrote is not committed."
        for holder in where.key_holders
    ]
    if where.writers and not where.key_holders:
        count = len(where.writers)
        are = "transaction is" if count == 1 else "transactions are"
        oldest = f"the oldest by {who(where.writers[0])}" if count > 1 else f"by {who(where.writers[0])}"
        it = "an event of this key" if by_key else "it"
        says.append(
            f"{count} {are} open that wrote events, {oldest}."
            f" Nobody can see whether {it} is among them before they end."
        )
    return says


def who(holder: Holder) -> str:
    """A session by what this role may know of it."""
    if holder.pid is None:
        return "a prepared transaction (see pg_prepared_xacts)"
    parts = [f"pid {holder.pid}"]
    if holder.role:
        parts.append(f"role {holder.role}")
    if holder.state:
        parts.append(holder.state)
    if holder.seconds is not None:
        parts.append(f"since {duration(holder.seconds)}")
    return f"{holder.session or 'a session without a name'} ({', '.join(parts)})"


def duration(seconds: float) -> str:
    """In its largest whole unit: 12 s, 4 min, 3 h, 2 d."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
