"""Three Kafka brokers that are none: librdkafka's mock cluster, alone in a process, told by lines what to do.

    python -m relay.demo.mock_kafka TOPIC PARTITIONS

The first line on stdout is the address. After that each line on stdin is answered by itself: `down` closes the
listeners and every connection, so that clients are refused as by brokers that are gone; `up` opens them again on the
same ports. What was written survives, because the log lives in this process. End of file ends it.

The mock has no Python interface, so the C functions are called: through the extension module itself, whose symbols
include those of the librdkafka it was linked with, wherever the wheel put that. Stopping the process with a signal
instead would only look like brokers that hang: connections would stay open and be served late.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from typing import Any, Final

import confluent_kafka.cimpl

BROKERS: Final = 3
REBALANCE_DELAY_MS: Final = 100
PRODUCER: Final = 0


class Cluster:
    """The mock cluster and the idle producer that it needs to exist."""

    def __init__(self, topic: str, partitions: int) -> None:
        self._library = ctypes.CDLL(confluent_kafka.cimpl.__file__)
        configuration = self._call("rd_kafka_conf_new", ctypes.c_void_p)
        error = ctypes.create_string_buffer(512)
        size = ctypes.c_size_t(len(error))
        # The owner has nobody to connect to, and would say so.
        quiet = (ctypes.c_void_p(configuration), b"log_level", b"0", error, size)
        self._call("rd_kafka_conf_set", ctypes.c_int, *quiet)
        arguments = (PRODUCER, ctypes.c_void_p(configuration), error, size)
        owner = self._call("rd_kafka_new", ctypes.c_void_p, *arguments)
        if not owner:
            raise RuntimeError(f"librdkafka: {error.value.decode()}")
        cluster = self._call("rd_kafka_mock_cluster_new", ctypes.c_void_p, ctypes.c_void_p(owner), BROKERS)
        self._cluster = ctypes.c_void_p(cluster)
        # A mock without a controller lets every question about a topic's settings run into its time-out.
        with contextlib.suppress(AttributeError):
            self._call("rd_kafka_mock_set_controller_id", ctypes.c_int, self._cluster, ctypes.c_int32(1))
        # A group waits this long for more members before its first rebalance, as real brokers do: three seconds.
        with contextlib.suppress(AttributeError):
            delay = "rd_kafka_mock_group_initial_rebalance_delay_ms"
            self._call(delay, None, self._cluster, ctypes.c_int32(REBALANCE_DELAY_MS))
        self._call("rd_kafka_mock_topic_create", ctypes.c_int, self._cluster, topic.encode(), partitions, BROKERS)

    @property
    def address(self) -> str:
        """What a client is given."""
        address: bytes = self._call("rd_kafka_mock_cluster_bootstraps", ctypes.c_char_p, self._cluster)
        return address.decode()

    def set_up(self, is_up: bool) -> None:
        """Takes all brokers away or brings them back."""
        name = "rd_kafka_mock_broker_set_up" if is_up else "rd_kafka_mock_broker_set_down"
        for broker in range(1, BROKERS + 1):
            self._call(name, ctypes.c_int, self._cluster, ctypes.c_int32(broker))

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._library, name)
        function.restype = result
        return function(*arguments)


def main() -> None:
    """Serves until stdin ends, which it does when the demo is gone, however it went."""
    cluster = Cluster(sys.argv[1], int(sys.argv[2]))
    sys.stdout.write(cluster.address + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        cluster.set_up(line.strip() == "up")
        sys.stdout.write(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
