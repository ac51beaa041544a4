"""Connections of redis-py, held by us: a command costs one write and one read, and nobody reads another caller's reply.

The clients of redis-py take a connection from their pool, look whether it is readable, and give it back, for every
command; that is more work than the command itself. Here a connection stays with us for as long as it lives. Whoever
uses one owns it meanwhile, and one that was left in the middle of an exchange, for whatever reason, is disconnected:
its reply would otherwise be taken for that of the next command.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from redis import ConnectionPool
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import ResponseError

from relay.cache.redis.scripts import Word


class Connections:
    """Connections of one pool's settings, as many as there are callers at a time. Safe for threads and for forks."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._idle: list[Any] = []
        self._pid = os.getpid()

    def ask(self, command: tuple[Word, ...]) -> Any:
        """The reply to one command.

        Raises:
            redis.RedisError, OSError: there is none, or it is an error.
        """
        return self.ask_all((command,))[0]

    def ask_all(self, commands: Sequence[tuple[Word, ...]]) -> list[Any]:
        """The replies to commands that are sent together.

        An idle connection may have been closed by the server long ago, and one such connection says the same of all.
        The commands are then sent again, once, over a new one: each of them may be repeated.

        Raises:
            redis.RedisError, OSError: one of them failed.
        """
        if self._pid != os.getpid():
            # The sockets of the parent: closing our copies of them does not disturb it.
            self._idle, self._pid = [], os.getpid()
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._exchange(self._pool.make_connection(), commands)
        try:
            return self._exchange(connection, commands)
        except LostError:
            self.close()
            return self._exchange(connection, commands)

    def close(self) -> None:
        """Closes those that are idle. The next command opens a new one."""
        while self._idle:
            self._idle.pop().disconnect()

    def _exchange(self, connection: Any, commands: Sequence[tuple[Word, ...]]) -> list[Any]:
        """One connection's turn. It connects by itself if it has to."""
        try:
            if len(commands) == 1:
                connection.send_packed_command(connection.pack_command(*commands[0]))
                replies = [connection.read_response(disable_decoding=True)]
            else:
                connection.send_packed_command(connection.pack_commands(commands))
                replies = [connection.read_response(disable_decoding=True) for _ in commands]
        except BaseException as error:
            if isinstance(error, ResponseError) and len(commands) == 1:
                self._idle.append(connection)  # the whole reply was read, and it was no
            else:
                connection.disconnect()
            raise
        self._idle.append(connection)
        return replies
