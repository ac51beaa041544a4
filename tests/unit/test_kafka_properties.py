"""Each property that librdkafka takes of a producer: guarded, or of a kind on which no promise hangs."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import confluent_kafka.cimpl
import pytest

from relay.kafka_properties import KAFKA_DEFAULTS, KAFKA_GUARDED, KAFKA_OURS, KAFKA_RANGES

FREE = {
    r"builtin\.features|client\.id|client\.rack|debug|log\..*|statistics\.interval\.ms|enable\.metrics\.push":
        "says who we are, or what is written down",
    r"bootstrap\.servers|broker\.address\..*|client\.dns\.lookup|security\..*|sasl\..*|ssl\..*|ssl_.*|https\..*"
    r"|enable\.ssl\..*|enable\.sasl\..*":
        "says how to reach the brokers: wrong, they are not reached, and events wait",
    r"socket\..*|reconnect\..*|connections\..*|retry\..*|request\.timeout\.ms|max\.in\.flight|metadata\..*"
    r"|topic\.metadata\..*|receive\.message\.max\.bytes|api\.version\.request\.timeout\.ms":
        "says for how long something is waited for: wrong, events wait longer, and are never lost or reversed",
    r"message\.max\.bytes":
        "too small, events are refused and parked, visibly; `relay doctor` says so",
    r"message\.copy\.max\.bytes|queue\.buffering\..*|linger\.ms|batch\..*|compression\..*|sticky\..*":
        "says how events are batched: the relay waits for room in the queue, and flushes without lingering",
    r"topic\.blacklist":
        "hides topics: their events wait",
    r"transaction\.timeout\.ms|internal\.termination\.signal|enable\.random\.seed|produce\.offset\.report"
    r"|socket\.blocking\..*":
        "has no effect without transactions or on this platform",
    r"api\.version\.fallback\.ms|broker\.version\.fallback":
        "for brokers that are older than idempotence, which librdkafka refuses to produce to then",
    r"plugin\.library\.paths|interceptors|.*_cb|opaque|default_topic_conf|msg_order_cmp":
        "code, and not a value: settings cannot give it",
}  # fmt: skip


def properties(tmp_path: Path) -> list[str]:
    """What this librdkafka knows of a producer, as it prints them itself."""
    library, libc = ctypes.CDLL(confluent_kafka.cimpl.__file__), ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    file = ctypes.c_void_p(libc.fopen(str(tmp_path / "all").encode(), b"w"))
    library.rd_kafka_conf_properties_show(file)
    libc.fclose(file)
    rows = re.findall(r"^([\w.]+) +\| +([CP*]) +\|", (tmp_path / "all").read_text(), re.MULTILINE)
    return sorted({name for name, of in rows if of != "C"})


def test_every_property_of_a_producer_is_classified(tmp_path):
    """A newer librdkafka may bring one on which the promise hangs; and a guard may name one that is no more."""
    known = properties(tmp_path)
    assert len(known) > 100
    guarded = {*KAFKA_GUARDED, *KAFKA_RANGES, *KAFKA_OURS}
    # confluent-kafka's own name of librdkafka's dr_msg_cb.
    assert guarded - set(known) == {"on_delivery"}
    assert set(known) >= KAFKA_DEFAULTS.keys()
    free = {name for name in known if any(re.fullmatch(pattern, name) for pattern in FREE)}
    assert [name for name in known if name not in guarded | free] == []


@pytest.mark.parametrize("pattern", FREE)
def test_no_kind_is_left_of_which_there_is_none(tmp_path, pattern):
    """What nothing matches says nothing."""
    for alternative in pattern.split("|"):
        assert any(re.fullmatch(alternative, name) for name in properties(tmp_path)), alternative


@pytest.mark.parametrize("name", sorted(KAFKA_DEFAULTS.keys() & KAFKA_GUARDED.keys()))
def test_our_own_defaults_are_those_that_carry_the_promise(name):
    assert str(KAFKA_DEFAULTS[name]).lower() == KAFKA_GUARDED[name].values[0]
