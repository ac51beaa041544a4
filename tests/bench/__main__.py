"""`make bench`, or `make bench ARGS="drain depth"`: each measurement prints its figure, its limit and their ratio."""

from __future__ import annotations

import sys

from tests.bench import (
    cache,
    capture,
    consumer,
    drain,
    holders,
    idle,
    latency,
    leaderless,
    memory,
    settling,
    shared,
    skip,
    track,
    writers,
)

MEASUREMENTS = {
    "drain": drain.drain_against_bare,
    "processes": drain.two_processes,
    "depth": drain.depth,
    "latency": latency.latency,
    "idle": idle.idle,
    "memory": memory.memory,
    "skip": skip.skip,
    "leaderless": leaderless.leaderless,
    "settling": settling.settling,
    "writers": writers.writers,
    "holders": holders.holders,
    "track": track.tracking,
    "capture": capture.capture,
    "cache": cache.caching,
    "shared": shared.shared,
    "consumer": consumer.applying,
}


def main(names: list[str]) -> None:
    """Runs the named measurements, or all."""
    unknown = set(names) - set(MEASUREMENTS)
    if unknown:
        raise SystemExit(f"unknown measurement {', '.join(unknown)}; there are {', '.join(MEASUREMENTS)}")
    for name in names or MEASUREMENTS:
        print(f"{name}:", flush=True)
        MEASUREMENTS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
