"""The partition of a key is where Java clients would look for it."""

from __future__ import annotations

import pytest

from relay.core.partitioner import murmur2, partition_of


@pytest.mark.parametrize(
    ("key", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_the_hash_is_that_of_the_java_client(key, signed):
    """The vectors of Kafka's own UtilsTest."""
    assert murmur2(key) == signed & 0xFFFFFFFF


def test_a_partition_is_never_negative():
    """Java takes the hash without its sign."""
    assert partition_of(b"21", 8) == (-973932308 & 0x7FFFFFFF) % 8
    assert all(0 <= partition_of(str(n).encode(), 7) < 7 for n in range(1000))
