"""What `track` adds to a flush of 10,000 changed objects: the flush alone and tracked, in turn, in one process."""

from __future__ import annotations

import gc
import itertools
import time
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from relay.demo.postgres import EmbeddedPostgres
from relay.outbox import track, untrack
from relay.schema.install import upgrade
from tests.bench.parts import SCALE, execute, median, report

OBJECTS = max(100, round(10_000 * SCALE))
ROUNDS = 9
KINDS = ("insert", "update", "delete")


class Base(DeclarativeBase):
    pass


class Counter(Base):
    """As small as a mapped class can be: its flush alone has the least to do."""

    __tablename__ = "counter"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    balance: Mapped[int] = mapped_column(default=0)


class Person(Base):
    """As mapped classes usually are: some columns, a unique one, and the times that SQLAlchemy fills in."""

    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    owner: Mapped[str]
    status: Mapped[str] = mapped_column(default="new")
    balance: Mapped[int] = mapped_column(default=0)
    note: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(default=datetime.now, onupdate=datetime.now)


numbers = itertools.count()


class Sent:
    """How many statements an engine has sent; a batch of parameters is one."""

    def __init__(self, engine: Engine) -> None:
        self.count = 0
        event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, *_: Any) -> None:
        self.count += 1


def change(session: Session, kind: str, cls: Any) -> None:
    """As many objects as are measured, changed and not flushed."""
    if kind == "insert":
        mails = [{"email": f"{next(numbers)}@example.org"} if cls is Person else {} for _ in range(OBJECTS)]
        session.add_all([cls(owner="somebody", **mail) for mail in mails])
        return
    for each in session.scalars(select(cls).order_by(cls.id.desc()).limit(OBJECTS)).all():
        if kind == "delete":
            session.delete(each)
        else:
            each.balance += 1
            if cls is Person:
                each.email = f"{next(numbers)}@example.org"


def flush(engine: Engine, sent: Sent, kind: str, cls: Any) -> tuple[float, int]:
    """Milliseconds and statements of one flush, which is committed."""
    with Session(engine) as session:
        change(session, kind, cls)
        session.connection()
        gc.collect()
        before, start = sent.count, time.perf_counter()
        session.flush()
        took = (time.perf_counter() - start) * 1000
        statements = sent.count - before
        session.commit()
    return took, statements


def rounds(engine: Engine, dsn: str, cls: Any) -> dict[tuple[str, bool], list[tuple[float, int]]]:
    """Each kind, alone and tracked, over and over; who comes first changes from round to round."""
    sent = Sent(engine)
    found: dict[tuple[str, bool], list[tuple[float, int]]] = {}
    for number in range(ROUNDS + 1):
        for is_tracked in (number % 2 == 0, number % 2 == 1):
            (track if is_tracked else untrack)(cls)
            for kind in KINDS:
                took = flush(engine, sent, kind, cls)
                if number:  # the first round fills caches
                    found.setdefault((kind, is_tracked), []).append(took)
            # As a relay and autovacuum leave the tables: empty, with pages to use again.
            execute(dsn, "DELETE FROM relay.outbox", "VACUUM")
    untrack(cls)
    return found


def tracking() -> None:
    """The bar: at most 1.25 times the flush, and one statement more."""
    settings = {"shared_buffers": "512MB", "max_wal_size": "8GB"}
    with EmbeddedPostgres(18, settings=settings) as postgres:
        dsn = postgres.dsn()
        upgrade(dsn)
        engine = create_engine(dsn.replace("postgresql://", "postgresql+psycopg://"))
        Base.metadata.create_all(engine)
        for cls in (Person, Counter):
            show(cls, rounds(engine, dsn, cls))
        engine.dispose()


def show(cls: Any, found: dict[tuple[str, bool], list[tuple[float, int]]]) -> None:
    """A line for each kind."""
    for kind in KINDS:
        alone, tracked = found[kind, False], found[kind, True]
        ratio = median([ours[0] / theirs[0] for ours, theirs in zip(tracked, alone, strict=True)])
        more = max(ours[1] - theirs[1] for ours, theirs in zip(tracked, alone, strict=True))
        report(
            f"{kind} of {OBJECTS:,} {cls.__name__}, tracked",
            f"{median([took for took, _ in tracked]):.0f} ms, +{more} statement",
            f"flush alone {median([took for took, _ in alone]):.0f} ms",
            ratio,
            "<= 1.25",
            ratio <= 1.25 and more <= 1,
        )
