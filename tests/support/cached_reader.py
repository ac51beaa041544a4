"""A service in a process of its own that reads people through the cache, as told by lines on stdin.

    python -m tests.support.cached_reader        READER (JSON): database, bootstrap, topic, redis, namespace, local

Each line is an id; the answer is a line of JSON: value, version, tier, or the error's kind.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any, Self

import psycopg

from relay.cache import Cache, Local, Need, RedisShared, Versioned
from relay.consumer import Feed
from relay.demo.children import Child

ROW = """\
SELECT coalesce(v.version, 0), u.name
FROM (VALUES ('person', %(id)s::text)) AS wanted (entity, id)
LEFT JOIN relay.entity_version AS v ON v.entity = wanted.entity AND v.id = wanted.id
LEFT JOIN person AS u ON u.id = %(id)s"""


class CachedReader:
    """The process, from outside."""

    def __init__(self, **settings: Any) -> None:
        self._answers: list[dict[str, Any]] = []
        self._came = threading.Condition()
        environment = os.environ | {"READER": json.dumps(settings)}
        self._child = Child(["tests.support.cached_reader"], environment, self._on_line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()

    def read(self, id_: int, seconds: float = 60) -> dict[str, Any]:
        """What a read returns."""
        with self._came:
            count = len(self._answers)
            self._child.tell(str(id_))
            done = self._came.wait_for(lambda: len(self._answers) > count, seconds)
            assert done, f"no answer in {seconds:g} s; it said: {self._child.last_words}"
            return self._answers[-1]

    def _on_line(self, line: str) -> bool:
        if not line.startswith("{"):
            return False
        with self._came:
            self._answers.append(json.loads(line))
            self._came.notify_all()
        return True


def main() -> None:
    """Answers until stdin ends."""
    told = json.loads(os.environ["READER"])
    shared = RedisShared.from_url(told["redis"], namespace=told["namespace"])
    local = Local(entries_max=100, ttl=600) if told["local"] else None
    cache = Cache(told["namespace"], local=local, shared=shared)

    @cache.entity("person")
    def person(id: int, need: Need) -> Versioned[str | None]:  # noqa: A002
        with psycopg.connect(told["database"]) as connection:
            version, name = connection.execute(ROW, {"id": id}).fetchone() or (0, None)
            return Versioned(name, version)

    kafka = {"bootstrap.servers": told["bootstrap"]}
    feed = Feed(kafka=kafka, topics=[told["topic"]], local=local, shared=shared) if local else None
    if feed is not None:
        feed.start()
    for line in sys.stdin:
        try:
            found = person.read(int(line))
            answer = {"value": found.value, "version": found.version, "tier": found.tier}
        except Exception as error:  # The test asks what a caller would have seen.
            answer = {"error": type(error).__name__}
        print(json.dumps(answer), flush=True)
    if feed is not None:
        feed.stop()


if __name__ == "__main__":
    main()
