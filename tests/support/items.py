"""Things that change thousands of times a second: their table, who writes them, and how a loader reads them.

The row's value is its version, drawn in the transaction that writes the row: a copy whose value is not the version it
is kept under is one that was put together from two moments.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from typing import Any, Final, LiteralString

import psycopg

ENTITY: Final = "item"
BATCH: Final = 100
HOT: Final = 50
"""The first so many take every fourth change, and half of the reads."""

TABLE: Final = "CREATE TABLE item (id int PRIMARY KEY, value bigint NOT NULL) WITH (fillfactor = 50)"
FILL: Final = "INSERT INTO item SELECT n, 0 FROM generate_series(0, %s - 1) AS n"
TOUCH: Final = """\
SELECT relay.touch_many(array_fill('item'::text, ARRAY[n]), %(ids)s::text[], array_fill('updated'::text, ARRAY[n]),
                        array_fill(%(topic)s::text, ARRAY[n]), '{}'::jsonb[]) FROM cardinality(%(ids)s::text[]) AS n"""
UPDATE: Final = """\
UPDATE item SET value = new.value FROM unnest(%s::int[], %s::bigint[]) AS new (id, value) WHERE item.id = new.id"""
ROWS: Final[LiteralString] = """\
SELECT i.id, i.value, coalesce(v.version, 0) FROM item AS i
LEFT JOIN relay.entity_version AS v ON v.entity = 'item' AND v.id = i.id::text WHERE i.id = ANY (%s)"""


def draw_id(draw: random.Random, count: int, hot: float) -> int:
    """One of them; the hot ones with this probability."""
    return draw.randrange(min(HOT, count)) if draw.random() < hot else draw.randrange(count)


class Application(threading.Thread):
    """Writes so many versions a second, in transactions of a hundred, and reconnects for as long as it has to."""

    def __init__(self, dsn: str, topic: str, *, count: int, per_second: float, seed: str) -> None:
        super().__init__(name="application", daemon=True)
        self.committed = 0
        self.failure: BaseException | None = None
        self._dsn, self._topic, self._count, self._per_second = dsn, topic, count, per_second
        self._draw = random.Random(seed)
        self._stopping = threading.Event()
        with psycopg.connect(dsn) as connection:
            connection.execute(TABLE)
            connection.execute(FILL, [count])

    def stop(self) -> None:
        """Ends after the transaction at hand; raises what it died of."""
        self._stopping.set()
        self.join(60)
        if self.failure is not None:
            raise self.failure

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    with psycopg.connect(self._dsn, connect_timeout=5, autocommit=True) as connection:
                        self._write(connection)
                except psycopg.OperationalError:
                    # What the server has not acknowledged may be committed or not: the database is the truth here.
                    self._stopping.wait(0.1)
        except BaseException as error:
            self.failure = error

    def _write(self, connection: psycopg.Connection[Any]) -> None:
        began, written = time.monotonic(), 0
        while not self._stopping.is_set():
            ids = sorted({draw_id(self._draw, self._count, 0.25) for _ in range(BATCH)}, key=str)
            with connection.transaction():
                parameters = {"ids": [str(id_) for id_ in ids], "topic": self._topic}
                row = connection.execute(TOUCH, parameters).fetchone()
                assert row is not None
                connection.execute(UPDATE, [ids, row[0]])
            self.committed += len(ids)
            written += len(ids)
            ahead = written / self._per_second - (time.monotonic() - began)
            if ahead > 0:
                self._stopping.wait(ahead)
            elif ahead < -1:
                # A server that was away is not sent all at once what it has missed.
                began, written = time.monotonic(), 0


def rows(found: Sequence[tuple[int, int, int]]) -> dict[int, tuple[int, int]]:
    """Value and version by id.

    Raises:
        AssertionError: the statement did not read one moment.
    """
    for id_, value, version in found:
        assert value == version, f"row {id_} is {value} at version {version}"
    return {id_: (value, version) for id_, value, version in found}
