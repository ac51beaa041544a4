"""The looks of one turn of an event loop, sent as one command.

A hundred tasks that read a hundred keys would send a hundred commands and wake up for a hundred replies. They all
become ready in the same turn of the loop, so their keys are collected until the turn is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from relay.cache.tiers import Page, TierError

Look = Callable[[Sequence[str]], Awaitable[Page]]


class Coalescer:
    """Belongs to one event loop.

    Args:
        look: asks for the keys of all.
        keys_max: what comes when so many are waiting is asked for by another command, at the same time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, look: Look, keys_max: int) -> None:
        self._loop = loop
        self._look = look
        self._keys_max = keys_max
        self._keys: list[str] = []
        self._waiting: list[tuple[int, int, asyncio.Future[Page]]] = []
        self._asking: set[asyncio.Task[None]] = set()

    async def look(self, keys: Sequence[str]) -> Page:
        """What was found for these keys. Being cancelled concerns nobody else who waits.

        Raises:
            TierError: as the look of all did.
        """
        if len(self._keys) + len(keys) > self._keys_max:
            self._send()
        future: asyncio.Future[Page] = self._loop.create_future()
        start = len(self._keys)
        self._keys += keys
        self._waiting.append((start, len(self._keys), future))
        if start == 0 and len(self._waiting) == 1:
            return await self._lead(keys, self._waiting, future)
        return await future

    async def _lead(
        self, keys: Sequence[str], waiting: list[tuple[int, int, asyncio.Future[Page]]], future: asyncio.Future[Page]
    ) -> Page:
        """The first of a turn waits for its end. Whoever is alone then asks by itself, which saves two turns."""
        try:
            await asyncio.sleep(0)
        except BaseException:
            future.cancel()
            if self._waiting is waiting:
                self._send()
            raise
        if self._waiting is waiting:
            if len(waiting) == 1:
                self._keys, self._waiting = [], []
                return await self._look(keys)
            self._send()
        return await future

    def _send(self) -> None:
        if any(not future.done() for _, _, future in self._waiting):
            # A task of its own: the first who waits may be cancelled, and the others want their replies.
            task = self._loop.create_task(self._ask(self._keys, self._waiting))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
        self._keys, self._waiting = [], []

    async def _ask(self, keys: list[str], waiting: list[tuple[int, int, asyncio.Future[Page]]]) -> None:
        try:
            page = await self._look(keys)
        except TierError as error:
            for _, _, future in waiting:
                if not future.done():
                    # One for each: whoever raises it writes a traceback into it.
                    future.set_exception(TierError(error.reason))
        except BaseException:
            for _, _, future in waiting:
                future.cancel()
            raise
        else:
            for start, end, future in waiting:
                if not future.done():
                    future.set_result(Page(page.epoch, page.records[start:end]))
