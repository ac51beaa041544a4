"""`relay cache`: what lies in the shared tier, whether it is right, and how to void it; on a real Redis."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping

import psycopg
import pytest
from click.testing import CliRunner, Result

from relay.cache.redis import RedisShared
from relay.cache.tiers import Bump, Position, Put
from relay.cli.main import cli
from relay.core.names import record_name
from relay.core.record import HAS_VALUE
from relay.schema.grants import grants
from tests.support.commands import relay
from tests.support.consumers import Writer
from tests.support.postgres import drop_database, fresh_database

QUICK = ("--scale", "0.2", "--scale", "0.5", "--seconds", "1.5", "--json")


@pytest.fixture(scope="module")
def dsn(pg) -> Iterator[str]:
    fresh = fresh_database(pg)
    yield fresh
    drop_database(pg, fresh)


@pytest.fixture
def tier(redis_url, namespace) -> Iterator[RedisShared]:
    """Open, with nothing in it."""
    made = RedisShared.from_url(redis_url, namespace, timeout_seconds=5)
    made.open("test", [Position("t", 0, 0, 100)])
    yield made
    made.close()


@pytest.fixture
def settings(dsn, redis_url, namespace) -> Mapping[str, str]:
    return {"RELAY_REDIS_URL": redis_url, "RELAY_REDIS__NAMESPACE": namespace, "RELAY_DATABASE_URL": dsn}


def run(*arguments: str, settings: Mapping[str, str]) -> Result:
    """In this process: starting one takes longer than most of these commands."""
    return CliRunner().invoke(cli, ["cache", *arguments], env=settings)


def touch(dsn: str, id_: str, times: int = 1) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(times):
            version = connection.execute("SELECT relay.touch('user', %s)", (id_,)).fetchone()[0]
    return version


def fill(tier: RedisShared, id_: str, version: int) -> None:
    """As a reader does."""
    name = record_name("user", id_)
    lease = tier.lease(name, 0, (), refresh=False)
    put = Put(name, lease.lease, version, HAS_VALUE, 1, 1, b'"value"', 60_000, 60_000, 1, {})
    assert tier.put(put) is None


def bump(tier: RedisShared, id_: str, version: int) -> None:
    """As a consumer does."""
    tier.apply([Bump(record_name("user", id_), version, unknown=False)], (), ())


def verified(settings: Mapping[str, str], *options: str) -> tuple[int, dict, str]:
    said = run("verify", *QUICK, *options, settings=settings)
    assert said.stdout.startswith("{"), said.stderr
    return said.exit_code, json.loads(said.stdout), said.stderr


def test_status_says_what_is_there_and_what_it_costs(tier, settings, kafka, topic):
    """By kind of record, with the lag behind the topic where Kafka is known."""
    fill(tier, "1", 1)
    fill(tier, "2", 1)
    bump(tier, "2", 2)
    tier.lease(record_name("user", "3"), 0, (), refresh=False)
    said = run("status", "--json", settings=settings)
    data = json.loads(said.stdout)
    assert (data["open"], data["behind"], data["complete"]) == (True, None, True)
    assert data["epoch"] == tier.progress().epoch.hex()
    assert data["partitions"] == [{"topic": "t", "partition": 0, "offset": 100, "behind": None}]
    kinds = {one["kind"]: one for one in data["records"]}
    assert {name: one["sampled"] for name, one in kinds.items()} == {
        "entry": 1, "absence": 0, "tombstone": 1, "lease": 1, "void": 0
    }  # fmt: skip
    assert all(100 < one["bytes"] < 500 for one in kinds.values() if one["sampled"])

    Writer(kafka.bootstrap, topic).touch_all([("user", "1", 1)] * 3)
    with_kafka = {**settings, "RELAY_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}
    tier.open("test", [Position(topic, number, 0, 0) for number in range(8)])
    data = json.loads(run("status", "--json", "--topic", topic, settings=with_kafka).stdout)
    assert data["behind"] == 3
    said = run("status", "--topic", topic, settings=with_kafka).stdout
    assert "behind    3 events are not applied yet" in said
    assert max(map(len, said.splitlines())) <= 80


def test_reset_voids_everything(tier, settings):
    """By a new epoch, which no record belongs to; and only with consent."""
    fill(tier, "1", 1)
    before = tier.progress().epoch
    refused = run("reset", settings=settings)
    assert (refused.exit_code, tier.progress().epoch) == (1, before)
    said = relay("cache", "reset", "--yes", settings=settings)
    assert said.returncode == 0, said.stderr
    page = tier.look([record_name("user", "1")])
    assert page.epoch not in (None, before)
    kinds = json.loads(run("status", "--json", settings=settings).stdout)["records"]
    assert [one["sampled"] for one in kinds if one["kind"] == "void"] == [1]


def test_a_closed_tier_is_not_opened_by_hand(settings):
    """Without a consumer nobody would keep right what is served."""
    said = run("reset", "--yes", settings=settings)
    assert (said.exit_code, said.stderr[:7]) == (1, "RLY-606")
    assert json.loads(run("status", "--json", settings=settings).stdout)["open"] is False


def test_copies_that_are_right_are_clean_samples(tier, settings, dsn):
    """Of records and reads, at each scale; with the rights of a reader and no more."""
    for number in range(20):
        fill(tier, f"clean-{number}", touch(dsn, f"clean-{number}"))
    fill(tier, "behind", touch(dsn, "behind"))
    bump(tier, "behind", touch(dsn, "behind"))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE cache_reader LOGIN")
        connection.execute(grants([("reader", "cache_reader")]))
    try:
        least = {**settings, "RELAY_DATABASE_URL": dsn.replace("postgres@", "cache_reader@")}
        code, data, said = verified(least)
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("DROP OWNED BY cache_reader; DROP ROLE cache_reader")
    assert code == 0, said
    for scale in data["scales"]:
        kinds = {kind["kind"]: kind["samples"] for kind in scale["kinds"]}
        assert kinds["entry"] >= 21
        assert kinds["read"] >= 21
        assert (kinds["event"], scale["violations"]) == (0, 0)
        assert scale["nines"] >= 1
    assert (data["ahead"], data["unhealed"], data["tier_failures"]) == (0, 0, 0)


def test_a_lost_event_is_found_and_told_without_content(tier, settings, dsn, tmp_path):
    """The version moved and nobody told the tier: exit status 1, and a trace that names an id only when asked to."""
    fill(tier, "secret-id", touch(dsn, "secret-id"))
    touch(dsn, "secret-id")
    for reveal in ((), ("--reveal",)):
        code, data, _ = verified(settings, "--trace", str(tmp_path / "trace"), *reveal)
        assert code == 1
        assert data["scales"][-1]["violations"] > 0
        assert data["unhealed"] == 1
        (line,) = (tmp_path / "trace").read_text().splitlines()
        told = json.loads(line)
        assert (told["entity"], told["served"], told["committed"]) == ("user", 1, 2)
        assert ("secret-id" in line) == bool(reveal)
        assert "value" not in line
        assert {step["seen"] for step in told["trace"]} >= {"entry", "record"}


def test_a_restored_database_is_noticed(tier, settings, dsn):
    """It has forgotten versions that copies still have: exit status 1, and what to do."""
    fill(tier, "restored", touch(dsn, "restored") + 5)
    said = run("verify", *QUICK[:-1], settings=settings)
    assert said.exit_code == 1
    assert "newer than the database: was it restored? see `relay cache reset`" in said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 80


def test_events_are_samples_when_kafka_is_known(tier, settings, dsn, kafka, topic):
    """From their arrival; a copy that does not follow is a violation of that kind too."""
    version = touch(dsn, "followed", 400)
    fill(tier, "followed", 1)
    done = threading.Event()
    writer = Writer(kafka.bootstrap, topic)

    def announce() -> None:
        for number in range(2, version):
            writer.touch("user", "followed", number)
            writer.flush()
            if done.wait(0.1):
                break

    thread = threading.Thread(target=announce)
    thread.start()
    try:
        code, data, _ = verified(
            {**settings, "RELAY_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}, "--topic", topic, "--samples", "20"
        )
    finally:
        done.set()
        thread.join()
    assert code == 1
    events = {kind["kind"]: kind for kind in data["scales"][0]["kinds"]}["event"]
    assert events["samples"] == events["violations"] > 0


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"RELAY_REDIS_URL": ""}, 6, "RLY-201"),
        ({"RELAY_REDIS_URL": "http://localhost"}, 6, "RLY-203"),
        ({"RELAY_REDIS_URL": "redis://:secret@127.0.0.1:1"}, 3, "RLY-305"),
    ],
)
def test_a_tier_that_is_not_there_is_one_line(settings, changed, status, code):
    """With the fix, and without the password."""
    said = run("status", settings={**settings, **changed})
    assert (said.exit_code, said.stderr[:7]) == (status, code)
    assert said.stderr.count("\n") == 1
    assert "secret" not in said.stderr
