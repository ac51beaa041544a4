"""What happens to each row of a unit: the delivered prefix per key goes, and the last copies of a key end in order."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from relay.core.event import Outcome, Row
from relay.core.settlement import settle

SEEDS = 300


def row(id_: int, key: bytes | None, topic: str = "t") -> Row:
    return Row(0, id_, b"", topic, key, "", b"", b"x", None)


UNITS = st.lists(
    st.tuples(st.sampled_from("tu"), st.sampled_from([None, b"a", b"b"]), st.sampled_from(list(Outcome))), max_size=12
)


@given(UNITS)
def test_of_each_key_the_delivered_prefix_is_removed(drawn):
    """Up to the first row that was not delivered, and nothing behind it, acknowledged or not."""
    rows = [row(id_, key, topic) for id_, (topic, key, _) in enumerate(drawn)]
    outcomes = [outcome for _, _, outcome in drawn]
    settled = settle(rows, outcomes)
    for name in {(r.topic, r.key) for r in rows if r.key is not None}:
        of_key = [index for index, r in enumerate(rows) if (r.topic, r.key) == name]
        stop = next((i for i, index in enumerate(of_key) if outcomes[index] is not Outcome.DELIVERED), len(of_key))
        assert [r.id for r in settled.delivered if (r.topic, r.key) == name] == of_key[:stop]
        head = of_key[stop : stop + 1]
        refused = [index for index in head if outcomes[index] is Outcome.REFUSED]
        assert [r.id for r in settled.refused if (r.topic, r.key) == name] == refused


@given(UNITS)
def test_rows_without_a_key_stand_for_themselves(drawn):
    """Each is removed or refused by its own outcome, whatever became of the others."""
    rows = [row(id_, None, topic) for id_, (topic, _, _) in enumerate(drawn)]
    outcomes = [outcome for _, _, outcome in drawn]
    settled = settle(rows, outcomes)
    assert [r.id for r in settled.delivered] == [i for i, o in enumerate(outcomes) if o is Outcome.DELIVERED]
    assert [r.id for r in settled.refused] == [i for i, o in enumerate(outcomes) if o is Outcome.REFUSED]


def test_a_row_that_is_not_proven_delivered_stays():
    """Unknown is not delivered: it may have arrived, and goes again."""
    rows = [row(1, b"a"), row(2, b"a"), row(3, b"b")]
    settled = settle(rows, [Outcome.UNKNOWN, Outcome.DELIVERED, Outcome.DELIVERED])
    assert [r.id for r in settled.delivered] == [3]
    assert settled.refused == []


def last_copies(log: list[int]) -> list[int]:
    """The ids of a key's log in the order of their last copies."""
    return sorted(set(log), key=lambda id_: len(log) - 1 - log[::-1].index(id_))


def play(seed: int, rule) -> list[int]:
    """One key goes to Kafka, round after round, over a network that loses rows, replies and whole batches.

    Idempotent producing: within a round, what arrives arrives in order. Returns the key's log.
    """
    draw = random.Random(seed)
    waiting = [row(id_, b"k") for id_ in range(draw.randint(2, 6))]
    log: list[int] = []
    while waiting:
        unit = waiting[: draw.randint(1, 6)]
        outcomes = [draw.choices([Outcome.DELIVERED, Outcome.UNKNOWN, Outcome.HELD], [6, 2, 1])[0] for _ in unit]
        for r, outcome in zip(unit, outcomes, strict=True):
            if outcome is Outcome.DELIVERED or (outcome is Outcome.UNKNOWN and draw.random() < 0.5):
                log.append(r.id)
        gone = {r.id for r in rule(unit, outcomes)}
        waiting = [r for r in waiting if r.id not in gone]
    return log


def test_the_last_copies_of_a_key_stand_in_order_whatever_was_lost():
    """Every event arrives, and a consumer that keeps the latest copy of each ends on the newest state."""
    for seed in range(SEEDS):
        log = play(seed, lambda unit, outcomes: settle(unit, outcomes).delivered)
        assert last_copies(log) == list(range(max(log) + 1)), f"seed {seed}: {log}"
        assert log[-1] == max(log), f"seed {seed}: {log}"


def test_settling_each_row_by_its_own_report_would_end_on_an_old_event():
    """Why the prefix rule is there; and that the play above can tell."""

    def by_report(unit, outcomes):
        return [r for r, outcome in zip(unit, outcomes, strict=True) if outcome is Outcome.DELIVERED]

    assert any(play(seed, by_report)[-1] != max(play(seed, by_report)) for seed in range(SEEDS))
