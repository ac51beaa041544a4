"""Whatever happens to Redis, the shared tier gives a true answer or a `TierError` with a reason, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from relay.cache.redis import AsyncRedisShared, RedisShared
from relay.cache.redis.failures import Breaker
from relay.cache.tiers import Bump, Grant, Page, Position, Put, Reject, TierError
from relay.core.record import HAS_VALUE, decode_record
from relay.errors import CacheError
from tests.support.proxy import TcpProxy
from tests.support.redis import private_server
from tests.support.relay_process import eventually
from tests.support.tiers import PATIENCE_SECONDS, Blocking, connect

NAMESPACE = "faults"
KEYS = [f"r:user:{number}" for number in range(10)]


@pytest.fixture(params=["sync", "async"])
def face(request) -> str:
    """Which of the two faces."""
    return request.param


@pytest.fixture
def server() -> Iterator[Any]:
    """A server of one's own."""
    with private_server() as own:
        yield own


@pytest.fixture
def tier(face, server) -> Iterator[Any]:
    """A patient tier on it, open, with a value under each key that tells which key it is."""
    own = connect(face, server.url, NAMESPACE, timeout_seconds=PATIENCE_SECONDS)
    fill(own)
    yield own
    own.close()


def put_of(key: str, lease: bytes, payload: bytes, version: int = 1) -> Put:
    return Put(key, lease, version, HAS_VALUE, 1, 1, payload, 0, 600_000, 1, {})


def fill(tier: Any) -> None:
    tier.open("first", [Position("t", 0, 0, 0)])
    for key in KEYS:
        assert tier.put(put_of(key, tier.lease(key, 0, [], refresh=False).lease, key.encode())) is None


def payloads(page: Page) -> list[bytes]:
    """The payload of each record that is there."""
    records = [decode_record(data) for data in page.records]
    return [record.payload for record in records if record is not None]


def refusal(operation: Callable[[], object]) -> str:
    """The reason of the `TierError` that it raises."""
    with pytest.raises(TierError) as refused:
        operation()
    return refused.value.reason


def until_answered(operation: Callable[[], Any]) -> Any:
    """What it returns once the breaker lets it ask again and the server answers."""

    def answered() -> list[Any]:
        with suppress(TierError):
            return [operation()]
        return []

    return eventually(answered, 30, "an answer")[0]


def impatient(face: str, url: str) -> Any:
    """A tier with the time-outs that readers have."""
    return connect(face, url, NAMESPACE)


def test_a_flushed_server_is_closed_until_an_epoch_begins(tier, server):
    """After a flush nothing is served, leased, put or applied, and no operation raises."""
    lease = tier.lease(KEYS[0], 0, [], refresh=True)
    server.flush()
    assert tier.look(KEYS) == Page(None, [None] * len(KEYS))
    assert tier.lease(KEYS[0], 0, [], refresh=False).grant is Grant.CLOSED
    assert tier.put(put_of(KEYS[0], lease.lease, b"old")) is Reject.CLOSED
    assert tier.apply([Bump(KEYS[0], 2, False)], [], []).epoch is None
    assert tier.progress() == (None, {})
    epoch = tier.open("closed", [])
    assert tier.put(put_of(KEYS[0], lease.lease, b"old")) is Reject.LEASE
    assert tier.look(KEYS) == Page(epoch, [None] * len(KEYS))


def test_a_server_that_was_restarted_is_asked_over_new_connections(tier, server):
    """Connections that died with the server are no error for those who read next."""
    server.restart()
    assert tier.look(KEYS[:1]) == Page(None, [None])
    assert tier.lease(KEYS[0], 0, [], refresh=False).grant is Grant.CLOSED
    server.restart()
    assert tier.progress().epoch is None


def test_a_server_that_is_down_is_a_tier_error_and_its_return_is_noticed(tier, server):
    """Every operation of a dead server raises its reason; a new server is found by itself."""
    server.kill()
    asked = [
        lambda: tier.look(KEYS),
        lambda: tier.lease(KEYS[0], 0, [], refresh=False),
        lambda: tier.put(put_of(KEYS[0], bytes(8), b"")),
        lambda: tier.release(KEYS[0], b"12345678"),
        lambda: tier.time(),
    ]
    assert {refusal(one) for one in asked} <= {"connection", "bypassed"}
    for patient in (lambda: tier.apply([], [], []), lambda: tier.open("x", []), lambda: tier.progress()):
        assert refusal(patient) == "connection"
    server.start()
    assert until_answered(lambda: tier.look(KEYS[:1])) == Page(None, [None])


def test_a_forgotten_script_is_sent_again(tier, server):
    """A server that forgot its scripts learns them by the next call of each."""
    for operation in (
        lambda: tier.lease("r:other:1", 0, ["s:a"], refresh=False).grant is Grant.GRANTED,
        lambda: tier.put(put_of(KEYS[0], b"12345678", b"")) is Reject.LEASE,
        lambda: tier.release(KEYS[0], b"12345678") is None,
        lambda: tier.apply([Bump(KEYS[0], 2, False)], [], []).lost is False,
        lambda: tier.progress().offsets == {("t", 0): 0},
        lambda: len(tier.open("again", [])) == 8,
    ):
        assert server.say("SCRIPT FLUSH") == "+OK"
        assert operation()


def test_a_server_without_memory_is_read_and_not_written(tier, server):
    """Without memory writes have a reason, reads go on, and no progress is noted for events that were not applied."""
    assert server.say("CONFIG SET maxmemory 1") == "+OK"
    assert refusal(lambda: tier.lease("r:other:1", 0, [], refresh=False)) == "memory"
    assert refusal(lambda: tier.apply([Bump(KEYS[0], 9, False)], [], [Position("t", 0, 0, 5)])) == "memory"
    assert payloads(tier.look(KEYS)) == [key.encode() for key in KEYS]
    assert tier.progress().offsets == {("t", 0): 0}
    assert server.say("CONFIG SET maxmemory 0") == "+OK"
    assert tier.apply([Bump(KEYS[0], 9, False)], [], [Position("t", 0, 0, 5)]).lost is False
    assert decode_record(tier.look(KEYS).records[0]).floor == 9


def test_a_server_that_evicts_forgets_and_never_lies(tier, server):
    """While everything may be evicted at any time, a record is whole or absent, or the tier is closed."""
    assert server.say("CONFIG SET maxmemory-policy allkeys-random") == "+OK"
    assert server.say("CONFIG SET maxmemory 2mb") == "+OK"
    with Redis.from_url(server.url) as client:
        for number in range(200):
            client.set(f"foreign:{number}", bytes(20_000))
            with suppress(TierError):
                page = tier.look(KEYS)
                if page.epoch is not None:
                    for key, data in zip(KEYS, page.records, strict=True):
                        assert data is None or decode_record(data).payload in {b"", key.encode()}
                if page.epoch is None:
                    tier.open("closed", [])
                tier.apply([Bump(KEYS[number % 10], number + 2, False)], [], [])
        assert client.info("stats")["evicted_keys"] > 0


def test_a_replica_is_read_and_not_written(tier, server):
    """A server that became a replica refuses writes with a reason."""
    with private_server() as primary:
        assert server.say("CONFIG SET replica-serve-stale-data yes") == "+OK"
        server.say(f"REPLICAOF 127.0.0.1 {primary.port}")
        assert refusal(lambda: tier.lease("r:other:1", 0, [], refresh=False)) == "readonly"
        assert refusal(lambda: tier.apply([Bump(KEYS[0], 9, False)], [], [])) == "readonly"
        assert refusal(lambda: tier.open("x", [])) == "readonly"
        assert tier.look([]).epoch is None or payloads(tier.look(KEYS))


def test_a_password_that_was_set_meanwhile_is_a_reason(face, server):
    """A server that wants a login says so to new connections, and to nobody the password or the keys."""
    assert server.say("CONFIG SET requirepass secret") == "+OK"
    fresh = connect(face, server.url, NAMESPACE, timeout_seconds=PATIENCE_SECONDS)
    assert refusal(lambda: fresh.look(KEYS)) == "auth"
    fresh.close()


def test_a_cluster_without_slots_is_a_reason(face):
    """A node that serves no slot is a reason, and no answer."""
    with private_server({"cluster-enabled": "yes"}) as node:
        lonely = connect(face, node.url, NAMESPACE, timeout_seconds=PATIENCE_SECONDS)
        assert refusal(lambda: lonely.look(KEYS)) == "cluster"
        assert refusal(lambda: lonely.open("x", [])) == "cluster"
        lonely.close()


def test_a_server_that_runs_a_foreign_script_for_ever_is_a_reason(face):
    """While another client's script holds the server, everybody else gets a reason, and afterwards the answer."""
    with private_server({"lua-time-limit": "1"}) as busy, Redis.from_url(busy.url) as client:
        own = connect(face, busy.url, NAMESPACE, timeout_seconds=PATIENCE_SECONDS)
        fill(own)

        def loop_for_ever() -> None:
            with suppress(Exception):  # killed in the end
                client.eval("while true do end", 0)

        looping = threading.Thread(target=loop_for_ever)
        looping.start()
        eventually(lambda: busy.say("PING").startswith("-BUSY"), 20, "the script to hold the server")
        assert refusal(lambda: own.look(KEYS)) == "busy"
        busy.say("SCRIPT KILL")
        looping.join()
        assert payloads(own.look(KEYS)) == [key.encode() for key in KEYS]
        own.close()


def test_a_loading_server_is_a_reason(face):
    """A server that reads its data from disk is waited for without an exception of another kind."""
    # It serves clients after every two megabytes that it has read.
    with private_server({"key-load-delay": "2000", "rdbcompression": "no"}) as loading:
        with Redis.from_url(loading.url) as client:
            client.mset({f"k{number}": bytes(40_000) for number in range(300)})
            client.save()
        own = connect(face, loading.url, NAMESPACE, timeout_seconds=PATIENCE_SECONDS, breaker=Breaker(10**9))
        loading.kill()
        starting = threading.Thread(target=loading.start)
        starting.start()
        reasons = set()
        while starting.is_alive():
            try:
                assert own.look(KEYS[:1]).records == [None]
            except TierError as error:
                reasons.add(error.reason)
        assert "loading" in reasons
        assert reasons <= {"loading", "connection"}
        own.close()


def test_a_frozen_server_costs_one_wait_and_is_bypassed_then(tier, server, face):
    """Readers of a frozen server wait once; the next ones are told at once, until a probe finds it thawed."""
    held = Breaker(bypass_seconds=(3600.0, 3600.0))
    own = connect(face, server.url, NAMESPACE, breaker=held)
    until_answered(lambda: payloads(own.look(KEYS)))
    server.pause()
    assert refusal(lambda: own.look(KEYS)) == "timeout"
    for _ in range(1000):
        assert refusal(lambda: own.look(KEYS)) == "bypassed"
    assert refusal(lambda: own.lease(KEYS[0], 0, [], refresh=False)) == "bypassed"
    own.close()
    probing = impatient(face, server.url)
    assert refusal(lambda: probing.look(KEYS)) == "timeout"
    server.resume()
    assert until_answered(lambda: payloads(probing.look(KEYS))) == [key.encode() for key in KEYS]
    probing.close()


@pytest.mark.parametrize("fault", ["freeze", "drop_replies", "latency"])
def test_a_reply_that_nobody_waited_for_is_never_taken_for_another(face, tier, server, fault):
    """After a time-out the next answer is that of its own question, whatever arrives late."""
    with TcpProxy(server.port) as proxy:
        own = connect(face, f"redis://127.0.0.1:{proxy.port}", NAMESPACE, breaker=Breaker(10**9))
        until_answered(lambda: payloads(own.look(KEYS)))
        for key in KEYS[:5]:
            if fault == "latency":
                proxy.latency(0.2)
            else:
                getattr(proxy, fault)()
            assert refusal(lambda: own.look(KEYS[5:6])) == "timeout"
            assert refusal(lambda: own.lease("r:none:1", 0, [], refresh=True)) == "timeout"
            if fault == "drop_replies":
                proxy.cut()
            if fault == "freeze":
                proxy.thaw()
            proxy.heal()
            assert until_answered(lambda key=key: payloads(own.look([key]))) == [key.encode()]
        own.close()


def test_connections_that_are_reset_are_made_anew(face, server, tier):
    """A reset is one wait for a new connection, and no error; a port that refuses is a reason."""
    with TcpProxy(server.port) as proxy:
        own = connect(face, f"redis://127.0.0.1:{proxy.port}", NAMESPACE, timeout_seconds=PATIENCE_SECONDS)
        for _ in range(5):
            assert payloads(own.look(KEYS[:1])) == [KEYS[0].encode()]
            assert own.lease(KEYS[0], 0, [], refresh=False).grant is Grant.USABLE
            proxy.cut()
        proxy.refuse()
        proxy.cut()
        assert refusal(lambda: own.look(KEYS)) == "connection"
        proxy.accept()
        assert until_answered(lambda: payloads(own.look(KEYS[:1]))) == [KEYS[0].encode()]
        own.close()


def test_an_event_whose_answer_was_lost_may_be_applied_again(face, server, tier):
    """A server that acted and whose answer never came leaves the same after the second time."""
    with TcpProxy(server.port) as proxy:
        own = connect(face, f"redis://127.0.0.1:{proxy.port}", NAMESPACE, timeout_seconds=PATIENCE_SECONDS)
        own.progress()
        sprung = proxy.cut_after(b"EVALSHA")
        applied = own.apply([Bump(KEYS[0], 7, False)], [], [Position("t", 0, 0, 3)])
        assert sprung.is_set()
        assert applied.lost is False
        assert decode_record(own.look(KEYS[:1]).records[0]).floor == 7
        assert own.progress().offsets == {("t", 0): 3}
        own.close()


def test_a_lease_whose_answer_was_lost_is_granted_to_who_asked(face, server, tier):
    """A lease that the server gave and nobody heard of does not keep out the one it was given to."""
    with TcpProxy(server.port) as proxy:
        own = connect(face, f"redis://127.0.0.1:{proxy.port}", NAMESPACE, timeout_seconds=PATIENCE_SECONDS)
        own.look(KEYS)
        sprung = proxy.cut_after(b"EVALSHA")
        lease = own.lease("r:other:1", 0, [], refresh=False)
        assert sprung.is_set()
        assert lease.grant is Grant.GRANTED
        assert own.put(put_of("r:other:1", lease.lease, b"value")) is None
        own.close()


def test_something_else_on_the_port_is_a_reason(face):
    """A server that speaks another language is a reason, and no value."""
    import socketserver

    class Greeter(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(65536):
                self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greeter) as greeter:
        greeter.daemon_threads = True
        threading.Thread(target=greeter.serve_forever, daemon=True).start()
        own = connect(face, f"redis://127.0.0.1:{greeter.server_address[1]}", NAMESPACE, timeout_seconds=5)
        assert refusal(lambda: own.look(KEYS)) in {"reply", "connection"}
        assert refusal(lambda: own.progress()) in {"reply", "connection"}
        own.close()
        greeter.shutdown()


@pytest.mark.parametrize("reply", [b"+OK\r\n", b":1\r\n", b"$-1\r\n", b"*0\r\n", b"*1\r\n$1\r\nx\r\n", b"$1\r\nx\r\n"])
def test_a_reply_of_another_shape_is_a_reason(face, reply):
    """What a foreign proxy makes up in good grammar is refused as well, or means that nothing is there."""
    import socketserver

    class Parrot(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(65536):
                # The handshake of a connection gets the answers that it wants.
                count = data.count(b"SETINFO")
                self.request.sendall(b"+OK\r\n" * count if count else reply)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Parrot) as parrot:
        parrot.daemon_threads = True
        threading.Thread(target=parrot.serve_forever, daemon=True).start()
        own = connect(face, f"redis://127.0.0.1:{parrot.server_address[1]}", NAMESPACE, timeout_seconds=5)
        for operation in (
            lambda: own.look(KEYS),
            lambda: own.lease(KEYS[0], 0, [], refresh=False),
            lambda: own.put(put_of(KEYS[0], b"12345678", b"")),
            lambda: own.apply([Bump(KEYS[0], 1, False)], [], []),
            lambda: own.open("x", []),
            lambda: own.progress(),
            lambda: own.time(),
        ):
            assert refusal(operation) == "reply"
        own.close()
        parrot.shutdown()


def test_a_value_beyond_the_limit_is_not_sent_and_its_lease_is_given_back(tier):
    """What is too large is refused here, and the next reader may load at once."""
    lease = tier.lease("r:large:1", 0, [], refresh=False)
    payload = bytes(tier.commands.limits.value_bytes_max + 1)
    assert tier.put(put_of("r:large:1", lease.lease, payload)) is Reject.TOO_LARGE
    assert tier.look(["r:large:1"]).records == [None]
    assert tier.lease("r:large:1", 0, [], refresh=False).grant is Grant.GRANTED


@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 3}, {"socket_timeout": 5}, {"db": 3}])
def test_a_client_of_ones_own_may_be_given(face, server, options):
    """Whatever a service's client decodes or speaks, the tier reads bytes and writes into the client's database."""
    kind, around = (Redis, RedisShared) if face == "sync" else (AsyncRedis, AsyncRedisShared)
    tier = around(kind.from_url(server.url, **options), NAMESPACE)
    own = tier if face == "sync" else Blocking(tier)
    until_answered(lambda: fill(own))
    assert payloads(until_answered(lambda: own.look(KEYS))) == [key.encode() for key in KEYS]
    with Redis.from_url(server.url, db=options.get("db", 0)) as client:
        assert len(client.keys("*")) == len(KEYS) + 2
    own.close()


@pytest.mark.parametrize("namespace", ["", "a b", "a{b}", "ü", "x" * 101])
def test_a_namespace_that_cannot_be_a_hash_tag_is_refused(namespace):
    """A namespace is made of the characters that cannot be mistaken for something else in a key."""
    with pytest.raises(CacheError, match="RLY-903"):
        RedisShared.from_url("redis://127.0.0.1:1", namespace)


def test_a_client_without_connections_of_its_own_is_refused():
    """A cluster's client spreads commands over nodes; a namespace lives on one of them."""
    with pytest.raises(CacheError, match="RLY-903"):
        RedisShared(object(), NAMESPACE)  # type: ignore[arg-type]


FORKING = """\
import os, sys
from relay.cache.redis import RedisShared
tier = RedisShared.from_url(sys.argv[1], sys.argv[2], timeout_seconds=20)
keys = [f"r:user:{n}" for n in range(10)]
def check(rounds):
    for n in range(rounds):
        key = keys[n % 10]
        assert tier.look([key]).records[0].endswith(key.encode()), key
check(10)
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        try:
            check(300)
        except BaseException:
            os._exit(1)
        os._exit(0)
    children.append(pid)
check(300)
assert all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in children)
check(10)
"""


def test_forked_processes_share_no_connection(server):
    """A tier that was used before a fork gives parent and children their own answers."""
    own = connect("sync", server.url, NAMESPACE, timeout_seconds=PATIENCE_SECONDS)
    fill(own)
    own.close()
    done = subprocess.run(
        [sys.executable, "-c", FORKING, server.url, NAMESPACE], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_many_threads_get_their_own_answers(server):
    """Sixteen threads with one tier read each their key and never another one."""
    own = connect("sync", server.url, NAMESPACE, timeout_seconds=PATIENCE_SECONDS)
    fill(own)
    found: dict[str, set[bytes]] = {key: set() for key in KEYS}

    def read(key: str) -> None:
        for _ in range(100):
            found[key].update(payloads(own.look([key])))

    threads = [threading.Thread(target=read, args=(KEYS[number % 10],)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {key: {key.encode()} for key in KEYS}
    own.close()
