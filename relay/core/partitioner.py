"""The partition of a key, by the partitioner of Java clients, which is the relay's unless it is told otherwise."""

from __future__ import annotations

WORD = 0xFFFFFFFF
MULTIPLIER = 0x5BD1E995
SEED = 0x9747B28C


def murmur2(data: bytes) -> int:
    """The 32-bit hash that Kafka's clients compute of a key, unsigned.

    Source: org.apache.kafka.common.utils.Utils.murmur2.
    """
    hashed = SEED ^ len(data)
    whole = len(data) & ~3
    for start in range(0, whole, 4):
        word = int.from_bytes(data[start : start + 4], "little") * MULTIPLIER & WORD
        word = (word ^ word >> 24) * MULTIPLIER & WORD
        hashed = (hashed * MULTIPLIER & WORD) ^ word
    rest = data[whole:]
    if rest:
        hashed = (hashed ^ int.from_bytes(rest, "little")) * MULTIPLIER & WORD
    hashed = (hashed ^ hashed >> 13) * MULTIPLIER & WORD
    return hashed ^ hashed >> 15


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key among so many."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
