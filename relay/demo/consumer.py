"""The consumer of the demo: a process of its own, which keeps the copies in Redis right.

    python -m relay.demo.consumer        DEMO_KAFKA (JSON), DEMO_TOPIC, DEMO_REDIS in the environment

DEMO_NAMESPACE is `demo` unless it is given. It says in lines of JSON what happens to it, and stops when a line comes in
on stdin, or its end.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any, Final

from relay.cache import RedisShared
from relay.cache.numbers import EPOCHS, EVENTS, Numbers
from relay.consumer import Consumer
from relay.demo.brokers import group_of

SAY_SECONDS: Final = 0.25

_saying = threading.Lock()


def say(message: dict[str, Any]) -> None:
    """One line, whole."""
    with _saying:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def stop_when_told() -> threading.Event:
    """Set when a line comes in on stdin, or its end."""
    stop = threading.Event()

    def listen() -> None:
        sys.stdin.readline()
        stop.set()

    threading.Thread(target=listen, daemon=True).start()
    return stop


def main() -> None:
    """Consumes until it is told to stop, and says four times a second how far it is."""
    topic = os.environ["DEMO_TOPIC"]
    group = group_of(topic)
    numbers = Numbers()
    shared = RedisShared.from_url(os.environ["DEMO_REDIS"], namespace=os.environ.get("DEMO_NAMESPACE", "demo"))
    consumer = Consumer(
        kafka=json.loads(os.environ["DEMO_KAFKA"]),
        topics=[topic],
        group=group,
        shared=shared,
        from_beginning=True,
        recorder=numbers,
    )
    stop = stop_when_told()
    with consumer:
        while not stop.wait(SAY_SECONDS):
            say(report(consumer, numbers, group))
    say(report(consumer, numbers, group) | {"ended": True})


def report(consumer: Consumer, numbers: Numbers, group: str) -> dict[str, Any]:
    """How far it is, and what troubles it."""
    now, health = numbers.snapshot(), consumer.health()
    return {
        "at": time.time(),
        "applied": now.value(EVENTS, group, "applied"),
        "epochs": now.total(EPOCHS),
        "lag": sum(lag or 0 for lag in health.lag.values()),
        "problems": [problem.code for problem in health.problems],
    }


if __name__ == "__main__":
    main()
