"""The 27 races of a cache that follows events: the guard against each, its tests, and how to take the guard out.

docs/RACES.md is this table for readers; `test_races.py` compares the two, and runs tests on code without their guard.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tests.simulation.mutants import EDITS, FOLLOWER, LOCAL, READER, READING, REFERENCE, Edit

RACES_ON_BOTH_FACES: Final = "tests/unit/test_cache_races.py"
REPLAY: Final = "tests/simulation/test_replay.py"
CONSUMERS: Final = "tests/integration/test_consumer_faults.py"
SESSIONS: Final = "tests/integration/test_session_reads.py"
HERE: Final = "tests/simulation/test_races.py"


class Race(NamedTuple):
    """One row."""

    number: int
    title: str
    guard: str
    tests: tuple[str, ...]
    """Files with the name of a test each; the first is the one that is run without the guard."""
    edits: tuple[Edit, ...] = ()
    """Empty where there is no line to take out: the guard is what the code does not do, or lies in the schema."""


def _replay(guard: str) -> str:
    return f"{REPLAY}::test_the_code_refuses_what_the_guard_is_there_for[{guard}-reference-threads]"


def _read(test: str) -> str:
    return f"{RACES_ON_BOTH_FACES}::{test}"


RACES: Final = (
    Race(
        1,
        "A value is loaded, changed and invalidated, and then put",
        "a put has to reach the floor that the event raised",
        (
            _read("test_race_01_a_value_that_was_invalidated_while_it_was_loaded_stays_nowhere"),
            _replay("put_checks_floor"),
        ),
        EDITS["put_checks_floor"],
    ),
    Race(
        2,
        "The same, and the floor is evicted before the put",
        "floor and lease are one record: whoever lost the one has lost the other",
        (
            _read("test_race_02_also_when_the_floor_was_evicted_before_the_value_came"),
            _replay("put_checks_lease"),
            _replay("lease_lies_in_record"),
        ),
        EDITS["put_checks_lease"],
    ),
    Race(
        3,
        "An event is applied before its transaction is visible, or though it was rolled back",
        "an event is a row of the transaction that it tells of",
        (
            "tests/integration/test_outbox.py::test_events_share_the_fate_of_the_callers_change",
            "tests/integration/test_versioned_rows.py::test_a_write_is_told_after_the_commit_and_not_before",
        ),
    ),
    Race(
        4,
        "A transaction that has written fills the cache with its own rows",
        "it reads past the cache, and what it reads is kept nowhere",
        (
            _read("test_race_04_a_transaction_that_has_written_reads_its_own_rows_and_leaves_no_copy"),
            "tests/integration/test_versioned_rows.py::test_a_row_of_a_transaction_that_has_written_is_not_for_a_cache",
        ),
        (Edit(READING, "    if BYPASS.get():\n", "    if False:\n"),),
    ),
    Race(
        5,
        "A lagging replica is read after the invalidation",
        "what a replica showed is kept nowhere, and served only if it reaches what is known",
        (
            _read("test_race_05_what_a_replica_showed_is_served_and_kept_nowhere"),
            _read("test_race_05_a_loader_that_read_a_replica_behind_the_event_is_asked_for_the_primary"),
            _replay("replica_uncached"),
            _replay("replica_reaches_need"),
        ),
        EDITS["replica_uncached"],
    ),
    Race(
        6,
        "Events arrive in another order",
        "a floor is the greatest version, in both tiers",
        (
            f"{HERE}::test_race_06_events_in_any_order_leave_the_same_floor",
            f"{CONSUMERS}::test_events_in_any_order_and_number_end_alike",
        ),
        (Edit(REFERENCE, "floor = max(record.floor, bump.version or 0)", "floor = bump.version or record.floor"),),
    ),
    Race(
        7,
        "Events arrive twice",
        "the greatest of the same is the same",
        (
            f"{HERE}::test_race_07_events_that_come_again_take_nothing_away",
            f"{CONSUMERS}::test_events_in_any_order_and_number_end_alike",
        ),
        (Edit(LOCAL, "if entry is not None and entry.version < version:", "if entry is not None:"),),
    ),
    Race(
        8,
        "A version counter in Redis begins again, and finds the values of its first life",
        "versions are counted by Postgres; what is not there is unknown, and not 0",
        (
            "tests/integration/test_versioned_keys.py::test_neither_an_eviction_nor_a_flush_brings_an_old_version_back",
            "tests/integration/test_versioned_keys.py::test_a_failover_that_lost_writes_is_over_with_its_epoch",
        ),
    ),
    Race(
        9,
        "Redis is flushed, or fails over to a standby that misses writes",
        "records belong to an epoch; a consumer whose progress has vanished begins another one",
        (
            _replay("loss_is_noticed"),
            _read("test_race_09_a_value_loaded_while_the_tier_was_flushed_does_not_get_into_the_new_epoch"),
            _replay("read_checks_epoch"),
            _replay("put_checks_epoch"),
            _replay("progress_with_records"),
            _replay("claims_after_restart"),
            _replay("loss_voids_all"),
            f"{CONSUMERS}::test_a_flush_is_noticed_and_answered_with_a_new_epoch",
        ),
        EDITS["loss_is_noticed"],
    ),
    Race(
        10,
        "After a rebalance two consumers apply the same partition",
        "applying is idempotent, and an event leaves a floor, never a value",
        (
            f"{HERE}::test_race_10_a_consumer_that_lost_its_partition_does_no_harm",
            _replay("deletion_is_a_bump"),
            f"{CONSUMERS}::test_events_in_any_order_and_number_end_alike",
        ),
        EDITS["deletion_is_a_bump"],
    ),
    Race(
        11,
        "A process tier does not hear of an event that another process has consumed",
        "each process reads all partitions itself, in no group",
        ("tests/integration/test_feed.py::test_events_raise_floors_and_floors_are_swept", _replay("gap_closes")),
        (Edit(FOLLOWER, "for each in range(shape.partitions)", "for each in range(1)"),),
    ),
    Race(
        12,
        "A process tier has applied an event, and is filled from a shared tier that has not",
        "the process tier has floors too, for what it takes and for what it serves",
        (
            _read("test_race_12_what_the_process_has_applied_is_not_undone_by_a_shared_tier_that_is_behind"),
            _replay("local_floors"),
            _replay("floor_on_shared"),
        ),
        (*EDITS["local_floors"], *EDITS["floor_on_shared"]),
    ),
    Race(
        13,
        "A floor of the process tier is forgotten too early",
        "not before the shared tier has applied its event, and no older fill is under way",
        (_replay("sweep_waits_for_shared"), _replay("sweep_waits_for_fills")),
        EDITS["sweep_waits_for_shared"],
    ),
    Race(
        14,
        "The feed misses events or starts, and the tier is filled from a shared tier that has not applied them",
        "the tier opens only when the shared tier is past the join, and opening begins a new generation",
        (
            _replay("waits_for_shared"),
            _replay("opening_is_a_generation"),
            _replay("epoch_closes"),
            _read("test_race_14_what_was_read_before_the_tier_opened_is_not_put_afterwards"),
            "tests/integration/test_feed.py::test_the_tier_is_open_from_the_barrier_to_the_stop",
        ),
        EDITS["waits_for_shared"],
    ),
    Race(
        15,
        "What was read before a gap is put after it",
        "a fill belongs to the generation in which it began",
        (_read("test_race_15_what_was_read_before_a_gap_is_not_put_after_it"), _replay("generation")),
        EDITS["generation"],
    ),
    Race(
        16,
        "A consumer was away for longer than events are kept",
        "offsets that are gone begin a new epoch, at an end that was noted before",
        (
            f"{CONSUMERS}::test_offsets_that_are_gone_begin_a_new_epoch",
            f"{CONSUMERS}::test_a_group_that_was_deleted_begins_a_new_epoch",
            f"{CONSUMERS}::test_a_topic_made_anew_begins_a_new_epoch",
        ),
        # Skipping events looks like lost progress, too.
        (Edit("consumer/loop.py", "self._applier.owe_epoch(cause)", "pass"), *EDITS["loss_is_noticed"]),
    ),
    Race(
        17,
        "Clocks differ, and timestamps are taken for an order",
        "only versions order; ages are measured by one clock, that of the server",
        (
            f"{SESSIONS}::test_what_an_event_says_of_its_time_orders_nothing",
            f"{SESSIONS}::test_clocks_that_differ_shorten_no_floor_below_the_lag",
        ),
    ),
    Race(
        18,
        "An entity is deleted and made again",
        "its version counts on, and an absence is loaded like a value, never written by an event",
        (
            _replay("deletion_is_a_bump"),
            _read("test_race_18_an_entity_that_is_deleted_and_made_again_is_each_time_as_it_is"),
            f"{SESSIONS}::test_deleted_and_made_again_an_entity_counts_on",
        ),
        EDITS["deletion_is_a_bump"],
    ),
    Race(
        19,
        "A transaction changes many entities",
        "each has its version and its event, locked in one order; copies of several are not one snapshot",
        (
            "tests/integration/test_track.py::test_entities_are_locked_in_sorted_order",
            "tests/integration/test_outbox.py::test_ten_thousand_entities_can_be_touched_in_one_transaction",
        ),
    ),
    Race(
        20,
        "A dependency of a derived value changes while it is computed",
        "stamps are read before the load, and compared when putting and when reading",
        (
            _read("test_race_20_a_result_whose_dependency_changed_while_it_was_computed_is_not_kept"),
            _read("test_race_20_a_result_is_gone_when_a_stamp_is_renewed_or_lost"),
        ),
        (Edit(REFERENCE, "if any(self._get(stamp, now) != then for stamp, then in put.stamps.items()):", "if False:"),),
    ),
    Race(
        21,
        "Whoever holds the lease dies, or is slow",
        "leases end; a put needs the very lease, and what took too long is kept nowhere",
        (
            _read("test_race_21_a_load_that_took_too_long_is_served_and_kept_nowhere"),
            _read("test_race_21_whoever_waits_for_a_process_that_died_loads_for_himself_and_keeps_nothing"),
            _replay("put_compares_lease"),
        ),
        (Edit(READING, 'return "deadline" if load_seconds > reader.plan.load_seconds else None', "return None"),),
    ),
    Race(
        22,
        "A refresh in the background overlaps an invalidation",
        "it is a fill like any other: lease, floor, generation",
        (
            f"{HERE}::test_race_22_a_refresh_that_overlaps_an_invalidation_leaves_nothing_in_the_shared_tier",
            _read("test_race_22_a_refresh_in_the_background_that_overlaps_an_invalidation_keeps_nothing"),
        ),
        EDITS["put_checks_floor"],
    ),
    Race(
        23,
        "A key changes during every load, so that no fill is ever accepted",
        "refused or not, the reader has what was loaded",
        (_read("test_race_23_readers_of_a_key_that_changes_during_every_load_get_their_value_all_the_same"),),
    ),
    Race(
        24,
        "Whoever wrote reads the copy of before in his own process",
        "the session's token is compared with the process tier",
        (
            _replay("token_on_local"),
            _read("test_race_24_whoever_has_written_does_not_read_the_copy_of_before"),
            f"{SESSIONS}::test_own_writes_are_read_in_the_own_process_and_in_others_before_their_event",
        ),
        EDITS["token_on_local"],
    ),
    Race(
        25,
        "A session is let go because one copy has caught up",
        "the token is compared at every read, on every tier, and learns what was seen",
        (
            _replay("token_learns"),
            _replay("token_on_shared"),
            _read("test_race_25_a_session_compares_at_every_read_also_after_it_was_served_once"),
            f"{SESSIONS}::test_a_session_is_not_satisfied_for_ever_because_one_replica_caught_up",
        ),
        EDITS["token_learns"],
    ),
    Race(
        26,
        "An event is lost before the stream: a statement by hand, a defect",
        "no protocol can see that: the TTL bounds it, triggers capture statements, `relay cache verify` finds it",
        (
            "tests/integration/test_cli_cache.py::test_a_lost_event_is_found_and_told_without_content",
            "tests/integration/test_capture.py::test_an_event_of_a_trigger_is_like_one_of_touch",
        ),
    ),
    Race(
        27,
        "A process of another release reads what it cannot understand",
        "codec and schema are in the record: what is of another one is a miss",
        (
            _read("test_race_27_a_value_of_another_schema_is_a_miss_and_is_replaced"),
            _read("test_race_27_bytes_that_nobody_here_has_written_are_a_miss"),
        ),
        (Edit(READER, "and record.schema == self.plan.schema", ""),),
    ),
)
