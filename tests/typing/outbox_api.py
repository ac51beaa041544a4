"""Checked by `mypy --strict`, never run: what a type checker knows of the write side.

An `ignore` below is a statement too: strict mypy reports it as unused when the wrong call becomes acceptable.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, assert_type
from uuid import UUID

import psycopg
from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from relay.outbox import Event, emit, emit_many, touch

EVENTS = [Event("t", "k", b"x"), Event("t", None, None, {"a": "b"})]


def at_once(
    session: Session,
    scoped: scoped_session[Session],
    connection: Connection,
    driver: psycopg.Connection[dict[str, Any]],
    cursor: psycopg.Cursor[tuple[int, str]],
) -> None:
    assert_type(emit(session, "t", key="k", payload={"a": 1}), UUID)
    assert_type(emit(scoped, "t", key=None, payload=[1]), UUID)
    assert_type(emit(connection, "t", key="k", payload="text"), UUID)
    assert_type(emit(driver, "t", key="k", payload=b"bytes"), UUID)
    assert_type(emit(cursor, "t", key="k", payload=None, headers={"a": "b"}), UUID)
    assert_type(emit_many(session, EVENTS), list[UUID])
    assert_type(emit_many(driver, iter(EVENTS), lock_keys=False), list[UUID])
    assert_type(touch(session, "user", 7), int)
    assert_type(touch(connection, "user", "7", "deleted"), int)
    assert_type(touch(cursor, "user", UUID(int=7), topic="t", payload={"a": 1}), int)


async def awaited(
    session: AsyncSession,
    scoped: async_scoped_session[AsyncSession],
    connection: AsyncConnection,
    driver: psycopg.AsyncConnection[dict[str, Any]],
    cursor: psycopg.AsyncCursor[Any],
) -> None:
    assert_type(emit(session, "t", key="k", payload={"a": 1}), Awaitable[UUID])
    assert_type(emit(scoped, "t", key="k", payload={"a": 1}), Awaitable[UUID])
    assert_type(await emit(connection, "t", key="k", payload=None), UUID)
    assert_type(await emit(driver, "t", key="k", payload=None), UUID)
    assert_type(await emit(cursor, "t", key="k", payload=None), UUID)
    assert_type(await emit_many(session, EVENTS), list[UUID])
    assert_type(await touch(driver, "user", 7), int)
    assert_type(touch(connection, "user", 7), Awaitable[int])


def refused(session: Session, engine: Engine, async_engine: AsyncEngine) -> None:
    emit(engine, "t", key="k", payload=None)  # type: ignore[call-overload]
    emit(async_engine, "t", key="k", payload=None)  # type: ignore[call-overload]
    emit(session, "t", key=7, payload=None)  # type: ignore[call-overload]
    emit(session, "t", key="k", payload=7)  # type: ignore[call-overload]
    emit(session, "t", payload=None)  # type: ignore[call-overload]
    touch(session, "user", 1.5)  # type: ignore[call-overload]
    touch(session, "user", b"7")  # type: ignore[call-overload]
