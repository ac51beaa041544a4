"""What `track` adds to a flush of 10,000 changed objects: the flush alone and tracked, in turn, in one process."""

from __future__ import annotations

import gc
import time
from typing import Any

from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from relay.demo.postgres import EmbeddedPostgres
from relay.outbox import track, untrack
from relay.schema.install import upgrade
from tests.bench.parts import SCALE, execute, median, report

OBJECTS = max(100, round(10_000 * SCALE))
ROUNDS = 9
KINDS = ("update", "insert", "delete")


class Base(DeclarativeBase):
    pass


class Account(Base):
    """As small as a mapped class can be: the flush alone has the least to do."""

    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    balance: Mapped[int] = mapped_column(default=0)


class Sent:
    """How many statements an engine has sent; a batch of parameters is one."""

    def __init__(self, engine: Engine) -> None:
        self.count = 0
        event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, *_: Any) -> None:
        self.count += 1


def flush(engine: Engine, sent: Sent, kind: str) -> tuple[float, int]:
    """Milliseconds and statements of one flush, which is committed."""
    with Session(engine) as session:
        if kind == "insert":
            session.add_all([Account(owner="somebody") for _ in range(OBJECTS)])
        else:
            accounts = session.scalars(select(Account).order_by(Account.id.desc()).limit(OBJECTS)).all()
            for account in accounts:
                if kind == "update":
                    account.balance += 1
                else:
                    session.delete(account)
        session.connection()
        gc.collect()
        before, start = sent.count, time.perf_counter()
        session.flush()
        took = (time.perf_counter() - start) * 1000
        statements = sent.count - before
        session.commit()
    return took, statements


def rounds(engine: Engine, dsn: str) -> dict[tuple[str, bool], list[tuple[float, int]]]:
    """Each kind, alone and tracked, over and over; who comes first changes from round to round."""
    sent = Sent(engine)
    found: dict[tuple[str, bool], list[tuple[float, int]]] = {}
    for number in range(ROUNDS + 1):
        for is_tracked in (number % 2 == 0, number % 2 == 1):
            (track if is_tracked else untrack)(Account)
            for kind in ("insert", "update", "delete"):
                took = flush(engine, sent, kind)
                if number:  # the first round fills caches
                    found.setdefault((kind, is_tracked), []).append(took)
            execute(dsn, "TRUNCATE relay.outbox", "VACUUM account", "VACUUM relay.entity_version", "CHECKPOINT")
    untrack(Account)
    return found


def tracking() -> None:
    """The bar: at most 1.25 times the flush, and one statement more."""
    settings = {"shared_buffers": "512MB", "max_wal_size": "8GB"}
    with EmbeddedPostgres(18, settings=settings) as postgres:
        dsn = postgres.dsn()
        upgrade(dsn)
        engine = create_engine(dsn.replace("postgresql://", "postgresql+psycopg://"))
        Base.metadata.create_all(engine)
        found = rounds(engine, dsn)
        engine.dispose()
    for kind in KINDS:
        alone, tracked = found[kind, False], found[kind, True]
        ratio = median([ours[0] / theirs[0] for ours, theirs in zip(tracked, alone, strict=True)])
        more = max(ours[1] - theirs[1] for ours, theirs in zip(tracked, alone, strict=True))
        report(
            f"{kind} of {OBJECTS:,} objects, tracked",
            f"{median([took for took, _ in tracked]):.0f} ms, +{more} statement",
            f"flush alone {median([took for took, _ in alone]):.0f} ms",
            ratio,
            "<= 1.25",
            ratio <= 1.25 and more <= 1,
        )
