"""Where servers keep their files while tests run: in memory, if the machine has room for them there.

Most tests have a database of their own, which is three hundred files. A disk takes a tenth of a second to write and to
forget those, and half a second where the file system keeps the places of what was just deleted free for a while. What
tests do to servers is to kill their processes, and files in memory outlive those as well.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")

ROOM_BYTES = 6 << 30
"""Well above what a whole run takes at once. Containers have 64 MB there unless they are told more."""


def use_memory() -> None:
    """Makes memory the place of temporary files, for this process and those that it starts, unless TMPDIR names one."""
    if "TMPDIR" not in os.environ and has_room(MEMORY):
        os.environ["TMPDIR"] = str(MEMORY)
        tempfile.tempdir = None


def has_room(place: Path) -> bool:
    """Whether a whole run fits there, into what is free in the machine as well, and programs may be run from there."""
    if not place.is_dir() or not os.access(place, os.W_OK):
        return False
    found = os.statvfs(place)
    may_execute = not found.f_flag & os.ST_NOEXEC
    return may_execute and min(found.f_bavail * found.f_frsize, _free_bytes()) >= ROOM_BYTES


def _free_bytes() -> int:
    """What the machine, or the container, can still give without swapping; 0 if nobody says."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        limit = Path("/sys/fs/cgroup/memory.max")
        used = Path("/sys/fs/cgroup/memory.current")
        if limit.is_file() and (text := limit.read_text().strip()) != "max":
            free = min(free, int(text) - int(used.read_text()))
    except (OSError, StopIteration):
        return 0
    return free
