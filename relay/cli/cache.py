"""`relay cache`: what lies in the shared tier, whether it is right, and how to void it."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import click

from relay.cache.tiers import Progress, TierError
from relay.cli.main import open_database, settings
from relay.config import Settings, require_kafka, require_redis
from relay.core.token import fingerprint
from relay.daemon.diagnosis.kafka import CHANGES
from relay.daemon.verification import report
from relay.daemon.verification.knowledge import Name
from relay.daemon.verification.sources import Primary, Tail, Walk
from relay.daemon.verification.survey import Survey, behind, survey, total
from relay.daemon.verification.verifier import Sources, Verifier
from relay.database import explain
from relay.errors import CacheError, ConfigError, OperatorError, UnreachableError
from relay.schema.install import require_version

if TYPE_CHECKING:
    from relay.cache.redis import RedisShared

TURN_SECONDS = 0.05
WALK_SECONDS = 0.5
TIMEOUT_SECONDS = 2.0


class Opened(NamedTuple):
    """The shared tier, and the client for what is no operation of a tier."""

    tier: RedisShared
    client: Any
    namespace: str


@click.group()
def cache() -> None:
    """The shared tier of the caches, in Redis or Valkey."""


@cache.command()
@click.option("--topic", default=CHANGES, show_default=True, help="The topic that is applied, for its lag.")
@click.option("--records", type=click.IntRange(0), default=1000, show_default=True, help="The sample, at most.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def status(topic: str, records: int, as_json: bool) -> None:
    """Show the epoch, the progress, and what lies there. Changes nothing.

    With Kafka's address in the settings, also how many events are not applied yet.
    """
    loaded = settings()
    with _open_tier(loaded) as opened:
        progress = opened.tier.progress()
        found = survey(opened.client, opened.namespace, progress.epoch, records)
    data = _status(progress, found, _lags(loaded, topic, progress))
    click.echo(json.dumps(data) if as_json else _status_text(data))


@cache.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def reset(yes: bool, as_json: bool) -> None:
    """Void everything in the shared tier at once, by a new epoch. After a restore of the database from a backup.

    Readers load anew from the source, a bounded number at a time in each process, so expect its load to rise for a
    while. Process tiers that follow the topic empty themselves as well; others keep entries until their TTL.
    """
    loaded = settings()
    with _open_tier(loaded) as opened:
        before = opened.tier.progress().epoch
        if before is None:
            raise OperatorError(
                "RLY-606", "the shared tier is closed: nothing in it is served", "start a consumer, which opens it"
            )
        if not yes and not as_json:
            click.confirm("All copies become void and are loaded anew. Go on?", abort=True)
        after = opened.tier.open("operator", ())
    data = {"before": before.hex(), "after": after.hex()}
    click.echo(json.dumps(data) if as_json else f"epoch {data['before']} is over, {data['after']} has begun")


@cache.command()
@click.option("--seconds", type=click.FloatRange(0.1), default=120.0, show_default=True, help="How long to look.")
@click.option("--samples", type=click.IntRange(1), help="End as soon as each scale has so many.")
@click.option("--scale", "scales", type=click.FloatRange(0.01), multiple=True, metavar="SECONDS", default=(1, 10, 60),
              show_default=True, help="After how long a copy has to be right. Several times for several.")  # fmt: skip
@click.option("--topic", default=CHANGES, show_default=True, help="The topic whose events are sampled.")
@click.option("--trace", type=click.File("w"), metavar="FILE", help="Violations, as JSON lines; - is stdout.")
@click.option("--reveal", is_flag=True, help="Name entities in the trace, instead of their fingerprints.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def verify(
    *,
    seconds: float,
    samples: int | None,
    scales: tuple[float, ...],
    topic: str,
    trace: IO[str] | None,
    reveal: bool,
    as_json: bool,
) -> None:
    """Compare what readers are given with the database, in nines.

    Samples events, records and reads; each suspect is confirmed by a read of the primary before it counts. Exit code 1
    if any copy was stale for longer than the largest scale, or newer than the database. Changes nothing. The database
    role needs what `relay db grants --reader` prints. Kafka's address is optional: without it no events are sampled.
    """
    loaded = settings()
    with open_database("cache verify") as connection, _open_tier(loaded) as opened, _tail(loaded, topic) as tail:
        require_version(connection)
        primary = Primary(connection)
        _check(primary)
        walk = Walk(opened.client, opened.namespace)
        sources = Sources(opened.tier, primary.versions, tail.events if tail else lambda: (), _patient(walk))
        verifier = Verifier(
            sources,
            sorted(set(scales)),
            clock=time.monotonic,
            draw=random.Random().random,  # noqa: S311  # a sample, no secret
            on_violation=_tracer(trace, reveal=reveal),
        )
        took = _run(verifier, seconds, samples)
    data = report.as_data(verifier, took)
    click.echo(json.dumps(data) if as_json else report.as_text(data))
    if data["scales"][-1]["violations"] or data["ahead"]:
        raise SystemExit(1)


def _check(primary: Primary) -> None:
    """Reads a version that is not there: a right that is missing is told now, and not with the first sample."""
    import psycopg

    try:
        primary.versions([Name("", "")])
    except psycopg.Error as error:
        raise explain(error) from None


def _run(verifier: Verifier, seconds: float, samples: int | None) -> float:
    """Until the time is over, or there are samples enough, or somebody presses Ctrl-C. Returns how long it took."""
    import psycopg

    start = walked = time.monotonic()
    walked -= WALK_SECONDS
    with suppress(KeyboardInterrupt):
        while (now := time.monotonic()) - start < seconds:
            walks = now - walked >= WALK_SECONDS
            walked = now if walks else walked
            try:
                verifier.turn(walks=walks)
            except psycopg.Error as error:
                raise explain(error) from None
            if samples and all(verifier.tally.total(scale)[1] >= samples for scale in verifier.tally.scales):
                break
            time.sleep(max(0.0, min(TURN_SECONDS, start + seconds - time.monotonic())))
    return time.monotonic() - start


def _tracer(file: IO[str] | None, *, reveal: bool) -> Any:
    """Writes a violation with what was seen of its entity: versions and headers, never a value."""

    def write(name: Name, found: dict[str, Any], trace: list[dict[str, Any]]) -> None:
        if file is None:
            return
        subject = {"id": name.id} if reveal else {}
        line = {"entity": name.entity, "fingerprint": fingerprint(*name).hex(), **subject, **found, "trace": trace}
        file.write(json.dumps(line) + "\n")
        file.flush()

    return write


def _patient(walk: Walk) -> Any:
    """A Redis that does not answer is no reason to end: that is looked at as well."""
    from redis.exceptions import RedisError

    def names() -> list[Name]:
        try:
            return walk.names()
        except (RedisError, OSError) as error:
            raise TierError("scan") from error

    return names


@contextmanager
def _open_tier(loaded: Settings) -> Iterator[Opened]:
    """The tier and a client, closed afterwards; foreign errors in words of ours.

    Raises:
        ConfigError: RLY-201, RLY-208.
        UnreachableError: RLY-305.
    """
    url, namespace = require_redis(loaded), loaded.redis.namespace
    try:
        import redis

        from relay.cache.redis import RedisShared
    except ModuleNotFoundError as error:
        what = f"`relay cache` needs the package {error.name}"
        raise ConfigError("RLY-208", what, "pip install 'relay[cache]'") from None
    try:
        tier = RedisShared.from_url(
            url, namespace, timeout_seconds=TIMEOUT_SECONDS, connect_timeout_seconds=TIMEOUT_SECONDS
        )
        client = redis.Redis.from_url(url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS)
    except CacheError as error:
        raise ConfigError("RLY-203", f"redis.url: {error.message}", "write redis://host:6379/0") from None
    except Exception:
        # The text may repeat the URL.
        raise ConfigError("RLY-203", "redis.url is no URL of Redis", "write redis://host:6379/0") from None
    try:
        _try(tier)
        yield Opened(tier, client, namespace)
    except (TierError, redis.RedisError, OSError) as error:
        reason = error.reason if isinstance(error, TierError) else "connection"
        raise UnreachableError("RLY-305", f"Redis does not answer: {reason}", "check RELAY_REDIS_URL") from None
    finally:
        tier.close()
        client.close()


def _try(tier: RedisShared) -> None:
    """Asks once, since some options are looked at by the first command only."""
    from redis.exceptions import RedisError

    try:
        tier.progress()
    except (TierError, RedisError, OSError):
        raise
    except Exception as error:
        what = f"redis.url has an option that cannot be used: {type(error).__name__}"
        raise ConfigError("RLY-203", what, "write redis://host:6379/0") from None


@contextmanager
def _tail(loaded: Settings, topic: str) -> Iterator[Tail | None]:
    """The end of the topic; None without Kafka in the settings."""
    if not loaded.kafka.get("bootstrap.servers"):
        yield None
        return
    tail = Tail(require_kafka(loaded), topic)
    try:
        yield tail
    finally:
        tail.close()


def _lags(loaded: Settings, topic: str, progress: Progress) -> dict[tuple[str, int], int | None] | None:
    with _tail(loaded, topic) as tail:
        return None if tail is None else behind(progress, tail.ends)


def _status(progress: Progress, found: Survey, lags: dict[tuple[str, int], int | None] | None) -> dict[str, Any]:
    """The shape of `--json`: names are an interface, and are only added to."""
    places = sorted({*progress.offsets, *(lags or ())})
    return {
        "open": progress.epoch is not None,
        "epoch": progress.epoch.hex() if progress.epoch else None,
        "behind": None if lags is None else total(lags.values()),
        "partitions": [
            {
                "topic": place[0],
                "partition": place[1],
                "offset": progress.offsets.get(place),
                "behind": (lags or {}).get(place),
            }
            for place in places
        ],
        "records": [
            {"kind": name, "sampled": kind.records, "bytes": kind.bytes // max(1, kind.records)}
            for name, kind in found.kinds.items()
        ],
        "complete": found.is_whole,
    }


def _status_text(data: dict[str, Any]) -> str:
    """For a person, 80 columns wide."""
    epoch = (
        f"open, epoch {data['epoch']}" if data["open"] else "closed: nothing in it is served; is a consumer running?"
    )
    lines = [f"tier      {epoch}"]
    if data["behind"] is not None:
        lines.append(f"behind    {data['behind']:,} events are not applied yet")
    for one in data["partitions"]:
        offset = "nothing applied" if one["offset"] is None else f"{one['offset']:,} applied"
        lag = "" if one["behind"] is None else f", {one['behind']:,} behind"
        lines.append(f"          {one['topic']}/{one['partition']}: {offset}{lag}")
    lines.append("records   " + ("all of them" if data["complete"] else "a sample"))
    lines += [
        f"{one['sampled']:>12,}  {one['kind']:9}  {one['bytes']:,} bytes each"
        for one in data["records"]
        if one["sampled"]
    ]
    return "\n".join(lines)
