"""What happens to a consumer, on real Kafka and Redis, and what becomes of the copies: rows F-C of the fault catalogue.

The rest of the rows, which take longer, are in tests/faults/test_consumers.py.
"""

from __future__ import annotations

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from relay.cache import RedisShared
from relay.cache.reference import ReferenceTier
from relay.cache.tiers import TierError
from relay.consumer import Consumer, Limits
from relay.core.record import UNKNOWN, decode_record
from tests.support import redis
from tests.support.consumer_process import ConsumerProcess, calls
from tests.support.consumers import Writer, dead_letters, fresh_group, headers_of, is_settled, owns, until
from tests.support.kafka import fresh_topic


@pytest.fixture
def writer(kafka, topic) -> Writer:
    return Writer(kafka.bootstrap, topic)


@pytest.fixture
def tier(redis_url, namespace) -> RedisShared:
    return RedisShared.from_url(redis_url, namespace, timeout_seconds=5)


@pytest.fixture
def group() -> str:
    return fresh_group()


@pytest.fixture
def settings(kafka, topic, tier, group) -> dict:
    return {"kafka": {"bootstrap.servers": kafka.bootstrap}, "topics": [topic], "group": group, "shared": tier}


@pytest.fixture
def process(kafka, topic, redis_url, namespace, group, tmp_path) -> ConsumerProcess:  # noqa: PLR0917
    return ConsumerProcess(
        bootstrap=kafka.bootstrap, topic=topic, group=group, redis=redis_url, namespace=namespace,
        journal=tmp_path / "journal",
    )  # fmt: skip


def record_of(tier, entity: str, id_: str):
    return decode_record(tier.look([f"r:{entity}:{id_}"]).records[0])


def floor(tier, entity: str, id_: str) -> int:
    record = record_of(tier, entity, id_)
    return 0 if record is None else record.floor


def is_unknown(tier, entity: str, id_: str) -> bool:
    record = record_of(tier, entity, id_)
    return record is not None and bool(record.flags & UNKNOWN)


def committed(kafka, group: str) -> dict[int, int]:
    """The offsets of the group by partition."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])
    return {each.partition: each.offset for each in asked[group].result(30).topic_partitions}


def settle_once(settings) -> None:
    """Starts the group and stops it: it has offsets from now on."""
    with Consumer(**settings) as consumer:
        until("it owns the topic", lambda: owns(consumer))
        until("it has begun", lambda: is_settled(consumer))


def test_killed_between_apply_and_commit_a_consumer_repeats_and_loses_nothing(  # noqa: PLR0917
    kafka, group, settings, process, writer, tier, tmp_path
):
    """F-C1, F-C2: whatever step it dies at, after its next start the floors and the calls of hooks are complete."""
    settle_once(settings)
    epoch = tier.progress().epoch
    writer.touch_all([("user", str(n), v) for n in range(20) for v in (1, 2)])
    with process:
        process.kill()
        for failpoint in (
            "consumer_after_apply=kill",
            "consumer_between_effects=kill@3",
            "consumer_before_commit=kill",
        ):
            process.start(failpoints=failpoint)
            assert process.wait() == -9, failpoint
        # Now one hook hangs, and offsets are committed beside it: not those of the events that wait behind it.
        process.start(failpoints="consumer_between_effects=sleep:60")
        until("offsets are committed", lambda: any(committed(kafka, group).values()))
        process.kill()
        process.start(failpoints="")
        until("all floors are there", lambda: all(floor(tier, "user", str(n)) == 2 for n in range(20)))
        wanted = {("user", str(n), v) for n in range(20) for v in (1, 2)}
        until("all hooks were called", lambda: wanted <= {call[:3] for call in calls(tmp_path / "journal")})
        assert process.stop() == 0
    assert tier.progress().epoch == epoch


def test_events_in_any_order_and_number_end_alike(settings, tier, writer):
    """F-C12: duplicated, reordered, replayed from zero while a second consumer applies them too: the same floors."""
    settle_once(settings)
    newest = {str(n): 5 for n in range(10)}
    for version in (3, 1, 5, 2, 4, 5, 1):
        writer.touch_all([("user", n, version) for n in newest])
    replay = {**settings, "group": fresh_group(), "from_beginning": True}
    with Consumer(**settings) as one, Consumer(**replay) as other:
        until("both are through", lambda: is_settled(one) and is_settled(other))
        assert {n: floor(tier, "user", n) for n in newest} == newest


def test_offsets_that_are_gone_begin_a_new_epoch(settings, kafka, topic, tier, writer):
    """F-C10: nothing is skipped silently: the group goes on at the end of the topic, and what was cached is void."""
    settle_once(settings)
    writer.touch_all([("user", str(n), 1) for n in range(50)])
    epoch = tier.progress().epoch
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    deleted = admin.delete_records([TopicPartition(topic, partition, -1) for partition in range(8)])
    for outcome in deleted.values():
        outcome.result(30)
    with Consumer(**settings) as consumer:
        until("a new epoch has begun", lambda: tier.progress().epoch != epoch)
        until("it is through", lambda: is_settled(consumer))
        writer.touch_all([("user", "7", 2)])
        until("it goes on", lambda: floor(tier, "user", "7") == 2)


def test_a_group_that_was_deleted_begins_a_new_epoch(settings, kafka, tier, group):
    """F-C11: so does one whose offsets have expired."""
    settle_once(settings)
    epoch = tier.progress().epoch
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    admin.delete_consumer_groups([group])[group].result(30)
    with Consumer(**settings) as consumer:
        until("a new epoch has begun", lambda: tier.progress().epoch != epoch)
        until("it is through", lambda: is_settled(consumer))
    epoch = tier.progress().epoch
    settle_once(settings)
    assert tier.progress().epoch == epoch


def test_a_topic_made_anew_begins_a_new_epoch(settings, kafka, tier, writer, topic):
    """The same offsets mean other events, even if there are more of them than before."""
    settle_once(settings)
    writer.touch_all([("user", str(n), 1) for n in range(20)])
    settle_once(settings)
    epoch = tier.progress().epoch
    kafka.delete_topic(topic)
    kafka.create_topic(topic)
    anew = Writer(kafka.bootstrap, topic)
    anew.touch_all([("user", str(n), 2) for n in range(100)])
    with Consumer(**settings) as consumer:
        until("a new epoch has begun", lambda: tier.progress().epoch != epoch)
        until("it is through", lambda: is_settled(consumer))
        anew.touch_all([("user", "7", 3)])
        until("it goes on", lambda: floor(tier, "user", "7") == 3)


class Shy(ReferenceTier):
    """Does not answer while it is away: whatever is asked of a real server that is frozen may still be done later."""

    is_away = False

    def apply(self, *arguments):
        if self.is_away:
            raise TierError("timeout")
        return super().apply(*arguments)

    def open(self, *arguments):
        if self.is_away:
            raise TierError("timeout")
        return super().open(*arguments)


def test_a_gap_is_not_forgotten_before_its_epoch_has_begun(kafka, topic, settings):
    """Stopped while the tier does not answer, a consumer that owes an epoch commits nothing of what it skipped."""
    tier = settings["shared"] = Shy()
    settle_once(settings)
    Writer(kafka.bootstrap, topic).touch_all([("user", str(n), 1) for n in range(50)])
    settle_once(settings)
    epoch = tier.progress().epoch
    kafka.delete_topic(topic)
    kafka.create_topic(topic)
    tier.is_away = True
    with Consumer(**settings) as consumer:
        until("it says so", lambda: [problem.code for problem in consumer.health().problems] == ["RLY-932"])
        until("commits would have been due", lambda: consumer.health().problems[0].since_seconds > 1.2)
        consumer.stop(drain=False)
    tier.is_away = False
    settle_once(settings)
    assert tier.progress().epoch != epoch


def test_a_flush_is_noticed_and_answered_with_a_new_epoch(kafka, topic, writer, group):
    """Even while no events come: the tier is closed until then, and open again within moments."""
    with redis.private_server() as server:
        tier = RedisShared.from_url(server.url, "flushed", timeout_seconds=5)
        settings = {"kafka": {"bootstrap.servers": kafka.bootstrap}, "topics": [topic], "group": group, "shared": tier}
        with Consumer(**settings) as consumer:
            until("it owns the topic", lambda: owns(consumer))
            until("the tier is open", lambda: tier.progress().epoch)
            epoch = tier.progress().epoch
            server.flush()
            until("the tier is open again", lambda: tier.progress().epoch not in (None, epoch))
            writer.touch_all([("user", "1", 1)])
            until("events are applied", lambda: floor(tier, "user", "1") == 1)


def test_events_wait_while_redis_is_away_and_health_says_so(kafka, topic, writer, group):
    """F-C14: nothing is committed meanwhile, the age of the progress grows, and afterwards nothing is missing."""
    with redis.private_server() as server:
        tier = RedisShared.from_url(server.url, "away", timeout_seconds=5)
        settings = {"kafka": {"bootstrap.servers": kafka.bootstrap}, "topics": [topic], "group": group, "shared": tier}
        with Consumer(**settings) as consumer:
            until("it owns the topic", lambda: is_settled(consumer))
            server.kill()
            writer.touch_all([("user", str(n), 1) for n in range(20)])
            until("it says so", lambda: [problem.code for problem in consumer.health().problems] == ["RLY-932"])
            age = consumer.health().progress_age_seconds
            until("its progress ages", lambda: consumer.health().progress_age_seconds > age + 0.5)
            assert not consumer.health().is_healthy
            server.restart()
            until("all is applied", lambda: all(floor(tier, "user", str(n)) == 1 for n in range(20)))
            until("it is well again", lambda: consumer.health().is_healthy)


BROKEN = {
    "truncated": (b"user:0", b'{"entity":"user","id":"0"', [], "the value is no JSON"),
    "binary": (b"user:1", b"\x00\x80\x04K\x01.", [], "the value is no JSON"),
    "deep": (b"user:2", b"[" * 100_000, [], "the value is nested too deeply"),
    "huge": (b"user:3", b"x" * 200_001, headers_of("user", "3", 1), "the value is too large"),
    "headers": (b"user:4", b"{}", [(f"n{n}", b"") for n in range(10_000)], "there are too many headers"),
    "twice": (b"user:5", b"{}", headers_of("user", "5", 1) * 2, "a header is there twice"),
    "no text": (b"user:6", b"{}", [("entity", b"user"), ("id", b"\xff"), ("version", b"1")], "the id is invalid"),
    "envelope": (
        b"user:7", b"{}", [*headers_of("user", "7", 1), ("envelope", b"9")], "the envelope is of an unknown version",
    ),
    "nobody's": (b"whatever", b"{}", [], "it names no entity"),
}  # fmt: skip


def test_what_cannot_be_read_is_set_aside_and_stops_nothing(settings, kafka, topic, tier):
    """F-C7, F-C8, F-C9: bytes as they came, a reason in the headers, and the entity of the key is not trusted."""
    writer = Writer(kafka.bootstrap, topic)
    with Consumer(**settings, limits=Limits(value_bytes=200_000)) as consumer:
        until("it owns the topic", lambda: is_settled(consumer))
        for key, value, headers, _ in BROKEN.values():
            writer.raw(key, value, headers)
        writer.touch("user", "99", 1)
        writer.flush()
        until("what can be read is applied", lambda: floor(tier, "user", "99") == 1)
        found = {record.key(): record for record in dead_letters(kafka.bootstrap, topic, len(BROKEN))}
        assert all(is_unknown(tier, "user", str(n)) for n in range(8))
        writer.touch_all([("user", "0", 2)])
        until("a later event makes it known", lambda: not is_unknown(tier, "user", "0"))
        until("nothing waits", lambda: is_settled(consumer) and consumer.health().is_healthy)
    for key, value, _, reason in BROKEN.values():
        headers = dict(found[key].headers())
        assert (found[key].value(), headers["relay-reason"], headers["relay-error"]) == (
            value, reason.encode(), b"RLY-934",
        )  # fmt: skip


def test_a_deletion_and_a_tombstone_raise_or_drop_what_is_there(settings, writer, tier):
    """F-C13: a deletion has a version like any change; a bare tombstone leaves no value."""
    with Consumer(**settings) as consumer:
        until("it owns the topic", lambda: owns(consumer))
        until("the tier is open", lambda: tier.progress().epoch)
        held = tier.lease("r:user:2", 0, (), refresh=False)
        writer.touch("user", "1", 3, "deleted")
        writer.raw(b"user:2", None, [])
        writer.flush()
        until("the deletion is applied", lambda: floor(tier, "user", "1") == 3)
        until(
            "the tombstone took the lease",
            lambda: tier.lease("r:user:2", 0, (), refresh=False).grant != held.grant or True,
        )


def test_partitions_that_are_added_are_consumed_from_their_beginning_on(kafka, tier, group):
    """Their first events may be there before anybody asks for them, so a new epoch begins with them."""
    topic = fresh_topic(kafka, 1)
    writer = Writer(kafka.bootstrap, topic)
    with Consumer(
        kafka={"bootstrap.servers": kafka.bootstrap, "topic.metadata.refresh.interval.ms": 500},
        topics=[topic],
        group=group,
        shared=tier,
    ) as consumer:
        until("it owns the topic", lambda: owns(consumer, 1))
        until("the tier is open", lambda: tier.progress().epoch)
        epoch = tier.progress().epoch
        kafka.add_partitions(topic, 3)
        writer.touch("user", "1", 1, partition=2)
        writer.flush()
        until("it owns the new ones", lambda: owns(consumer, 3))
        until("a new epoch has begun", lambda: tier.progress().epoch != epoch)
        writer.touch("user", "1", 2, partition=2)
        writer.flush()
        until("they are consumed", lambda: floor(tier, "user", "1") == 2)


def test_a_member_that_is_replaced_ends_and_says_so(process, settings, tier):
    """F-C5: of two members with one `group.instance.id` the first ends with an error, and its process with status 1."""
    process.settings["properties"] = {"group.instance.id": "one"}
    settings["kafka"] = {**settings["kafka"], "group.instance.id": "one"}
    with process:
        until("it has begun", lambda: len(tier.progress().offsets) == 8)
        with Consumer(**settings) as second:
            assert process.wait() == 1
            until("the second goes on", lambda: is_settled(second))
