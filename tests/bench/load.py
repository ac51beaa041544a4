"""Load and its receiver, each in a process of its own: no interpreter's lock is shared with what is measured.

    writers, producer ──▶ { number: (sent, committed) }  ┐
                                                         ├──▶ latency of each event
    receiver ──────────▶ { number: received }            ┘

An event is known by the number at the start of its payload. All times are of the monotonic clock, which the processes
of one machine share. Load is an open loop: event n is due at n / rate, however long the ones before it took.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Self

import psycopg
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from relay.kafka_properties import KAFKA_DEFAULTS

THREADS = 8
"""Connections that emit in turn: with a thousand commits a second, each has eight milliseconds for its own."""
NUMBER_DIGITS = 10
PADDING = "x" * 230
"""With the number before it, a payload has 240 bytes."""

EMIT = "SELECT relay.emit(%s, %s, %s::text)"

EMIT_BATCH = """\
SELECT relay.emit_many(
    array_agg(%(topic)s::text), array_agg('key-' || ((%(first)s + g) %% 10000)),
    array_agg(convert_to(lpad((%(first)s + g)::text, 10, '0') || repeat('x', 230), 'UTF8')),
    array_agg('{"trace": "4bf92f3577b34da6a3ce929d0e0e4736", "content-type": "text/plain"}'::jsonb), false)
FROM generate_series(0, %(rows)s - 1) AS g"""
"""Many events in one transaction, made by the server, so that the client costs nothing."""


class Aside:
    """A function that runs in a process of its own: the two can say something to each other, and it gives an answer.

    The function gets a channel as its first argument. What it returns is its answer; what it raises, `hear` raises.
    """

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        # Spawned: a fork would copy the threads' locks of clients that are at work here.
        context = multiprocessing.get_context("spawn")
        self._channel, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(function, theirs, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()

    def hear(self, seconds: float = 60) -> Any:
        """The next thing that the function says; its answer is the last.

        Raises:
            TimeoutError: it said nothing for so long.
            RuntimeError: it failed.
        """
        if not self._channel.poll(seconds):
            raise TimeoutError(f"nothing was said for {seconds:g} s")
        said, failed = self._channel.recv()
        if failed:
            raise RuntimeError(said)
        return said

    def tell(self) -> None:
        """Tells it to go on, or to stop, whichever it listens for."""
        self._channel.send(None)


class Channel:
    """The function's end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def say(self, what: object) -> None:
        """To whoever started us."""
        self._connection.send((what, False))

    def wait(self) -> None:
        """Until we are told to go on."""
        self._connection.recv()

    @property
    def is_stopped(self) -> bool:
        """Whether we have been told to stop."""
        return self._connection.poll()


def _run(function: Callable[..., Any], connection: Connection, arguments: tuple[object, ...]) -> None:
    # Threads wait their turn for five milliseconds by default, which is what is measured here.
    sys.setswitchinterval(0.0005)
    try:
        connection.send((function(Channel(connection), *arguments), False))
    except Exception:
        connection.send((traceback.format_exc(), True))


class Sent(NamedTuple):
    """When an event was due, when its call began, and when the call returned."""

    due: int
    began: int
    returned: int


def payload(number: int) -> str:
    """240 bytes that begin with the number."""
    return f"{number:0{NUMBER_DIGITS}}{PADDING}"


def _wait_until(due: int) -> None:
    remaining = due - time.monotonic_ns()
    if remaining > 0:
        time.sleep(remaining / 1e9)


def write(channel: Channel, dsn: str, topic: str, rate: float, count: int) -> dict[int, Sent]:
    """Emits `count` events, each in a transaction of its own, on several connections that take turns, once told."""
    sent: dict[int, Sent] = {}
    failures: list[Exception] = []
    connections = [psycopg.connect(dsn, autocommit=True, prepare_threshold=0) for _ in range(THREADS)]
    channel.wait()
    started = time.monotonic_ns()

    def one(index: int) -> None:
        try:
            cursor = connections[index].cursor()
            for number in range(index, count, THREADS):
                due = started + int(number * 1e9 / rate)
                _wait_until(due)
                began = time.monotonic_ns()
                cursor.execute(EMIT, (topic, f"key-{number % 10_000}", payload(number)))
                sent[number] = Sent(due, began, time.monotonic_ns())
        except psycopg.Error as error:
            failures.append(error)

    running = [threading.Thread(target=one, args=(index,)) for index in range(THREADS)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    for connection in connections:
        connection.close()
    if failures:
        raise failures[0]
    return sent


def produce(channel: Channel, bootstrap: str, topic: str, rate: float, count: int) -> dict[int, Sent]:
    """The path without a relay: the same records with the same client settings, straight to the broker, once told."""
    producer = Producer({**KAFKA_DEFAULTS, "bootstrap.servers": bootstrap, "log_level": 3})
    producer.list_topics(topic, timeout=10)
    sent: dict[int, Sent] = {}
    channel.wait()
    started = time.monotonic_ns()
    for number in range(count):
        due = started + int(number * 1e9 / rate)
        _wait_until(due)
        began = time.monotonic_ns()
        producer.produce(topic, payload(number), f"key-{number % 10_000}")
        sent[number] = Sent(due, began, time.monotonic_ns())
        producer.poll(0)
    if producer.flush(30):
        raise RuntimeError("the broker did not take every record")
    return sent


def write_batches(channel: Channel, dsn: str, topic: str, rate: float, rows: int = 100) -> int:
    """Emits `rate` events a second in batches of `rows` until it is told to stop; how many."""
    first = 0
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as connection:
        channel.say("ready")
        started = time.monotonic_ns()
        while not channel.is_stopped:
            _wait_until(started + int(first * 1e9 / rate))
            connection.execute(EMIT_BATCH, {"topic": topic, "first": first, "rows": rows})
            first += rows
    return first


def receive(channel: Channel, bootstrap: str, topic: str, count: int) -> dict[int, int]:
    """When each of `count` events arrived first; says that it is ready before.

    By `poll`: `consume(n, timeout)` waits for n records or its whole time-out. The broker answers a fetch as soon as
    it has a record; fetch.wait.max.ms only bounds how long an empty answer is kept back, and is small so that no
    partition waits for the answer to a request that was sent without it.
    """
    settings = {"bootstrap.servers": bootstrap, "group.id": "bench-receiver", "enable.auto.commit": False}
    consumer = Consumer({**settings, "fetch.wait.max.ms": 10, "log_level": 0})
    # By their offsets: "at the end" is looked up at the first fetch, and a record could come before that.
    places = [TopicPartition(topic, partition) for partition in consumer.list_topics(topic).topics[topic].partitions]
    for place in places:
        place.offset = consumer.get_watermark_offsets(place, timeout=10)[1]
    consumer.assign(places)
    received: dict[int, int] = {}
    channel.say("ready")
    while len(received) < count:
        message = consumer.poll(1)
        if message is None:
            if channel.is_stopped:  # nobody listens any more
                break
            continue
        now = time.monotonic_ns()
        if message.error():
            raise KafkaException(message.error())
        received.setdefault(int(message.value()[:NUMBER_DIGITS]), now)
    consumer.close()
    return received


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank: a value that was measured, and with few values the largest rather than a guess."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
