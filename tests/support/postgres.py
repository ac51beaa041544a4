"""Databases for tests: real servers, one per major and session, started when first asked for.

A database per test is cheap because it is copied from a template that was migrated once. Tests that kill,
stop or fill a server take a private one: a shared server that recovers from a crash would fail its
neighbours.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from relay.demo.postgres import EmbeddedPostgres

TEMPLATE = "relay_template"

ONE_MAJOR = (pytest.param(16, marks=pytest.mark.faults, id="pg16"), pytest.param(18, id="pg18"))
"""For what hardly depends on the major and takes long: `make test` takes the newest, `make faults` both."""

_servers: dict[int, EmbeddedPostgres] = {}
_migrated: set[int] = set()
_numbers = itertools.count(1)


def server(version: int = 18) -> EmbeddedPostgres:
    """The session's shared server of this major. Never kill it: take a `private_server` for that."""
    if version not in _servers:
        started = EmbeddedPostgres(version, settings={"max_connections": "200"})
        started.start()
        _servers[version] = started
    return _servers[version]


@contextmanager
def private_server(
    version: int = 18, *, settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[EmbeddedPostgres]:
    """A server of one's own, for tests that break it."""
    with EmbeddedPostgres(version, settings=settings) as own:
        yield own


def fresh_database(on: EmbeddedPostgres) -> str:
    """The DSN of a new database with the relay's schema in it."""
    _ensure_template(on)
    return _create(on, TEMPLATE)


def bare_database(on: EmbeddedPostgres) -> str:
    """The DSN of a new database without any schema."""
    return _create(on, "template1")


def drop_database(on: EmbeddedPostgres, dsn: str) -> None:
    """Drops it under whoever is still connected: a test that failed leaves connections behind."""
    name = urlsplit(dsn).path.lstrip("/")
    _run(on, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def close_servers() -> None:
    """Ends every shared server."""
    _migrated.clear()
    while _servers:
        _servers.popitem()[1].close()


def _ensure_template(on: EmbeddedPostgres) -> None:
    """Migrates the template once per server; a half-migrated one is dropped, not kept for the next test."""
    from relay.schema.install import upgrade

    if on.port in _migrated:
        return
    _run(on, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
    try:
        upgrade(on.dsn(TEMPLATE))
    except BaseException:
        drop_database(on, on.dsn(TEMPLATE))
        raise
    _migrated.add(on.port)


def _create(on: EmbeddedPostgres, template: str) -> str:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    _run(on, statement.format(sql.Identifier(name), sql.Identifier(template)))
    return on.dsn(name)


def _run(on: EmbeddedPostgres, statement: sql.Composable) -> None:
    with psycopg.connect(on.dsn(), autocommit=True) as connection:
        connection.execute(statement)
