"""Checked by `mypy --strict`, never run: what a type checker knows of versioned rows and keys, and of sessions."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import assert_type

from sqlalchemy import ColumnElement, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from relay.cache import AsyncCache, Cache, Need, OpenSession, Read, Strong, Versioned
from relay.outbox import VersionedRow, current_version, get_versioned, touch, wrote_on_commit


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


def version_of(id: int) -> int:  # noqa: A002
    return id


async def version_of_async(id: int) -> int:  # noqa: A002
    return id


def rows(session: Session, reads: OpenSession) -> None:
    assert_type(get_versioned(session, User, 1), VersionedRow[User])
    assert_type(get_versioned(session, User, 1, entity="user").value, User | None)
    assert_type(current_version("user", User.id), ColumnElement[int])
    select(User, current_version("user", 7))
    wrote_on_commit(session, reads)
    wrote_on_commit(session, reads, "user", 1, touch(session, "user", 1))
    wrote_on_commit(session, reads, "user")  # type: ignore[call-overload]


async def rows_async(session: AsyncSession, reads: OpenSession) -> None:
    assert_type(get_versioned(session, User, 1), Awaitable[VersionedRow[User]])
    wrote_on_commit(session, reads, "user", 1, await touch(session, "user", 1))


def keys(cache: Cache) -> None:
    @cache.versioned("user", versions=version_of, hard_ttl=600)
    def user(id: int, need: Need) -> Versioned[str | None]:  # noqa: A002
        return Versioned(None, 1)

    assert_type(user(1), str | None)
    assert_type(user.read(1, policy=Strong()), Read[str | None])
    assert_type(user.many([1]), dict[int, str | None])
    user("1")  # type: ignore[arg-type]
    cache.versioned("user", versions=version_of_async)  # type: ignore[arg-type]
    with cache.session("token") as session:
        assert_type(session.token(), str)


async def keys_async(cache: AsyncCache) -> None:
    @cache.versioned("user", versions=version_of_async)
    async def user(id: int, need: Need) -> Versioned[str]:  # noqa: A002
        return Versioned("", 1)

    assert_type(await user(1), str)
    assert_type(await user.many([1]), dict[int, str])
    async with cache.session() as session:
        session.wrote("user", 1, 7)
