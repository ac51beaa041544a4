"""A TCP proxy that misbehaves on demand: the network faults of the bench, without root and without netem.

One thread runs an event loop that owns all state; the methods below hand it a change and return when the
change holds, so a test may act on the next line. Everything that arrives, the end of a connection included,
passes through one queue per direction: a frozen network delivers no FIN and no RST either, and what was held
arrives in order when it thaws.

Two things differ from a real network. A dead target looks like "accepted, then reset" instead of "refused";
use `refuse` for that. And the bytes held by a freeze are bounded (64 MiB per direction), after which the
sender sees a full window, as it would behind a router that only drops.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from relay.demo.server import free_port

CHUNK_BYTES = 65_536
HELD_CHUNKS_MAX = 1_024

Direction = Literal["up", "down"]


class Cut(Exception):  # noqa: N818 - an event inside the proxy, nobody's error
    """This connection ends now, with a reset on both sides."""


class Closed(Exception):  # noqa: N818 - an item of the queue: the sender closed its half
    """The sender will send no more."""


@dataclass
class Trap:
    """What `cut_after` waits for."""

    needle: bytes
    forward: bool
    sprung: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class Connection:
    """One client and its own connection to the target."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    task: asyncio.Task[None]
    tail: bytes = b""
    trap: Trap | None = None
    may_send: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared while what the client sends is held, on this connection alone."""

    def reset(self) -> None:
        _reset(self.client)
        _reset(self.server)


class TcpProxy:
    """Forwards 127.0.0.1:`port` to the target until told otherwise. Started and closed any number of times.

    Args:
        target_port: where the real server listens, on the loopback.
        port: where clients connect; by default a free one, known before `start`.
    """

    def __init__(self, target_port: int, *, port: int | None = None) -> None:
        self.port = port or free_port()
        self._target_port = target_port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._listener: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._open: dict[Direction, asyncio.Event] = {}
        self._heal()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Listens; returns when clients may connect."""
        if self._loop is not None:
            return
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy", daemon=True)
        self._thread.start()
        self.heal()
        self.accept()

    def close(self) -> None:
        """Resets every connection and stops listening."""
        if self._loop is None or self._thread is None:
            return
        self.refuse()
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._connections)

    def freeze(self, direction: Direction | Literal["both"] = "both") -> None:
        """Holds all data ("up" is towards the server) while TCP goes on acknowledging it. Nobody notices."""
        self._apply(lambda: [self._open[way].clear() for way in _ways(direction)])

    def hold_sender_of(self, needle: bytes) -> threading.Event:
        """Once: holds what the connection sends that first sends these bytes. All other connections go on.

        Returns:
            an event that is set when there is such a connection. `thaw` delivers what was held.
        """
        trap = Trap(needle, forward=True)
        self._apply(lambda: setattr(self, "_hold", trap))
        return trap.sprung

    def thaw(self) -> None:
        """Delivers what was held, in order."""
        self._apply(self._thaw)

    def _thaw(self) -> None:
        for gate in (*self._open.values(), *(connection.may_send for connection in self._connections)):
            gate.set()

    def cut(self) -> None:
        """Resets every connection, on both sides. New ones are welcome."""
        self._run(self._cut_all())

    def lead_to(self, target_port: int) -> None:
        """Leads new connections to another server, as a name or an address does after a failover."""
        self._apply(lambda: setattr(self, "_target_port", target_port))

    def refuse(self) -> None:
        """New connections are refused by the kernel; the present ones go on."""
        self._apply(self._stop_listening)

    def accept(self) -> None:
        """Listens again after `refuse`, on the same port."""
        self._run(self._listen())

    def latency(self, seconds: float) -> None:
        """Delivers everything this much later, in each direction, without lowering the throughput."""
        self._apply(lambda: setattr(self, "_latency_seconds", seconds))

    def bandwidth(self, bytes_per_second: float | None) -> None:
        """Bounds the throughput of each connection and direction; None lifts the bound."""
        self._apply(lambda: setattr(self, "_bytes_per_second", bytes_per_second))

    def drop_replies(self) -> None:
        """The server hears and acts; its answers vanish. `cut` before healing: the stream has a hole now."""
        self._apply(lambda: setattr(self, "_is_dropping", True))

    def cut_after(self, needle: bytes, *, forward: bool = True) -> threading.Event:
        """Once, when a client sends these bytes: resets that connection without letting an answer through.

        With `forward` the server gets the bytes, and the reset waits for its first answer, which is the proof
        that it acted: the outcome is unknown to the client and certain to us. Without, the server never gets
        the chunk that completes them. (With several requests in flight, as Kafka clients have, the first
        answer may belong to an earlier one: use `drop_replies` and `cut` there.)

        Returns:
            an event that is set when the connection has been reset.
        """
        trap = Trap(needle, forward)
        self._apply(lambda: setattr(self, "_trap", trap))
        return trap.sprung

    def heal(self) -> None:
        """Lifts every fault but `refuse`; what a freeze held is delivered."""
        self._apply(self._heal)

    def _heal(self) -> None:
        self._latency_seconds = 0.0
        self._bytes_per_second: float | None = None
        self._is_dropping = False
        self._trap: Trap | None = None
        self._hold: Trap | None = None
        for way in _ways("both"):
            self._open.setdefault(way, asyncio.Event())
        self._thaw()

    def _apply(self, change: Callable[[], object]) -> None:
        async def applied() -> None:
            change()

        self._run(applied())

    def _run(self, work) -> None:
        if self._loop is None:
            work.close()
            raise RuntimeError("the proxy is not started")
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _cut_all(self) -> None:
        doomed = list(self._connections)
        for connection in doomed:
            connection.reset()
            connection.task.cancel()
        await asyncio.gather(*(connection.task for connection in doomed), return_exceptions=True)

    async def _serve(self, from_client: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            from_server, server = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            _reset(client)
            return
        task = asyncio.current_task()
        assert task is not None
        connection = Connection(client, server, task)
        connection.may_send.set()
        self._connections.add(connection)
        try:
            # A cut cancels this task, which then ends like any other: asyncio reports the cancelled ones as errors.
            with contextlib.suppress(asyncio.CancelledError):
                await self._forward(connection, from_client, from_server)
        finally:
            client.close()
            server.close()
            self._connections.discard(connection)

    async def _forward(
        self, connection: Connection, from_client: asyncio.StreamReader, from_server: asyncio.StreamReader
    ) -> None:
        up: asyncio.Queue = asyncio.Queue(HELD_CHUNKS_MAX)
        down: asyncio.Queue = asyncio.Queue(HELD_CHUNKS_MAX)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(from_client, up, lambda data: self._heard(connection, data)))
                tasks.create_task(self._read(from_server, down, lambda data: _answered(connection)))
                tasks.create_task(self._write(connection, connection.server, up, "up"))
                tasks.create_task(self._write(connection, connection.client, down, "down"))
        except* (Cut, OSError):
            connection.reset()
            if connection.trap is not None:
                connection.trap.sprung.set()

    async def _read(self, source: asyncio.StreamReader, queue: asyncio.Queue, look: Callable[[bytes], None]) -> None:
        end: Exception = Closed()
        try:
            while data := await source.read(CHUNK_BYTES):
                look(data)
                await queue.put((self._due(), data))
        except OSError:
            end = Cut()
        await queue.put((self._due(), end))

    async def _write(
        self, connection: Connection, sink: asyncio.StreamWriter, queue: asyncio.Queue, way: Direction
    ) -> None:
        while True:
            due, item = await queue.get()
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            await self._open[way].wait()
            if way == "up":
                await connection.may_send.wait()
            if isinstance(item, Closed):
                sink.write_eof()
                return
            if isinstance(item, Cut):
                raise item
            if not (way == "down" and self._is_dropping):
                await self._send(sink, item)

    async def _send(self, sink: asyncio.StreamWriter, data: bytes) -> None:
        """Writes at once, or in slices of a twentieth of a second when the bandwidth is bounded."""
        rate = self._bytes_per_second
        size = len(data) if rate is None else max(1, int(rate / 20))
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            sink.write(piece)
            await sink.drain()
            if rate is not None:
                await asyncio.sleep(len(piece) / rate)

    def _due(self) -> float:
        return asyncio.get_running_loop().time() + self._latency_seconds

    def _heard(self, connection: Connection, data: bytes) -> None:
        """Springs the traps. The bytes may be spread over two chunks, so the end of the last one is kept."""
        if self._hold is not None and self._hold.needle in data:
            connection.may_send.clear()
            self._hold.sprung.set()
            self._hold = None
        trap = self._trap
        if trap is None:
            return
        window = connection.tail + data
        connection.tail = window[-(len(trap.needle) - 1) :] if len(trap.needle) > 1 else b""
        if trap.needle in window:
            self._trap, connection.trap = None, trap
            if not trap.forward:
                raise Cut


def _answered(connection: Connection) -> None:
    if connection.trap is not None:
        raise Cut


def _ways(direction: Direction | Literal["both"]) -> tuple[Direction, ...]:
    return ("up", "down") if direction == "both" else (direction,)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes with RST instead of FIN: the other side learns that something broke."""
    with contextlib.suppress(OSError):
        endpoint = writer.get_extra_info("socket")
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
