"""Redis servers for tests: a shared one with a namespace per test, private ones for tests that break them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from relay.demo.redis import EmbeddedRedis

_shared: list[EmbeddedRedis] = []
_numbers = itertools.count(1)


def shared_server() -> EmbeddedRedis:
    """The session's server. Never kill, flush or fill it: take a `private_server` for that."""
    if not _shared:
        server = EmbeddedRedis()
        server.start()
        _shared.append(server)
    return _shared[0]


def close_shared_server() -> None:
    """Ends it, if it was ever started."""
    while _shared:
        _shared.pop().close()


@contextmanager
def private_server(settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[EmbeddedRedis]:
    """A server of one's own, for tests that break it."""
    with EmbeddedRedis(settings=settings) as own:
        yield own


def fresh_namespace() -> str:
    """A namespace that nobody has used on the shared server."""
    return f"test-{os.getpid()}-{next(_numbers)}"
