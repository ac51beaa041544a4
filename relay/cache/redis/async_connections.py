"""The connections of one event loop: held by us, as `relay.cache.redis.connections` says, with deadlines of our own.

The time-outs of redis-py cost a task per command on Python 3.11, and they fire as well when the reply lies in the
socket while the loop was busy with something else. Here one timer limits an exchange, and when it fires, the loop gets
two more turns to hand over what has arrived: a loop that is late is no reason to distrust a server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import ResponseError

from relay.cache.redis.scripts import Word
from relay.cache.tiers import TierError


class Deadline:
    """Cancels what runs in it after so many seconds, and turns that into a `TimeoutError`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.Handle | None = None
        self._is_over = False

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._seconds, loop.call_soon, self._due)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _due(self) -> None:
        if not self._is_over:
            self._timeout.reschedule(0)


class AsyncConnections:
    """Connections of one pool's settings and one event loop.

    Args:
        connections_max: at once. Who comes later waits for one.
        is_bypassed: whether the server has been found dead, for those who waited.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        timeout_seconds: float,
        connect_timeout_seconds: float,
        connections_max: int,
        is_bypassed: Callable[[], bool],
    ) -> None:
        self._pool: Any = pool
        self._timeout_seconds = timeout_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        self._is_bypassed = is_bypassed
        self._idle: list[Any] = []
        self._places = asyncio.Semaphore(connections_max)

    async def ask(self, command: tuple[Word, ...]) -> Any:
        """The reply to one command.

        Raises:
            redis.RedisError, OSError: there is none, or it is an error.
        """
        return (await self.ask_all((command,)))[0]

    async def ask_all(self, commands: Sequence[tuple[Word, ...]]) -> list[Any]:
        """The replies to commands that are sent together; sent again, once, if an idle connection turns out closed.

        Raises:
            redis.RedisError, OSError: one of them failed.
            TierError: bypassed. Those before us in the queue have waited in vain, and we need not.
        """
        has_waited = self._places.locked()
        async with self._places:
            if has_waited and self._is_bypassed():
                raise TierError("bypassed")
            if not self._idle:
                return await self._exchange(self._pool.make_connection(), commands)
            connection = self._idle.pop()
            try:
                return await self._exchange(connection, commands)
            except LostError:
                await self.close()
                return await self._exchange(connection, commands)

    async def close(self) -> None:
        """Closes those that are idle. The next command opens a new one."""
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)

    async def _exchange(self, connection: Any, commands: Sequence[tuple[Word, ...]]) -> list[Any]:
        """One connection's turn."""
        try:
            if not connection.is_connected:
                async with Deadline(self._connect_timeout_seconds):
                    await connection.connect()
            async with Deadline(self._timeout_seconds):
                if len(commands) == 1:
                    await connection.send_packed_command(connection.pack_command(*commands[0]))
                    replies = [await connection.read_response(disable_decoding=True)]
                else:
                    await connection.send_packed_command(connection.pack_commands(commands))
                    replies = [await connection.read_response(disable_decoding=True) for _ in commands]
        except BaseException as error:
            if isinstance(error, ResponseError) and len(commands) == 1:
                self._idle.append(connection)  # the whole reply was read, and it was no
            else:
                await connection.disconnect(nowait=True)
            raise
        self._idle.append(connection)
        return replies
