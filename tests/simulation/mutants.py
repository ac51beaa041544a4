"""The code with one guard taken out, by replacing text in its source: in Python and in Lua alike.

Each text has to be there exactly once. So a guard that has moved is noticed, rather than no longer taken out.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import relay.cache
from relay.cache.redis import scripts

ROOT: Final = Path(relay.cache.__file__).parent.parent


class Edit(NamedTuple):
    """Replaces `old` by `new` in a file under relay/."""

    file: str
    old: str
    new: str


REFERENCE: Final = "cache/reference.py"
PUT: Final = "cache/redis/scripts/put.lua"
APPLY: Final = "cache/redis/scripts/apply.lua"
LOCAL: Final = "cache/local.py"
READING: Final = "cache/reading.py"
READER: Final = "cache/reader.py"
LANE: Final = "consumer/lane.py"
APPLIER: Final = "consumer/applying.py"
FOLLOWER: Final = "consumer/follower.py"

UNFLOORED: Final = (
    # A reader compares a value with the floor beside it as well.
    Edit(READER, "            need = max(need, record.floor)\n", ""),
    Edit(READER, "if not record.is_current or record.version < need:", "if record.version < need:"),
)

EDITS: Final[dict[str, tuple[Edit, ...]]] = {
    "put_checks_floor": (
        Edit(REFERENCE, "elif put.version < max(found.floor, found.version if found.has_value else 0):", "elif False:"),
        Edit(PUT, "if number_at(ARGV[4], 1) < least then", "if false then"),
        *UNFLOORED,
    ),
    "put_checks_lease": (
        Edit(
            REFERENCE,
            "if found is None or put.lease == NO_LEASE or found.lease != put.lease:\n"
            "                return Reject.LEASE",
            "found = found or EMPTY._replace(epoch=self.epoch)",
        ),
        Edit(
            PUT,
            "if not head or #head < 64 or head:sub(1, 2) ~= 'R\\1' then\n  return 'lease'\nend",
            "head = head ~= '' and head or ('R\\1' .. string.rep('\\0', 6) .. epoch .. string.rep('\\0', 48))",
        ),
        Edit(PUT, "if ARGV[2] == ZEROS8 or head:sub(33, 40) ~= ARGV[2] then", "if false then"),
    ),
    "put_compares_lease": (
        Edit(REFERENCE, "put.lease == NO_LEASE or found.lease != put.lease", "found.lease == NO_LEASE"),
        Edit(PUT, "ARGV[2] == ZEROS8 or head:sub(33, 40) ~= ARGV[2]", "head:sub(33, 40) == ZEROS8"),
    ),
    "put_checks_epoch": (
        Edit(REFERENCE, "if found is not None and found.epoch != self.epoch:", "if False:"),
        Edit(PUT, "if head:sub(9, 16) ~= epoch then", "if false then"),
    ),
    "read_checks_epoch": (Edit(READER, "if record is None or record.epoch != epoch:", "if record is None:"),),
    "nothing_below_floor": (
        Edit(
            REFERENCE,
            "if record.has_value and record.version < floor and not record.flags & KEEP:",
            "if False:",
        ),
        Edit(APPLY, "local drops = has(flags, HAS_VALUE) and", "local drops = false and"),
        *UNFLOORED,
    ),
    "deletion_is_a_bump": (
        # Any event that finds no record leaves the absence behind.
        Edit(REFERENCE, "        if after.has_value:\n", "        if before.has_value:\n"),
        Edit(
            REFERENCE,
            "    return record._replace(floor=floor)\n\n\ndef _emptied",
            "    flags = record.flags if record.floor else HAS_VALUE | NEGATIVE\n"
            "    return record._replace(floor=floor, flags=flags, version=record.version or floor)\n\n\ndef _emptied",
        ),
        Edit(
            APPLY,
            "call('SET', key, BLANK .. sub(bumps, at + 1, at + 8) .. ZEROS40, 'PX', tombstone_ms)",
            "local v = sub(bumps, at + 1, at + 8)\n"
            "    call('SET', key, 'R\\1\\3' .. sub(BLANK, 4) .. v .. v .. ZEROS16 .. ZEROS16, 'PX', tombstone_ms)",
        ),
    ),
    "unversioned_cancels_lease": (
        Edit(
            REFERENCE,
            "neither the value nor what is being loaded may stay.\n"
            "        return _emptied(record)._replace(lease=NO_LEASE, lease_until_ms=0)",
            "\n        return _emptied(record)",
        ),
        Edit(APPLY, "if head and sub(head, 17, 24) == ZEROS8 then", "if false then"),
        Edit(
            APPLY,
            "elseif head and head ~= BLANK .. sub(head, 17, 24) .. ZEROS40 then\n"
            "      call('SET', key, BLANK .. sub(head, 17, 24) .. ZEROS40,",
            "elseif head then\n"
            "      call('SET', key, BLANK .. sub(head, 17, 24) .. ZEROS8 .. sub(head, 33, 48) .. ZEROS16,",
        ),
    ),
    "replica_uncached": (Edit(READING, "if not versioned.cacheable:", "if False:"),),
    "replica_reaches_need": (
        Edit(READING, "Need(need, primary), flight)", "Need(0, False), flight)"),
        # Whoever waits for a load compares what it brought.
        Edit(READER, "        if found.version < need:\n", "        if False:\n"),
    ),
    "loss_is_noticed": (
        Edit(
            REFERENCE,
            "if any(self.offsets.get((at.topic, at.partition), 0) < at.expected for at in positions):",
            "if False:",
        ),
        Edit(APPLY, "if (offsets[i] or 0) < tonumber(ARGV[3 * i + 1]) then", "if false then"),
    ),
    "claims_after_restart": (
        # A lane that begins at a committed offset is told by its `committed`.
        Edit(
            LANE,
            "self.partition, self.applied, self.read)",
            "self.partition, 0 if self.committed >= 0 else self.applied, self.read)",
        ),
    ),
    "loss_voids_all": (
        Edit(
            APPLIER,
            "            elif applied.lost:\n",
            "            elif applied.lost and applied.epoch != self.epoch:\n"
            "                self.epoch = applied.epoch\n"
            "                self._tier.apply((), (), [Position(x.topic, x.partition, 0, x.applied) for x in lanes])\n"
            "            elif applied.lost:\n",
        ),
    ),
    "local_floors": (Edit(LOCAL, "self._raise(space, id, version, at, is_void=False)", "pass"),),
    "floor_on_shared": (Edit(READING, "need = max(want, reader.space.floor(target.key))", "need = want"),),
    "gap_closes": (Edit(FOLLOWER, 'raise _GapError(f"Kafka: {words_of(error, self._properties)}")', "pass"),),
    "waits_for_shared": (
        Edit(
            FOLLOWER,
            "elif epoch is not None and all(progress.get(place, 0) >= end for place, end in self._joined.items()):",
            "elif epoch is not None:",
        ),
    ),
    "epoch_closes": (Edit(FOLLOWER, "if self._epoch is not None and epoch != self._epoch:", "if False:"),),
    "generation": (Edit(LOCAL, "if mark.generation != self.generation:", "if False:"),),
    "opening_is_a_generation": (
        Edit(
            LOCAL,
            "            self.generation += 1\n            self.closed_because",
            "            self.closed_because",
        ),
        Edit(
            LOCAL,
            "return Mark(generation, self.clock()) if self.is_open else None",
            "return Mark(generation, self.clock())",
        ),
    ),
    "sweep_waits_for_shared": (Edit(LOCAL, "if progress.get(floor.at[:2], 0) > floor.at[2]:", "if True:"),),
    "sweep_waits_for_fills": (
        Edit(LOCAL, "elif now - floor.since > self.fill_seconds:", "if space.floors[key].at is None:"),
    ),
    "unversioned_blocks": (
        Edit(LOCAL, "floor.is_void and (floor.at is not None or mark.began <= floor.since)", "False"),
    ),
    "token_on_local": (
        Edit(
            READING,
            "reader.from_entry(entry, need, policy)",
            "reader.from_entry(entry, reader.space.floor(target.key), policy)",
        ),
    ),
    "token_on_shared": (
        Edit(
            READING,
            "sight = yield from look(reader, target, need, policy)",
            "sight = yield from look(reader, target, need - want, policy)",
        ),
    ),
    "token_learns": (Edit(READING, "session.observe(reader.plan.name, target.key, found.version)", "pass"),),
}
"""How each guard is taken out. Those that are not here are taken out by what `replay.py` does in their place."""


class Parts(NamedTuple):
    """The parts of which a `World` is made."""

    read: Callable[..., Any]
    reader: Any
    local: Any
    reference: Any
    applier: Any
    lane: Any
    follower: ModuleType
    """A module of its own, in which the questions to the brokers can be answered otherwise."""
    lua: dict[str, scripts.Script]
    """By the name that `relay.cache.redis.commands` has for them; only those that are changed."""


def parts(edits: Sequence[Edit] = ()) -> Parts:
    """The parts as they are, but for the edits."""

    def part(file: str) -> ModuleType:
        return _edited(file, [edit for edit in edits if edit.file == file])

    lua = {
        Path(edit.file).stem.upper(): _script(edit.file, [other for other in edits if other.file == edit.file])
        for edit in edits
        if edit.file.endswith(".lua")
    }
    return Parts(
        read=part(READING).read,
        reader=part(READER).Reader,
        local=part(LOCAL).Local,
        reference=part(REFERENCE).ReferenceTier,
        applier=part(APPLIER).Applier,
        lane=part(LANE).Lane,
        follower=_copied(FOLLOWER, [edit for edit in edits if edit.file == FOLLOWER]),
        lua=lua,
    )


def _edited(file: str, edits: Sequence[Edit]) -> ModuleType:
    return _copied(file, edits) if edits else importlib.import_module(_name(file))


def _name(file: str) -> str:
    return "relay." + file.removesuffix(".py").replace("/", ".")


def _copied(file: str, edits: Sequence[Edit]) -> ModuleType:
    name = _name(file)
    module = ModuleType(name)
    module.__file__ = str(ROOT / file)
    exec(compile(text_without(file, edits), module.__file__, "exec"), module.__dict__)
    for part, kind in vars(importlib.import_module(name)).items():
        # What is passed around has to be of the class that the other modules know.
        if isinstance(kind, type) and issubclass(kind, tuple | Enum):
            setattr(module, part, kind)
    return module


def _script(file: str, edits: Sequence[Edit]) -> scripts.Script:
    text = (ROOT / "cache/redis/scripts/shared.lua").read_text() + text_without(file, edits)
    return scripts.Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def text_without(file: str, edits: Sequence[Edit]) -> str:
    """The source of a file under relay/ after these edits, all of which are of that file."""
    text = (ROOT / file).read_text()
    for _, old, new in edits:
        assert text.count(old) == 1, f"{file} has {text.count(old)} times: {old}"
        text = text.replace(old, new)
    return text
