"""Readers of several processes that miss one key in the same moment, and how often each process loads it.

python -m tests.support.stampede URL KEY READERS BEGIN      prints the number of loads of this process
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import Any

from relay.cache import AsyncCache, AsyncRedisShared, Local, Need, Versioned

NAMESPACE = "stampede"
LOAD_SECONDS = 0.05
START_SECONDS = 3.0
VALUE = {"id": 42, "name": "somebody"}


def loads_of(url: str, *, processes: int, readers: int, start_seconds: float = START_SECONDS) -> list[int]:
    """How often each of the processes called its loader."""
    key, begin = time.monotonic_ns(), time.time() + start_seconds
    command = [sys.executable, "-m", "tests.support.stampede", url, str(key), str(readers), str(begin)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return [int(process.communicate(timeout=60)[0]) for process in running]


def read_at_once(url: str, key: int, readers: int, begin: float) -> int:
    """One process. Returns how often it loaded."""
    loads: list[int] = []
    cache = AsyncCache("stampede", local=Local(), shared=AsyncRedisShared.from_url(url, NAMESPACE))

    @cache.entity("hot")
    async def hot(id: int, need: Need) -> Versioned[dict[str, Any]]:  # noqa: A002
        loads.append(id)
        await asyncio.sleep(LOAD_SECONDS)
        return Versioned(VALUE, 1)

    async def go() -> None:
        async with cache:
            await asyncio.sleep(max(0.0, begin - time.time()))
            values = await asyncio.gather(*(hot(key) for _ in range(readers)))
            assert values == [VALUE] * readers

    asyncio.run(go())
    return len(loads)


if __name__ == "__main__":
    print(read_at_once(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
