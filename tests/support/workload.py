"""Writers: many small transactions on few keys, as unkind as real ones, and a journal of what they know they did.

Few keys, because many keys hide a wrong order. A key belongs to one of three kinds, by who keeps its order:

    t:N   relay.touch          the entity's version is the sequence
    a:N   the application      locks a row of its own first, raises the number in it, then calls relay.emit
    r:N   relay.emit alone     the number is raised after emit, so only relay's own lock can have ordered the writers

In each kind the number is drawn under the lock that decides the order, and the lock is held until the commit: the
journal's sequence is the commit order, and not by the relay's account.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import psycopg

from relay.demo.history import Outcome, Written, digest

SEPARATOR = "\x1f"

SCHEMA = """\
CREATE TABLE IF NOT EXISTS writer_sequence (key text PRIMARY KEY, n bigint NOT NULL);
ALTER TABLE writer_sequence SET (fillfactor = 50)"""


@dataclass(frozen=True, slots=True)
class Mix:
    """How often a transaction is of which kind, and how fast each writer goes."""

    per_second: float = 60.0
    several: float = 0.2
    unsorted: float = 0.05
    late: float = 0.1
    late_seconds: float = 0.05
    rollback: float = 0.05
    savepoint: float = 0.05
    tombstone: float = 0.05
    headers: float = 0.2
    large: float = 0.005
    keyless: float = 0.03
    prepares: bool = True
    """Whether the driver may prepare statements, which old poolers in transaction mode cannot take."""


@dataclass(slots=True)
class Draft:
    """An event of a transaction that is still open."""

    event_id: str
    topic: str
    key: str | None
    sequence: int
    digest: str
    survives: bool = True


@dataclass(slots=True)
class Journal:
    """What one writer did. Events without a key owe no order and are kept apart."""

    written: list[Written] = field(default_factory=list)
    keyless: dict[str, tuple[str, Outcome]] = field(default_factory=dict)
    unknown: int = 0
    deadlocks: int = 0
    losses: int = 0

    def enter(self, drafts: Sequence[Draft], outcome: Outcome) -> None:
        """Writes down a transaction that has ended."""
        for draft in drafts:
            ended: Outcome = outcome if draft.survives else "rolled_back"
            if draft.key is None:
                self.keyless[draft.event_id] = (draft.digest, ended)
                continue
            self.written.append(
                Written(draft.event_id, draft.topic, draft.key.encode(), draft.sequence, draft.digest, ended)
            )

    def joined(self, *others: Journal) -> Journal:
        """This one and others in one."""
        total = Journal()
        for journal in (self, *others):
            total.written += journal.written
            total.keyless |= journal.keyless
            total.unknown += journal.unknown
            total.deadlocks += journal.deadlocks
            total.losses += journal.losses
        return total


def prepare(dsn: str, keys: Sequence[str]) -> None:
    """Creates the application's side: one row per key."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SCHEMA)
        connection.execute(
            "INSERT INTO writer_sequence SELECT unnest(%s::text[]), 0 ON CONFLICT DO NOTHING", [list(keys)]
        )


def key_names(count: int) -> list[str]:
    """Names of keys, hottest first; the kinds take turns."""
    return [f"{'tar'[number % 3]}:{number}" for number in range(count)]


def weights(count: int) -> list[float]:
    """Zipf's law with the exponent at which the first of 40 keys gets a tenth."""
    return [(rank + 1) ** -0.6 for rank in range(count)]


class Writer(threading.Thread):
    """One connection, one journal, one generator of random draws. It reconnects for as long as it has to."""

    def __init__(
        self,
        dsn: str,
        seed: str,
        topics: Sequence[str],
        keys: Sequence[str],
        mix: Mix,
        *,
        transactions_max: int | None = None,
    ) -> None:
        super().__init__(name=f"writer-{seed}", daemon=True)
        self.journal = Journal()
        self.failure: BaseException | None = None
        self.committed = 0
        self._dsn = dsn
        self._draw = random.Random(seed)
        self._topics = topics
        self._keys = keys
        self._weights = weights(len(keys))
        self._mix = mix
        self._left = transactions_max
        self._stopping = threading.Event()
        self._connection: psycopg.Connection | None = None

    def stop(self) -> None:
        """Ends after the transaction at hand."""
        self._stopping.set()

    def run(self) -> None:
        try:
            while not self._stopping.is_set() and self._left != 0:
                started = time.monotonic()
                self._transaction()
                if self._left is not None:
                    self._left -= 1
                pause = self._draw.expovariate(self._mix.per_second) - (time.monotonic() - started)
                if pause > 0:
                    self._stopping.wait(pause)
        except BaseException as error:
            self.failure = error
        finally:
            if self._connection is not None:
                self._connection.close()

    def _transaction(self) -> None:
        """One transaction to its end, whichever; what a broken connection leaves open is journalled as unknown."""
        drafts: list[Draft] = []
        try:
            connection = self._connected()
        except psycopg.OperationalError:
            self._stopping.wait(0.05)
            return
        try:
            self._write(connection, drafts)
        except psycopg.errors.DeadlockDetected:
            # As every application must: the database has rolled back, and the next draw is the retry.
            self.journal.deadlocks += 1
            connection.rollback()
            self.journal.enter(drafts, "rolled_back")
            return
        except psycopg.OperationalError:
            # No COMMIT was sent, so there was none.
            self._lose(drafts, "rolled_back")
            return
        if self._draw.random() < self._mix.late:
            time.sleep(self._draw.random() * 2 * self._mix.late_seconds)
        is_rollback = self._draw.random() < self._mix.rollback
        try:
            if is_rollback:
                connection.rollback()
            else:
                connection.commit()
        except psycopg.OperationalError:
            self._lose(drafts, "rolled_back" if is_rollback else "unknown")
            return
        self.journal.enter(drafts, "rolled_back" if is_rollback else "committed")
        self.committed += not is_rollback

    def _connected(self) -> psycopg.Connection:
        if self._connection is None:
            self._connection = psycopg.connect(self._dsn, connect_timeout=5)
            if not self._mix.prepares:
                self._connection.prepare_threshold = None
        return self._connection

    def _lose(self, drafts: Sequence[Draft], outcome: Outcome) -> None:
        self.journal.enter(drafts, outcome)
        self.journal.unknown += outcome == "unknown"
        self.journal.losses += 1
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _write(self, connection: psycopg.Connection, drafts: list[Draft]) -> None:
        draw, mix = self._draw, self._mix
        if draw.random() < mix.keyless:
            drafts.append(self._emit(connection, None, 0))
        count = draw.randrange(2, 5) if draw.random() < mix.several else 1
        keys = list(dict.fromkeys(draw.choices(self._keys, self._weights, k=count)))
        if draw.random() >= mix.unsorted:
            keys.sort()
        drafts.extend(self.event(connection, key) for key in keys)
        if draw.random() < mix.savepoint:
            connection.execute("SAVEPOINT s")
            doomed = self.event(connection, keys[-1])
            drafts.append(doomed)
            connection.execute("ROLLBACK TO SAVEPOINT s")
            doomed.survives = False
            drafts.append(self.event(connection, keys[-1]))

    def event(self, connection: psycopg.Connection, key: str) -> Draft:
        """One event of the key's kind, with its place in the key's order."""
        kind = key[0]
        if kind == "t":
            return self._touch(connection, key)
        if kind == "a":
            return self._emit(connection, key, self._raise(connection, key))
        draft = self._emit(connection, key, 0)
        draft.sequence = self._raise(connection, key)
        return draft

    def _raise(self, connection: psycopg.Connection, key: str) -> int:
        """The next number of the key, under the lock of its row until the transaction ends."""
        return _one(connection, "UPDATE writer_sequence SET n = n + 1 WHERE key = %s RETURNING n", [key])[0]

    def _touch(self, connection: psycopg.Connection, key: str) -> Draft:
        entity, _, id_ = key.partition(":")
        topic = self._draw.choice(self._topics)
        payload = {"n": self._draw.randrange(1 << 30)}
        version = _one(
            connection,
            "SELECT relay.touch(%s, %s, 'updated', %s, %s::jsonb, %s::jsonb)",
            [entity, id_, topic, json.dumps(payload), json.dumps(self._headers())],
        )[0]
        # touch returns the version only: id, value and headers are read back from the row that it wrote.
        event_id, value, packed = _one(
            connection,
            "SELECT event_id::text, payload, headers FROM relay.outbox"
            " WHERE lane = relay.lane_of(%s) AND id = currval('relay.outbox_id_seq')",
            [key],
        )
        parts = packed.split(SEPARATOR)[:-1]
        headers = list(zip(parts[::2], (part.encode() for part in parts[1::2]), strict=True))
        said = json.loads(value)
        assert (said["version"], said["payload"], dict(headers)["version"]) == (
            version,
            payload,
            str(version).encode(),
        )
        return Draft(event_id, topic, key, version, digest(value, headers))

    def _emit(self, connection: psycopg.Connection, key: str | None, sequence: int) -> Draft:
        draw, mix = self._draw, self._mix
        topic, headers = draw.choice(self._topics), self._headers()
        chance = draw.random()
        value: bytes | None
        if chance < mix.tombstone:
            value, kind, content = None, "bytea", None
        elif chance < mix.tombstone + mix.large:
            value, kind, content = draw.randbytes(100_000), "bytea", "application/octet-stream"
        elif chance < 0.5:
            value, kind, content = b"value %d" % draw.randrange(1 << 30), "text", "text/plain; charset=utf-8"
        else:
            value, kind, content = draw.randbytes(draw.randrange(400)), "bytea", "application/octet-stream"
        given = value.decode() if kind == "text" and value is not None else value
        event_id = _one(
            connection,
            f"SELECT relay.emit(%s, %s, %s::{kind}, %s::jsonb)::text",
            [topic, key, given, json.dumps(headers)],
        )[0]
        expected = [(name, text.encode()) for name, text in headers.items()]
        expected += [("content-type", content.encode())] if content else []
        return Draft(event_id, topic, key, sequence, digest(value, expected))

    def _headers(self) -> dict[str, str]:
        if self._draw.random() >= self._mix.headers:
            return {}
        return {"trace": f"{self._draw.randrange(1 << 60):x}", "who": "ünïcode"}


def _one(connection: psycopg.Connection, query: str, parameters: list[object]) -> tuple:
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row


class Writers:
    """Several writers on the same keys, and one journal of all of them."""

    def __init__(
        self,
        dsn: str,
        seed: int,
        topics: Sequence[str],
        *,
        count: int = 4,
        keys: int = 40,
        mix: Mix | None = None,
        transactions_max: int | None = None,
    ) -> None:
        names = key_names(keys)
        prepare(dsn, names)
        self._dsn, self._seed, self._topics = dsn, seed, topics
        self._held: list[Held] = []
        self._writers = [
            Writer(dsn, f"{seed}/{index}", topics, names, mix or Mix(), transactions_max=transactions_max)
            for index in range(count)
        ]

    def start(self) -> None:
        for writer in self._writers:
            writer.start()

    @property
    def committed(self) -> int:
        """Transactions so far."""
        return sum(writer.committed for writer in self._writers)

    @property
    def is_alive(self) -> bool:
        """Whether any still writes."""
        return any(writer.is_alive() for writer in self._writers)

    def stop(self) -> None:
        """Ends all after the transaction at hand; raises what one of them died of."""
        for writer in self._writers:
            writer.stop()
        for writer in self._writers:
            writer.join(60)
            if writer.is_alive():
                raise TimeoutError(f"{writer.name} does not end")
            if writer.failure is not None:
                raise writer.failure

    def hold(self, keys: Sequence[str]) -> Held:
        """Opens a transaction beside the writers, on keys of its own; its journal counts with theirs."""
        held = Held(self._dsn, f"{self._seed}/held/{len(self._held)}", self._topics, keys)
        self._held.append(held)
        return held

    @property
    def journal(self) -> Journal:
        """All journals in one. The sequence orders events, so it does not matter in which order they stand."""
        return Journal().joined(*[one.journal for one in (*self._writers, *self._held)])


class Held:
    """A transaction with one event for each of these keys, which stays open until it is told how to end."""

    def __init__(self, dsn: str, seed: str, topics: Sequence[str], keys: Sequence[str]) -> None:
        prepare(dsn, keys)
        self.journal = Journal()
        self._connection = psycopg.connect(dsn, connect_timeout=5)
        self._writer = Writer(dsn, seed, topics, keys, Mix())
        self._drafts = [self._writer.event(self._connection, key) for key in keys]

    def commit(self) -> None:
        """Ends it; its events are visible when this returns."""
        self._end("committed")

    def rollback(self) -> None:
        """Ends it; its events never were."""
        self._end("rolled_back")

    def _end(self, outcome: Outcome) -> None:
        drafts, self._drafts = self._drafts, []
        try:
            if outcome == "committed":
                self._connection.commit()
            else:
                self._connection.rollback()
        except psycopg.OperationalError:
            outcome = "unknown" if outcome == "committed" else outcome
        self._connection.close()
        self.journal.enter(drafts, outcome)
