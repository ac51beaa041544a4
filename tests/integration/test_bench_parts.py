"""The bench itself: faults that do not happen would make every fault test pass."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Producer

from relay.demo import postgres as embedded
from relay.demo.postgres import EmbeddedPostgres, PostgresError
from tests.support.kafka import KafkaCluster
from tests.support.nemesis import end_sessions
from tests.support.postgres import bare_database, drop_database, private_server
from tests.support.proxy import TcpProxy
from tests.support.scenario import ask
from tests.support.topic import count_records, read_topic


@pytest.fixture
def bare(pg):
    """A database without the schema: these tests are about the bench, not about the relay."""
    dsn = bare_database(pg)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE note (id int)")
    yield dsn
    drop_database(pg, dsn)


@pytest.fixture
def proxy(pg):
    with TcpProxy(pg.port) as proxy:
        yield proxy


@pytest.fixture
def through(pg, proxy, bare):
    """Connects to the bare database by way of the proxy."""

    @contextmanager
    def connect():
        dsn = bare.replace(f":{pg.port}/", f":{proxy.port}/")
        connection = psycopg.connect(dsn, autocommit=True, connect_timeout=20)
        try:
            yield connection
        finally:
            connection.close()

    return connect


def notes(dsn: str) -> list[int]:
    with psycopg.connect(dsn) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM note ORDER BY id")]


def eventually(holds, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.01)
    return False


class Later(threading.Thread):
    """Runs a statement aside, for asking whether it is still waiting."""

    def __init__(self, connection, statement: str) -> None:
        super().__init__(daemon=True)
        self._work = (connection, statement)
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        connection, statement = self._work
        try:
            connection.execute(statement)
        except psycopg.Error as error:
            self.error = error


def test_an_idle_proxy_is_transparent(through):
    with through() as connection:
        big = "x" * 3_000_000
        assert connection.execute("SELECT %s::text", [big]).fetchone() == (big,)


def test_frozen_traffic_waits_and_arrives_when_it_thaws(through, proxy, bare):
    with through() as connection:
        proxy.freeze()
        later = Later(connection, "INSERT INTO note VALUES (1)")
        later.join(0.3)
        assert later.is_alive()
        assert notes(bare) == []
        proxy.thaw()
        later.join(30)
        assert later.error is None
        assert notes(bare) == [1]


def test_a_freeze_of_the_way_down_lets_the_server_act(through, proxy, bare):
    with through() as connection:
        proxy.freeze("down")
        later = Later(connection, "INSERT INTO note VALUES (1)")
        assert eventually(lambda: notes(bare) == [1])
        assert later.is_alive()
        proxy.thaw()
        later.join(30)
        assert later.error is None


def test_a_frozen_network_hides_the_death_of_the_client(pg, proxy, through):
    with through() as connection:
        pid = connection.info.backend_pid
        proxy.freeze()
    time.sleep(0.2)
    with psycopg.connect(pg.dsn()) as watcher:
        still_there = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        assert watcher.execute(still_there, [pid]).fetchone() == (1,)
        proxy.thaw()
        watcher.rollback()
        assert eventually(lambda: watcher.execute(still_there, [pid]).fetchone() == (0,))


def test_a_frozen_proxy_still_accepts_connections(proxy):
    proxy.freeze()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
        client.sendall(b"x" * 1_000_000)
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_a_cut_resets_every_connection_and_welcomes_new_ones(through, proxy):
    with through() as one, through() as other:
        assert proxy.connections == 2
        proxy.cut()
        assert proxy.connections == 0
        for connection in (one, other):
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
    with through() as connection:
        connection.execute("SELECT 1")


def test_a_cut_is_a_reset_and_not_a_goodbye(proxy):
    with socket.create_connection(("127.0.0.1", proxy.port)) as client:
        assert eventually(lambda: proxy.connections == 1)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_refused_connections_are_refused_while_present_ones_go_on(through, proxy):
    with through() as connection:
        proxy.refuse()
        connection.execute("SELECT 1")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port))
        proxy.accept()
        with through() as another:
            another.execute("SELECT 1")


def seconds_of(connection, statement: str = "SELECT 1") -> float:
    started = time.monotonic()
    connection.execute(statement)
    return time.monotonic() - started


def test_latency_delays_each_way(through, proxy):
    with through() as connection:
        proxy.latency(0.15)
        assert seconds_of(connection) >= 0.3
        proxy.latency(0)
        assert min(seconds_of(connection) for _ in range(10)) < 0.3


def test_bandwidth_is_bounded(through, proxy):
    with through() as connection:
        proxy.bandwidth(500_000)
        assert seconds_of(connection, "SELECT repeat('x', 250000)") >= 0.4


@pytest.mark.parametrize("forward", [True, False])
def test_a_cut_at_the_commit_leaves_the_client_in_doubt(through, proxy, bare, forward):
    with through() as connection:
        connection.autocommit = False
        connection.execute("INSERT INTO note VALUES (1)")
        sprung = proxy.cut_after(b"COMMIT", forward=forward)
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
        assert sprung.wait(30)
    assert notes(bare) == ([1] if forward else [])
    with through() as connection:
        connection.execute("BEGIN")
        connection.execute("COMMIT")


def test_dropped_replies_hide_what_the_server_did(through, proxy, bare):
    with through() as connection:
        proxy.drop_replies()
        later = Later(connection, "INSERT INTO note VALUES (1)")
        assert eventually(lambda: notes(bare) == [1])
        assert later.is_alive()
        proxy.cut()
        later.join(30)
        assert isinstance(later.error, psycopg.OperationalError)
        proxy.heal()


def test_a_bytes_needle_is_found_across_two_chunks(proxy):
    sprung = proxy.cut_after(b"COMMIT", forward=False)
    with socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.sendall(b"xxCOM")
        time.sleep(0.1)
        assert not sprung.is_set()
        client.sendall(b"MITxx")
        assert sprung.wait(30)


def test_a_proxy_closes_twice_and_before_it_started(pg):
    proxy = TcpProxy(pg.port)
    proxy.close()
    proxy.start()
    proxy.close()
    proxy.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port))


@pytest.mark.parametrize("version", [16, 18])
def test_a_killed_postgres_keeps_what_was_committed(version):
    with private_server(version) as server:
        with psycopg.connect(server.dsn()) as connection:
            connection.execute("CREATE TABLE note (id int)")
            connection.execute("INSERT INTO note VALUES (1)")
            connection.commit()
            connection.execute("INSERT INTO note VALUES (2)")
            server.kill()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
            connection.close()
        server.start()
        assert "not properly shut down" in server.log_tail(50)
        assert notes(server.dsn()) == [1]


def test_a_killed_postgres_leaves_no_backend_behind():
    with private_server() as server:
        with psycopg.connect(server.dsn(), autocommit=True) as busy:
            Later(busy, "SELECT pg_sleep(30)")
            family = embedded._children(server.pid)
            server.kill()
            assert {pid for pid, _, state in embedded._processes() if state != "Z"}.isdisjoint(family)


def test_a_server_that_cannot_start_says_why():
    with (
        pytest.raises(PostgresError, match="shared_buffers"),
        private_server(settings={"shared_buffers": "no"}),
    ):
        pass


def test_a_stopped_server_stops_again_and_comes_back_on_its_port():
    server = EmbeddedPostgres()
    try:
        server.stop()
        server.start()
        server.start()
        port = server.port
        server.stop()
        server.stop()
        server.restart("immediate")
        assert server.port == port
        assert psycopg.connect(server.dsn()).execute("SHOW fsync").fetchone() == ("on",)
    finally:
        server.close()
        server.close()
    assert not server.data_dir.exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_takes_its_servers_along(how):
    script = (
        "import time; from relay.demo.postgres import EmbeddedPostgres;"
        "server = EmbeddedPostgres(); server.start();"
        "print(server.pid, server.data_dir, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pid, data_dir = parent.stdout.readline().split()
    parent.send_signal(how)
    parent.communicate()
    assert eventually(lambda: not is_alive(int(pid)) and not Path(data_dir).exists())


def test_a_server_outlives_the_thread_that_started_it():
    """A parent-death signal would not pass this: it is sent when the *thread* ends."""
    server = EmbeddedPostgres()
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    time.sleep(0.3)
    try:
        psycopg.connect(server.dsn()).close()
    finally:
        server.close()


def is_alive(pid: int) -> bool:
    return any(found == pid and state not in "ZX" for found, _, state in embedded._processes())


def send(bootstrap: str, topic: str, count: int) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "log_level": 0})
    for number in range(count):
        producer.produce(topic, b"value %d" % number, b"key %d" % (number % 5), headers={"event_id": str(number)})
    assert producer.flush(60) == 0


def test_a_topic_is_read_whole(kafka, topic):
    assert read_topic(kafka.bootstrap, topic) == []
    send(kafka.bootstrap, topic, 2_000)
    records = read_topic(kafka.bootstrap, topic)
    assert sorted(int(record.event_id or -1) for record in records) == list(range(2_000))
    assert {record.key for record in records} == {b"key %d" % number for number in range(5)}


def test_records_are_counted_whatever_has_become_of_them(kafka, topic):
    assert count_records(kafka.bootstrap, topic) == 0
    send(kafka.bootstrap, topic, 300)
    assert count_records(kafka.bootstrap, topic) == 300


def test_the_sessions_of_relays_are_ended_and_no_others(bare):
    names = ["relay worker 0 one-1", "relay watch one-1", "relay worker 0 two-2", "application"]
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(psycopg.connect(bare, autocommit=True, application_name=name))
        assert end_sessions(bare) == 3
        left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = ANY (%s)"
        assert eventually(lambda: ask(bare, left, names) == 1)


@pytest.mark.faults
def test_three_brokers_survive_the_kill_of_a_leader():
    with KafkaCluster(3) as cluster:
        cluster.create_topic("t")
        send(cluster.bootstrap, "t", 100)
        leader = cluster.leader("t", 0)
        cluster.kill(leader)
        send(cluster.bootstrap, "t", 100)
        assert eventually(lambda: cluster.leader("t", 0) not in {leader, -1})
        cluster.start_broker(leader)
        assert len(read_topic(cluster.bootstrap, "t")) == 200


@pytest.mark.faults
def test_a_broker_that_was_down_paused_or_stopped_keeps_its_records():
    with KafkaCluster() as cluster:
        cluster.create_topic("t", 2, {"max.message.bytes": "5000"})
        send(cluster.bootstrap, "t", 100)
        cluster.down()
        cluster.up()
        cluster.stop(0)
        cluster.start_broker(0)
        cluster.pause(0)
        cluster.resume(0)
        cluster.alter_topic("t", {"max.message.bytes": "9000"})
        assert len(read_topic(cluster.bootstrap, "t")) == 100
        cluster.delete_topic("t")


@pytest.mark.faults
def test_clients_of_a_proxied_cluster_go_through_the_proxy():
    with KafkaCluster(proxied=True) as cluster:
        cluster.create_topic("t")
        send(cluster.bootstrap, "t", 10)
        once = {"retries": 0, "message.timeout.ms": 2000, "log_level": 0}
        producer = Producer({"bootstrap.servers": cluster.bootstrap, **once})
        outcomes = []
        producer.produce("t", b"sure", on_delivery=lambda error, _: outcomes.append(error))
        producer.flush(10)
        cluster.proxies[0].drop_replies()
        producer.produce("t", b"in doubt", on_delivery=lambda error, _: outcomes.append(error))
        producer.flush(10)
        cluster.proxies[0].cut()
        cluster.proxies[0].heal()
        assert [error is None for error in outcomes] == [True, False]
        assert b"in doubt" in {record.value for record in read_topic(cluster.bootstrap, "t")}
