"""The history checker is believed everywhere else, so here it must earn that.

Right histories, crash repeats included, pass. Each way of breaking one is seeded, and must be found under its
own name: a checker that only says "wrong" would be right by accident.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from relay.demo.history import Record, Verdict, Written, check, digest

SEEDS = range(12)
TOPIC = "orders"
PARTITIONS = 4


@dataclass
class History:
    """A journal and the logs of the keys, which become a topic only when they are checked."""

    rng: random.Random
    written: list[Written]
    logs: dict[bytes, list[Record]]
    parked: set[str] = field(default_factory=set)
    limits: dict = field(default_factory=dict)

    def check(self) -> Verdict:
        return check(self.written, topic_of(self.rng, self.logs), parked=self.parked, **self.limits)

    def key(self, length_min: int = 8) -> bytes:
        """A key whose log is long enough to be broken."""
        return self.rng.choice([key for key, log in self.logs.items() if len(set(log)) >= length_min])


def written(key: bytes, sequence: int, outcome: str = "committed") -> Written:
    event_id = f"{key.decode()}-{sequence}-{outcome}"
    content = digest(value_of(event_id), USER_HEADERS)
    return Written(event_id, TOPIC, key, sequence, content, outcome)


USER_HEADERS = (("content-type", b"application/json"), ("tenant", b"7"))


def value_of(event_id: str) -> bytes:
    return b'{"id":"%s"}' % event_id.encode()


def record(event: Written, partition: int | None = None) -> Record:
    """Offsets are given when the topic is put together."""
    home = hash_of(event.key) if partition is None else partition
    headers = (("event_id", event.event_id.encode()), *USER_HEADERS, ("traceparent", b"00-1"))
    return Record(TOPIC, home, -1, event.key, value_of(event.event_id), headers)


def hash_of(key: bytes) -> int:
    return sum(key) % PARTITIONS


def topic_of(rng: random.Random, logs: dict[bytes, list[Record]]) -> list[Record]:
    """Shuffles the keys' logs together, each in its order, as the partitions of a topic hold them."""
    turns = [key for key, log in logs.items() for _ in log]
    rng.shuffle(turns)
    waiting = {key: iter(log) for key, log in logs.items()}
    offsets: dict[int, int] = defaultdict(int)
    topic = []
    for key in turns:
        following = next(waiting[key])
        topic.append(dataclasses.replace(following, offset=offsets[following.partition]))
        offsets[following.partition] += rng.choice([1, 1, 1, 2])
    return topic


def clean_history(seed: int) -> History:
    """Keys with rolled-back, unknown and parked events among the committed; nothing is repeated."""
    rng = random.Random(seed)
    history = History(rng, [], {})
    for number in range(12):
        key = b"key-%d" % number
        log = history.logs.setdefault(key, [])
        length = rng.choice([1, 2, 9, 25, 40]) if number else 30
        for sequence in range(1, length + 1):
            outcome = rng.choices(["committed", "rolled_back", "unknown"], [8, 1, 1])[0] if length > 9 else "committed"
            event = written(key, sequence, outcome)
            history.written.append(event)
            if outcome == "committed" and rng.random() < 0.05 and length > 9:
                history.parked.add(event.event_id)
            elif outcome == "committed" or (outcome == "unknown" and rng.random() < 0.5):
                log.append(record(event))
    return history


def crashed_history(seed: int) -> History:
    """A right history in which the log of some keys steps back and repeats a suffix, several times."""
    history = clean_history(seed)
    for key, log in history.logs.items():
        if history.rng.random() < 0.7:
            history.logs[key] = with_crashes(history.rng, log)
    return history


def with_crashes(rng: random.Random, log: list[Record]) -> list[Record]:
    """Publishes the log with crashes: after each, everything since the last settled record goes again."""
    crashed: list[Record] = []
    settled = at = 0
    while settled < len(log):
        at = min(len(log), settled + rng.randrange(1, 6))
        crashed += log[settled:at]
        if rng.random() < 0.7:
            settled += rng.randrange(0, at - settled + 1)
    return crashed


@pytest.mark.parametrize("seed", SEEDS)
def test_a_clean_history_passes_even_when_no_repeat_is_allowed(seed):
    history = clean_history(seed)
    history.limits = {"clean": True}
    verdict = history.check()
    assert verdict.ok, verdict.explain()
    assert verdict.repeated == verdict.step_backs == 0


@pytest.mark.parametrize("seed", range(60))
def test_a_history_with_crashes_passes_within_its_bounds(seed):
    history = crashed_history(seed)
    repeats = sum(len(log) - len(set(log)) for log in history.logs.values())
    history.limits = {"repeats_max": repeats, "step_back_max": 5}
    verdict = history.check()
    assert verdict.ok, verdict.explain()
    assert verdict.repeated == repeats
    assert verdict.longest_step_back <= 5


def test_nothing_at_all_is_a_right_history():
    assert check([], []).ok


def test_an_outage_that_publishes_nothing_loses_only_what_was_committed():
    events = [written(b"a", 1), written(b"a", 2, "rolled_back"), written(b"a", 3, "unknown")]
    assert check(events, []).anomalies.lost.count == 1


# Each breakage changes a right history in one way. Before the colon: the anomaly it must be found as.

Breakage = Callable[[History], None]
BREAKAGES: dict[str, Breakage] = {}


def breakage(anomaly: str) -> Callable[[Breakage], Breakage]:
    def register(function: Breakage) -> Breakage:
        BREAKAGES[f"{anomaly}: {function.__name__}"] = function
        return function

    return register


def without(log: list[Record], gone: Record) -> list[Record]:
    return [each for each in log if each != gone]


def committed(log: list[Record]) -> list[Record]:
    """The distinct records that are owed, in order; one of unknown outcome may be missing rightly."""
    return [each for each in dict.fromkeys(log) if "committed" in (each.event_id or "")]


@breakage("lost")
def first_event_of_a_key_is_lost(history: History) -> None:
    key = history.key()
    history.logs[key] = without(history.logs[key], committed(history.logs[key])[0])


@breakage("lost")
def middle_event_of_a_key_is_lost(history: History) -> None:
    key = history.key()
    history.logs[key] = without(history.logs[key], history.rng.choice(committed(history.logs[key])[1:-1]))


@breakage("lost")
def last_event_of_a_key_is_lost(history: History) -> None:
    key = history.key()
    history.logs[key] = without(history.logs[key], committed(history.logs[key])[-1])


@breakage("lost")
def a_whole_key_is_lost(history: History) -> None:
    del history.logs[history.key()]


@breakage("lost")
def a_key_of_one_event_is_lost(history: History) -> None:
    history.written.append(written(b"lonely", 1))


@breakage("phantom")
def a_rolled_back_event_is_published(history: History) -> None:
    key = history.key()
    event = written(key, len(history.written) + 100, "rolled_back")
    history.written.append(event)
    history.logs[key].append(record(event))


@breakage("phantom")
def an_event_that_nobody_wrote_is_published(history: History) -> None:
    key = history.key()
    history.logs[key].insert(history.rng.randrange(5), record(written(key, 999)))


@breakage("phantom")
def a_record_without_an_event_id_is_published(history: History) -> None:
    log = history.logs[history.key()]
    log.append(dataclasses.replace(log[-1], headers=USER_HEADERS))


@breakage("reordered")
def two_neighbours_are_swapped(history: History) -> None:
    key = history.key()
    log = history.logs[key] = list(dict.fromkeys(history.logs[key]))
    at = history.rng.randrange(len(log) - 1)
    log[at], log[at + 1] = log[at + 1], log[at]


@breakage("reordered")
def an_event_is_first_delivered_late(history: History) -> None:
    key = history.key()
    log = history.logs[key] = list(dict.fromkeys(history.logs[key]))
    late = log.pop(history.rng.randrange(len(log) - 3))
    log.insert(-1, late)


@breakage("reordered")
def a_key_is_published_backwards(history: History) -> None:
    key = history.key()
    history.logs[key] = list(dict.fromkeys(history.logs[key]))[::-1]


@breakage("reordered")
def two_events_of_a_key_took_the_same_place(history: History) -> None:
    """The writers did not exclude each other: which of the two is the newer nobody can say."""
    key = history.key()
    log = history.logs[key]
    first = committed(log)[-1]
    place = next(event for event in history.written if event.event_id == first.event_id)
    twin = dataclasses.replace(written(key, place.sequence, "unknown"), event_id="twin")
    twin = dataclasses.replace(twin, digest=digest(value_of("twin"), USER_HEADERS))
    history.written.append(twin)
    log.insert(log.index(first) + 1, record(twin))


@breakage("suffix_broken")
def a_repeat_skips_an_event(history: History) -> None:
    key = history.key()
    log = list(dict.fromkeys(history.logs[key]))
    at = history.rng.randrange(4, len(log) + 1)
    history.logs[key] = [*log[:at], log[at - 4], *log[at - 2 : at], *log[at:]]


@breakage("suffix_broken")
def a_repeat_stops_halfway_and_jumps_to_new_ground(history: History) -> None:
    key = history.key()
    log = list(dict.fromkeys(history.logs[key]))
    at = history.rng.randrange(4, len(log))
    history.logs[key] = log[:at] + log[at - 4 : at - 1] + log[at:]


@breakage("suffix_broken")
def a_repeat_skips_to_the_end_of_the_log(history: History) -> None:
    key = history.key()
    log = list(dict.fromkeys(history.logs[key]))
    history.logs[key] = [*log, log[-4], log[-1]]


@breakage("ends_old")
def a_key_ends_on_an_old_event(history: History) -> None:
    log = history.logs[history.key()]
    log.append(history.rng.choice(list(dict.fromkeys(log))[:-1]))


@breakage("ends_old")
def a_repeat_ends_before_it_is_through(history: History) -> None:
    log = history.logs[history.key()]
    log += list(dict.fromkeys(log))[-4:-1]


@breakage("ends_old")
def the_last_two_events_are_swapped(history: History) -> None:
    key = history.key()
    log = history.logs[key] = list(dict.fromkeys(history.logs[key]))
    log[-1], log[-2] = log[-2], log[-1]


def alter(history: History, **change: object) -> None:
    log = history.logs[history.key()]
    at = history.rng.randrange(len(log))
    log[at] = dataclasses.replace(log[at], **change)


@breakage("altered")
def a_value_is_altered(history: History) -> None:
    alter(history, value=b"{}")


@breakage("altered")
def a_value_is_gone(history: History) -> None:
    alter(history, value=None)


@breakage("altered")
def a_user_header_is_altered(history: History) -> None:
    log = history.logs[history.key()]
    at = history.rng.randrange(len(log))
    headers = tuple((name, b"8" if name == "tenant" else value) for name, value in log[at].headers)
    log[at] = dataclasses.replace(log[at], headers=headers)


@breakage("altered")
def a_user_header_is_dropped(history: History) -> None:
    log = history.logs[history.key()]
    at = history.rng.randrange(len(log))
    headers = tuple(header for header in log[at].headers if header[0] != "tenant")
    log[at] = dataclasses.replace(log[at], headers=headers)


@breakage("altered")
def a_key_is_altered(history: History) -> None:
    alter(history, key=b"another key")


@breakage("altered")
def a_key_is_gone(history: History) -> None:
    alter(history, key=None)


@breakage("altered")
def only_the_second_copy_is_altered(history: History) -> None:
    log = history.logs[history.key()]
    log.append(dataclasses.replace(log[-1], value=b"newer"))


@breakage("altered")
def a_record_is_in_the_wrong_topic(history: History) -> None:
    alter(history, topic="elsewhere")


@breakage("moved")
def a_key_moves_to_another_partition(history: History) -> None:
    key = history.key()
    log = history.logs[key]
    at = history.rng.randrange(1, len(log))
    elsewhere = (hash_of(key) + 1) % PARTITIONS
    log[at:] = [dataclasses.replace(each, partition=elsewhere) for each in log[at:]]


@breakage("parked_published")
def a_parked_event_is_published(history: History) -> None:
    log = history.logs[history.key()]
    history.parked.add(history.rng.choice(log).event_id or "")


@breakage("beyond_bound")
def an_event_is_repeated_in_a_clean_run(history: History) -> None:
    log = history.logs[history.key()]
    log.append(log[-1])
    history.limits = {"clean": True}


@breakage("beyond_bound")
def more_is_repeated_than_the_kills_explain(history: History) -> None:
    log = history.logs[history.key()]
    log += list(dict.fromkeys(log))[-6:]
    history.limits = {"repeats_max": 5}


@breakage("beyond_bound")
def a_key_starts_again_from_its_beginning(history: History) -> None:
    log = history.logs[history.key()]
    log += list(dict.fromkeys(log))
    history.limits = {"step_back_max": 5}


def _of(before: Callable[[int], History], names: list[str]) -> list:
    return [pytest.param(before, name, id=f"{before.__name__}-{name}") for name in names]


CLEAN_ONLY = [name for name in BREAKAGES if name.startswith("beyond_bound")]
ALL = _of(clean_history, list(BREAKAGES)) + _of(crashed_history, [name for name in BREAKAGES if name not in CLEAN_ONLY])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("before", "name"), ALL)
def test_each_breakage_is_found_under_its_name(before, name, seed):
    history = before(seed)
    BREAKAGES[name](history)
    verdict = history.check()
    assert not verdict.ok
    assert name.split(":")[0] in verdict.found, verdict.explain()


SIDE_EFFECTS = {
    "lost": set(),
    "phantom": set(),
    "reordered": {"ends_old", "suffix_broken"},
    "suffix_broken": set(),
    "ends_old": {"reordered", "suffix_broken"},
    "altered": {"moved"},
    "moved": set(),
    "parked_published": set(),
    "beyond_bound": set(),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", BREAKAGES)
def test_a_breakage_of_a_clean_history_is_not_found_under_foreign_names(name, seed):
    """Nobody finds the cause of a red run in a list of everything."""
    history = clean_history(seed)
    BREAKAGES[name](history)
    anomaly = name.split(":")[0]
    assert set(history.check().found) <= {anomaly} | SIDE_EFFECTS[anomaly]


def test_no_more_than_ten_examples_are_kept_and_all_are_counted():
    verdict = check([written(b"a", sequence) for sequence in range(1, 101)], [])
    assert verdict.anomalies.lost.count == 100
    assert len(verdict.anomalies.lost.examples) == 10
    assert "and 90 more" in verdict.explain()
    assert "\n" not in verdict.summary()


def test_a_step_back_is_measured_from_the_newest_event():
    events = [written(b"a", sequence) for sequence in range(1, 8)]
    order = [1, 2, 3, 4, 5, 4, 5, 4, 5, 6, 7]
    log = {b"a": [record(events[sequence - 1]) for sequence in order]}
    verdict = check(events, topic_of(random.Random(0), log))
    assert (verdict.ok, verdict.step_backs, verdict.longest_step_back, verdict.repeated) == (True, 2, 2, 4)


def test_a_late_event_may_not_be_skipped_by_later_repeats_either():
    events = [written(b"a", sequence) for sequence in range(1, 5)]
    log = {b"a": [record(events[sequence - 1]) for sequence in (1, 2, 4, 3, 4, 2, 4)]}
    verdict = check(events, topic_of(random.Random(0), log))
    assert set(verdict.found) == {"reordered", "suffix_broken"}


def test_a_journal_that_names_an_event_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        check([written(b"a", 1), written(b"a", 1)], [])


def test_records_that_are_not_in_offset_order_are_refused():
    event = written(b"a", 1)
    late, early = (dataclasses.replace(record(event), offset=offset) for offset in (7, 6))
    with pytest.raises(ValueError, match="offset order"):
        check([event], [late, early])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((b"", ()), (None, ())),
        ((b"a", ()), (b"b", ())),
        ((b"a", (("h", b"1"),)), (b"a", (("h", b"2"),))),
        ((b"a", (("h", b""),)), (b"a", (("h", None),))),
        ((b"a", (("h", b"1"), ("h", b"1"))), (b"a", (("h", b"1"),))),
        ((b"a", (("hb", b"c"),)), (b"a", (("h", b"bc"),))),
        ((b"ab", ()), (b"a", (("b", b""),))),
        ((b"", (("a", b"x"), ("b", b"y"))), (b"", (("a1:xb", b"y"),))),
    ],
)
def test_different_contents_have_different_digests(one, other):
    assert digest(*one) != digest(*other)


def test_the_order_of_headers_and_the_headers_of_the_relay_do_not_change_the_digest():
    mine = (("a", b"1"), ("b", b"2"))
    theirs = (("event_id", b"x"), ("b", b"2"), ("traceparent", b"y"), ("a", b"1"))
    assert digest(b"v", mine) == digest(b"v", theirs)
    assert digest(b"v", mine, ignored=()) != digest(b"v", theirs, ignored=())


def test_a_large_history_takes_linear_time():
    """Ten times the events may take about ten times as long; a quadratic step would take a hundred times."""

    def seconds(events_of_one_key: int) -> float:
        events = [written(b"hot", sequence) for sequence in range(1, events_of_one_key + 1)]
        topic = topic_of(random.Random(0), {b"hot": [record(event) for event in events]})
        started = time.process_time()
        assert check(events, topic).ok
        return time.process_time() - started

    assert seconds(50_000) < 40 * max(seconds(5_000), 0.01)
