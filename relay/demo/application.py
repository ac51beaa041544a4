"""The application of the demo: accounts, transfers between them, and an event for each change. A process of its own.

This is what a service with an outbox looks like: plain SQLAlchemy, and one more line per change, in the same
transaction. Everything else here is bookkeeping, so that a checker can decide afterwards: each transaction becomes
one line of JSON on stdout, with what was written and how it ended.

    python -m relay.demo.application        DEMO_DATABASE, DEMO_TOPIC and DEMO_RATE in the environment

It stops when a line comes in on stdin, or its end.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import BigInteger, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from relay.demo.history import Outcome, digest
from relay.outbox import touch

THREADS: Final = 3
ACCOUNTS: Final = 40
HOT: Final = 3
"""Half of all changes go to these few accounts."""
ROLLED_BACK: Final = 0.05
TRANSFERS: Final = 0.3

#: The event that this session has just written, to be compared with what arrives.
LAST_EVENT: Final = text("""\
SELECT event_id::text, key, payload, headers FROM relay.outbox
WHERE lane = ANY (ARRAY(SELECT lane FROM relay.lane)) AND id = currval('relay.outbox_id_seq')""")


class Base(DeclarativeBase):
    """The application's tables."""


class Account(Base):
    """One account. `revision` counts its committed changes: the order that its events must have."""

    __tablename__ = "account"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    balance: Mapped[int] = mapped_column(default=0)
    revision: Mapped[int] = mapped_column(default=0)


@dataclass(slots=True)
class Journal:
    """What one transaction wrote: event id, key, sequence and digest of each event."""

    events: list[tuple[str, str, int, str]] = field(default_factory=list)

    def note(self, session: Session, revision: int) -> None:
        """Notes the event that was written last."""
        event_id, key, payload, headers = session.execute(LAST_EVENT).one()
        parts = iter(headers.split("\x1f"))
        pairs = [(name, value.encode()) for name, value in zip(parts, parts, strict=False)]
        self.events.append((event_id, key, revision, digest(payload, pairs)))


def change(session: Session, journal: Journal, topic: str, id_: int, amount: int) -> None:
    """One account's change and its event. The row lock is held until the transaction ends."""
    account = session.get_one(Account, id_, with_for_update=True)
    account.balance += amount
    account.revision += 1
    session.flush()
    touch(session, "account", id_, topic=topic)
    journal.note(session, account.revision)


def pick(draw: random.Random) -> int:
    """An account, often one of the hot ones."""
    return draw.randrange(HOT) if draw.random() < 0.5 else draw.randrange(ACCOUNTS)


def transact(engine: Engine, draw: random.Random, topic: str) -> None:
    """One business transaction, written into the journal with its outcome."""
    amount = draw.randrange(1, 100)
    changes = {pick(draw): amount}
    if draw.random() < TRANSFERS:
        changes.setdefault(pick(draw), -amount)
    journal = Journal()
    outcome: Outcome = "rolled_back"
    at = time.time()
    try:
        with Session(engine) as session:
            for id_, each in sorted(changes.items()):
                change(session, journal, topic, id_, each)
            if draw.random() >= ROLLED_BACK:
                at = time.time()
                # From here until the answer nobody knows: a connection that breaks in between tells nothing.
                outcome = "unknown"
                session.commit()
                outcome = "committed"
    finally:
        if journal.events:
            say({"at": at, "outcome": outcome, "events": journal.events})


_saying = threading.Lock()


def say(message: dict[str, Any]) -> None:
    """One line, whole."""
    with _saying:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def write(engine: Engine, topic: str, rate: float, stop: threading.Event) -> None:
    """One writer thread: `rate` transactions a second, waiting when the database is away."""
    draw = random.Random()  # noqa: S311
    due = time.monotonic()
    while not stop.is_set():
        try:
            transact(engine, draw, topic)
        except DBAPIError:
            engine.dispose()
            stop.wait(0.1)
        # What could not be written meanwhile is not made up for: the rate is a rate, not a quota.
        due = max(due + 1 / rate, time.monotonic() - 0.1)
        stop.wait(max(0.0, due - time.monotonic()))


def main() -> None:
    """Creates the accounts, says that it is ready, and writes until it is told to stop."""
    topic, rate = os.environ["DEMO_TOPIC"], float(os.environ["DEMO_RATE"])
    engine = create_engine(os.environ["DEMO_DATABASE"], pool_size=THREADS)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Account(id=number) for number in range(ACCOUNTS))
        session.commit()
    stop = threading.Event()
    arguments = (engine, topic, rate / THREADS, stop)
    threads = [threading.Thread(target=write, args=arguments, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    sys.stdin.readline()
    stop.set()
    for thread in threads:
        thread.join(5)


if __name__ == "__main__":
    main()
