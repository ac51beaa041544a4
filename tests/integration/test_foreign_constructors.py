"""What the constructor of a client raises is one line with a code, of whatever class it is: settings reach it."""

from __future__ import annotations

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from relay.cache import Local
from relay.cache.redis import AsyncRedisShared, RedisShared
from relay.cache.tiers import TierError
from relay.consumer import Consumer, Feed
from relay.errors import CacheError, ConfigError
from tests.support.commands import relay

#: A way to log in for which confluent-kafka imports a package that it does not bring.
BY_CLOUD = {
    "security.protocol": "sasl_ssl",
    "sasl.mechanism": "OAUTHBEARER",
    "sasl.oauthbearer.method": "oidc",
    "sasl.oauthbearer.metadata.authentication.type": "aws_iam",
    "sasl.oauthbearer.config": "region=eu-west-1 audience=kafka",
}
SERVERS = {"RELAY_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}

COMMANDS = [
    ("config", "check"), ("doctor",), ("run",), ("explain", "--key", "k"), ("cache", "status"), ("cache", "verify"),
    ("status",), ("top", "--once"),
]  # fmt: skip


def said(*arguments: str, **settings: str) -> tuple[int, str]:
    ended = relay(*arguments, settings=settings)
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode, " ".join((ended.stdout + ended.stderr).split())


@pytest.fixture
def parts(database, redis_url) -> dict[str, str]:
    return {"RELAY_DATABASE_URL": database, "RELAY_REDIS_URL": redis_url, **SERVERS}


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("properties", "named"),
    [
        (BY_CLOUD, "oauthbearer-aws"),
        ({"security.protocol": "sasl_ssl", "sasl.mechanism": "nonsense"}, "SASL mechanism"),
    ],
    ids=["a package that is not there", "a mechanism that is not there"],
)
def test_a_login_that_cannot_be_made_is_a_setting_to_correct(parts, arguments, properties, named):
    """`status` and `top` show the database all the same, and why Kafka was not asked."""
    variables = {f"RELAY_KAFKA__{name.upper().replace('.', '_')}": value for name, value in properties.items()}
    status, text = said(*arguments, **parts, **variables)
    assert "RLY-206" in text
    assert named in text
    assert status == {"doctor": 1, "status": 0, "top": 0}.get(arguments[0], 6)


@pytest.mark.parametrize("make", [Consumer, Feed])
def test_consumers_and_feeds_say_so_when_they_start(make):
    with pytest.raises(ConfigError, match=r"RLY-206: .*oauthbearer-aws"):
        make(
            kafka={"bootstrap.servers": "127.0.0.1:1", **BY_CLOUD}, topics=["t"],
            **({"group": "g"} if make is Consumer else {"local": Local()}),
        ).start()  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:1/0?foo=bar",
        "redis://h..x:1/0",
        "unix://",
        "redis://127.0.0.1:99999/0",
        "http://x",
        "redis://127.0.0.1:1/0?retry_on_error=x",
        "rediss://127.0.0.1:1/0?ssl_cert_reqs=bad",
    ],
)
def test_a_url_of_redis_that_cannot_be_used(database, url):
    """Found when the client is made, when it makes a connection, or when that resolves the host."""
    status, text = said("cache", "status", RELAY_DATABASE_URL=database, RELAY_REDIS_URL=url)
    assert text.startswith(("RLY-203: redis.url", "RLY-305"))
    assert status in (3, 6)


@pytest.mark.parametrize(("tier", "client"), [(RedisShared, Redis), (AsyncRedisShared, AsyncRedis)])
def test_a_shared_tier_refuses_a_client_that_can_make_no_connection(tier, client):
    """When it is put together, not in the first read."""
    with pytest.raises(CacheError, match=r"RLY-903: .*foo"):
        tier(client.from_url("redis://127.0.0.1:1/0", foo="bar"), "ns")


def test_a_host_that_cannot_be_one_is_a_sick_tier():
    """A shared tier raises TierError and nothing else."""
    with pytest.raises(TierError, match="connection"):
        RedisShared.from_url("redis://h..x:1/0", "ns").progress()


@pytest.mark.parametrize("host", ["h..x", "a" * 70 + ".example"])
def test_a_host_of_postgres_that_cannot_be_one(host):
    """psycopg resolves it itself, and Python refuses the name."""
    status, text = said("status", RELAY_DATABASE_URL=f"postgresql://u:geheim@{host}/d")
    assert text.startswith("RLY-203: database.url")
    assert status == 6
    assert "geheim" not in text
