"""The feed of a process tier: open only while nothing can be missing, whatever happens to Kafka, Redis or the topic."""

from __future__ import annotations

import pytest

from relay.cache import Local, RedisShared
from relay.cache.numbers import FEED_SILENCE, Numbers
from relay.cache.reference import ReferenceTier
from relay.cache.tiers import Position, Progress
from relay.consumer import Consumer, Feed
from relay.consumer.follower import SILENCE_SECONDS
from tests.support import redis
from tests.support.consumers import Writer, fresh_group, is_settled, until
from tests.support.kafka import KafkaCluster, fresh_topic


@pytest.fixture
def writer(kafka, topic) -> Writer:
    return Writer(kafka.bootstrap, topic)


class Tier(ReferenceTier):
    """Counts how often somebody asked how far it is."""

    asked = 0

    def progress(self) -> Progress:
        self.asked += 1
        return super().progress()


@pytest.fixture
def tier() -> Tier:
    return Tier()


@pytest.fixture
def settings(kafka, topic, tier) -> dict:
    return {"kafka": {"bootstrap.servers": kafka.bootstrap}, "topics": [topic], "shared": tier}


def floor(local: Local, id_: str) -> int:
    return local.space("user").floor(id_)


def test_the_tier_is_open_from_the_barrier_to_the_stop(settings, tier, topic):
    """Closed before it has started, while the shared tier is behind the join, and after the stop; stopped twice too."""
    local = Local()
    feed = Feed(local=local, **settings)
    feed.stop()
    tier.open("test", [Position(topic, partition, 0, 0) for partition in range(8)])
    Writer(settings["kafka"]["bootstrap.servers"], topic).touch_all([("user", str(n), 1) for n in range(80)])
    with feed:
        assert not local.is_open
        until("it has asked the shared tier, and again", lambda: tier.asked >= 3)
        assert not local.is_open
        assert [problem.code for problem in feed.health().problems] == ["RLY-939"]
        with Consumer(group=fresh_group(), from_beginning=True, **settings) as consumer:
            until("the tier is open", lambda: local.is_open)
            until("the consumer says that it is through", lambda: is_settled(consumer))
        until("health says so", lambda: feed.health().is_healthy)
    assert not local.is_open
    feed.stop()


def test_events_raise_floors_and_floors_are_swept(settings, tier, writer):
    """An event is applied as it comes; its floor goes when the shared tier has passed it and no fill is older."""
    local = Local(fill_seconds=0.1)
    with Consumer(group=fresh_group(), **settings) as consumer, Feed(local=local, **settings):
        until("the tier is open", lambda: local.is_open)
        writer.touch_all([("user", "1", 7)])
        until("it was seen and swept", lambda: tier.look(["r:user:1"]).records[0] and local.size().floors == 0)
        consumer.stop()
        writer.touch_all([("user", "1", 9)])
        until("it is applied", lambda: floor(local, "1") == 9)
        writer.raw(b"user:1", None, [])
        writer.flush()
        until("the tombstone voids what is under way", lambda: local.space("user").floors["1"].is_void)
        assert local.size().floors == 1


def test_without_a_shared_tier_the_process_tier_opens_at_its_join(settings):
    """What is loaded after the join comes from the primary and cannot be older than it."""
    local = Local()
    with Feed(local=local, **(settings | {"shared": None})) as feed:
        until("the tier is open", lambda: local.is_open)
        until("there is proof", lambda: feed.health().progress_age_seconds < 2)


def test_a_consumer_brings_the_feed_of_its_own_process_along(settings, writer):
    """Given the process tier, it opens and closes it, and its health speaks for both."""
    local = Local()
    with Consumer(group=fresh_group(), local=local, **settings) as consumer:
        until("the tier is open", lambda: local.is_open)
        writer.touch_all([("user", "1", 3)])
        until("the event reached it", lambda: floor(local, "1") == 3)
        until("both are well", lambda: consumer.health().is_healthy)
    assert not local.is_open


def test_a_new_epoch_closes_the_tier_until_the_feed_has_joined_anew(settings, tier):
    """What the shared tier had may have been older than what it had acknowledged; so may what was read from it."""
    local = Local()
    with Consumer(group=fresh_group(), **settings), Feed(local=local, **settings):
        until("the tier is open", lambda: local.is_open)
        generation = local.generation
        tier.flush()
        until("it was closed and is open again", lambda: local.is_open and local.generation > generation + 1)


def test_partitions_that_are_added_make_the_feed_join_anew(kafka, tier):
    """Keys move to them, and their events are not missed."""
    topic = fresh_topic(kafka, 1)
    settings = {"kafka": {"bootstrap.servers": kafka.bootstrap}, "topics": [topic], "shared": None}
    local = Local()
    with Feed(local=local, **settings) as feed:
        until("the tier is open", lambda: local.is_open)
        kafka.add_partitions(topic, 3)
        until("it follows all of them", lambda: len(feed.health().lag) == 3 and local.is_open)
        writer = Writer(kafka.bootstrap, topic)
        writer.touch("user", "1", 2, partition=2)
        writer.flush()
        until("the event was seen", lambda: floor(local, "1") == 2)


def test_too_many_floors_close_the_tier_and_the_feed_opens_it_again(settings, writer):
    """Memory is bounded by forgetting, and what was forgotten is not relied upon."""
    local = Local(floors_max=50)
    with Feed(local=local, **(settings | {"shared": None})):
        until("the tier is open", lambda: local.is_open)
        generation = local.generation
        writer.touch_all([("user", str(n), 1) for n in range(60)])
        until("it was closed and is open again", lambda: local.is_open and local.generation > generation + 1)


@pytest.mark.faults
def test_without_a_sign_of_life_the_tier_closes_and_opens_again_when_the_broker_is_back(tmp_path):
    """A frozen broker, and one that was killed: closed after some seconds, open again without anybody's help."""
    with KafkaCluster() as cluster, redis.private_server() as server:
        topic = fresh_topic(cluster)
        shared = RedisShared.from_url(server.url, "feed")
        settings = {"kafka": {"bootstrap.servers": cluster.bootstrap}, "topics": [topic], "shared": shared}
        local = Local()
        with Consumer(group=fresh_group(), **settings), Feed(local=local, **settings):
            for hurt, heal in (
                (lambda: cluster.pause(0), lambda: cluster.resume(0)),
                (lambda: cluster.kill(0), lambda: cluster.start_broker(0)),
            ):
                until("the tier is open", lambda: local.is_open)
                hurt()
                until("the tier is closed", lambda: not local.is_open)
                heal()
            until("the tier is open again", lambda: local.is_open)


def test_the_silence_of_a_feed_goes_on_while_nothing_is_heard(own_kafka):
    """It is that of the moment in which somebody asks, and absent while the feed does not run."""
    numbers, local = Numbers(), Local()
    kafka = {"bootstrap.servers": own_kafka.bootstrap}

    def silence() -> float | None:
        return numbers.snapshot().values.get((FEED_SILENCE, ("local",)))

    with Feed(local=local, kafka=kafka, topics=[fresh_topic(own_kafka)], recorder=numbers):
        until("the tier is open", lambda: local.is_open)
        until("it has heard something", lambda: (silence() or 9) < SILENCE_SECONDS)
        own_kafka.pause(0)
        # Longer than the feed waits: it has closed the tier by then, and tries to join again.
        until("the silence is long", lambda: (silence() or 0) > 3 * SILENCE_SECONDS)
        own_kafka.resume(0)
        until("it has heard something again", lambda: (silence() or 9) < SILENCE_SECONDS)
    assert silence() is None
