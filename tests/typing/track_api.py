"""Checked by `mypy --strict`, never run: what a type checker knows of `track`."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import datetime
from typing import assert_type

from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session

from relay.outbox import Change, touch_many, track, untrack, version_of


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    gone_at: Mapped[datetime | None]


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


def accepted(session: Session, scoped: scoped_session[Session]) -> None:
    track(User)
    track(User, entity="person", topic="people", columns=[User.name, "gone_at"], deleted=User.gone_at)
    track(
        User, ignore=["name"], payload=lambda user: {"name": user.name}, deleted=lambda user: user.gone_at is not None
    )
    track(User, Order, topic="t", deleted="gone_at")
    untrack(User, Order)
    assert_type(version_of(session, User()), int | None)
    assert_type(version_of(scoped, User()), int | None)
    assert_type(touch_many(session, [Change("user", 1), Change("user", "2", "deleted", "t", {"a": 1})]), list[int])


async def awaited(session: AsyncSession, scoped: async_scoped_session[AsyncSession]) -> None:
    assert_type(version_of(session, User()), int | None)
    assert_type(version_of(scoped, User()), int | None)
    assert_type(touch_many(session, [Change("user", 1)], headers={"a": "b"}), Awaitable[list[int]])


def refused() -> None:
    track(User, Order, entity="thing")  # type: ignore[call-overload]
    track(User())  # type: ignore[call-overload]
    track(User, columns=[7])  # type: ignore[list-item]
    track(User, deleted=7)  # type: ignore[call-overload]
    Change(7, "user")  # type: ignore[arg-type]
