"""Real Kafka brokers as child processes: KRaft, one to three of them, from pinned jars.

A mock answers what we think Kafka answers. These are for what only a broker knows: leaders that move, logs
that truncate, records that are acknowledged and then gone.

Each broker is its own controller as well, so killing a leader may move the controller too, as on small real
clusters. Clients use a listener of their own, which is the one a proxy can stand in front of; brokers
talk to each other past it.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from confluent_kafka import KafkaError as ErrorCode
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from relay.demo.server import Lifeline, free_port
from tests.support.proxy import TcpProxy

VERSION = "4.1.0"
POM = Path(__file__).with_name("kafka") / "pom.xml"
CLUSTER_ID = "cmVsYXktdGVzdC1iZW5jaA"
NOTHING: Mapping[str, str] = MappingProxyType({})

#: A dead broker is declared dead after 3 s instead of 9, and what is sized for a data centre is made small.
SMALL_AND_QUICK = {
    "auto.create.topics.enable": "false",
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "3000",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "500",
    "log.cleaner.dedupe.buffer.size": "4194304",
    "log.segment.delete.delay.ms": "1000",
    "num.partitions": "8",
    "offsets.topic.num.partitions": "4",
    "process.roles": "broker,controller",
    "share.coordinator.state.topic.num.partitions": "1",
    "transaction.state.log.num.partitions": "4",
}


class KafkaError(RuntimeError):
    """The cluster did not do what was asked; the message carries the end of a broker's log."""


def jars() -> Path:
    """The folder of the broker's jars, fetched from Maven Central once per machine."""
    root = Path(os.environ.get("RELAY_TEST_CACHE", Path.home() / ".cache" / "relay-test"))
    target = root / f"kafka-{VERSION}"
    if not target.exists():
        root.mkdir(parents=True, exist_ok=True)
        _fetch(target)
    return target


def _fetch(target: Path) -> None:
    """Fetches beside and renames, so that a second session sees all jars or none."""
    maven = _tool("mvn", "Maven (Debian: apt-get install maven)")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as work:
        libs = Path(work) / "libs"
        command = [maven, "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
        done = subprocess.run(
            [*command, "-DincludeScope=runtime", f"-DoutputDirectory={libs}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise KafkaError(f"could not fetch Kafka {VERSION} with Maven:\n{done.stdout}{done.stderr}")
        with contextlib.suppress(OSError):
            libs.rename(target)


def _tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise KafkaError(f"the Kafka tests need {package}: {name} is not on the PATH")
    return found


class Broker:
    """One JVM with its ports and its log folder, which outlive the process."""

    def __init__(self, index: int, folder: Path, heap: list[str]) -> None:
        self.index = index
        self.node_id = index + 1
        self.folder = folder
        self.client_port, self.internal_port, self.controller_port = free_port(), free_port(), free_port()
        self._heap = heap
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: Lifeline | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def listens(self) -> bool:
        """True if the client port accepts; asked before any client is made, as clients back off for long."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.client_port)) == 0

    @property
    def ended_by_itself(self) -> bool:
        """True if nobody here ended it: a wrong property, no memory, a taken port."""
        return self._process is not None and self._process.poll() is not None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"broker {self.index} is not running"
        return self._process.pid

    def format(self, properties: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Starts writing the empty storage; several brokers do so side by side."""
        self.folder.mkdir(parents=True)
        lines = (f"{name}={value}\n" for name, value in properties.items())
        (self.folder / "server.properties").write_text("".join(lines))
        quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx64m"]
        arguments = ["format", "-t", CLUSTER_ID, "-c", str(self.folder / "server.properties")]
        return self._java([*quick, *self._main("kafka.tools.StorageTool"), *arguments])

    def start(self, cluster_folder: Path) -> None:
        if self.is_running:
            return
        self._let_go()
        collector = ["-XX:MaxGCPauseMillis=20", "-XX:+PerfDisableSharedMem", "-Djava.awt.headless=true"]
        main = self._main("kafka.Kafka")
        self._process = self._java([*self._heap, *collector, *main, str(self.folder / "server.properties")])
        self._lifeline = Lifeline(self._process.pid, stop_signal="KILL", folder=cluster_folder)

    def end(self, how: signal.Signals, timeout_seconds: float = 60) -> None:
        """Ends the process with this signal and waits; one that ignores it is killed and reported."""
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise KafkaError(f"broker {self.index} ignored {how.name}{self.said()}") from None
        finally:
            self._let_go()

    def said(self, lines: int = 15) -> str:
        text = (self.folder / "broker.log").read_text(errors="replace").splitlines()
        return "; its log ends with:\n" + "\n".join(text[-lines:])

    def _main(self, name: str) -> list[str]:
        quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        return [quiet, "-cp", f"{jars()}/*", name]

    def _java(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        java = _tool("java", "a JDK or JRE, 17 or newer (Debian: apt-get install openjdk-17-jre-headless)")
        with (self.folder / "broker.log").open("ab") as log:
            return subprocess.Popen(
                [java, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )

    def _let_go(self) -> None:
        self._process = None
        if self._lifeline is not None:
            self._lifeline.release()
            self._lifeline = None


class KafkaCluster:
    """One or three brokers that a test may kill, freeze and bring back, on the same ports and data.

    Args:
        proxied: clients are led through `proxies[i]`, in front of broker i.
        properties: broker properties over ours, the same for every broker.
    """

    def __init__(
        self,
        brokers: int = 1,
        *,
        replication_factor: int | None = None,
        min_insync_replicas: int | None = None,
        proxied: bool = False,
        properties: Mapping[str, str] = NOTHING,
    ) -> None:
        self.replication_factor = replication_factor or min(3, brokers)
        self.min_insync_replicas = min_insync_replicas or (2 if brokers == 3 else 1)
        self._properties = dict(properties)
        self._folder = Path(tempfile.mkdtemp(prefix="relay-kafka-"))
        heap = ["-Xms256m", "-Xmx512m"] if brokers == 1 else ["-Xms256m", "-Xmx384m"]
        self.brokers = [Broker(index, self._folder / f"broker-{index}", heap) for index in range(brokers)]
        self.proxies = [TcpProxy(broker.client_port) for broker in self.brokers] if proxied else []
        self._admin: AdminClient | None = None
        self._owner = os.getpid()
        atexit.register(self._close_at_exit)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def bootstrap(self) -> str:
        """What a client is given; the proxies' ports if there are any."""
        return ",".join(f"127.0.0.1:{self._client_port(broker)}" for broker in self.brokers)

    def start(self) -> None:
        """Formats the storage and returns when every broker serves clients."""
        for proxy in self.proxies:
            proxy.start()
        formatting = [broker.format(self._properties_of(broker)) for broker in self.brokers]
        for broker, process in zip(self.brokers, formatting, strict=True):
            if process.wait(60) != 0:
                raise KafkaError(f"could not format the storage of broker {broker.index}{broker.said()}")
        self.up()

    def close(self) -> None:
        """Kills every broker and deletes the data."""
        atexit.unregister(self._close_at_exit)
        self._admin = None
        for broker in self.brokers:
            broker.end(signal.SIGKILL)
        for proxy in self.proxies:
            proxy.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def create_topic(self, name: str, partitions: int = 8, config: Mapping[str, str] = NOTHING) -> None:
        """Returns when every partition has a leader and all its replicas, not before."""
        merged = {"min.insync.replicas": str(self.min_insync_replicas), **config}
        topic = NewTopic(name, partitions, self.replication_factor, config=merged)
        self._until(f"topic {name} is created", lambda: self._has_created(topic))
        self._until(f"topic {name} has its replicas", lambda: self._is_served(name, partitions))

    def create_topic_on(self, name: str, replicas: list[list[int]], config: Mapping[str, str] = NOTHING) -> None:
        """As `create_topic`, with the brokers of each partition by index, the leader first."""
        assignment = [[index + 1 for index in partition] for partition in replicas]
        topic = NewTopic(name, len(replicas), replica_assignment=assignment, config=dict(config))
        self._until(f"topic {name} is created", lambda: self._has_created(topic))
        self._until(f"topic {name} has its replicas", lambda: self._is_served(name, len(replicas)))

    def _has_created(self, topic: NewTopic) -> bool:
        """One try, with a new client if need be: one may wait for minutes for a controller that has moved."""
        try:
            self._admin_client().create_topics([topic], operation_timeout=10, request_timeout=10)[topic.topic].result()
        except KafkaException as error:
            self._admin = None
            return bool(error.args[0].code() == ErrorCode.TOPIC_ALREADY_EXISTS)
        return True

    def delete_topic(self, name: str) -> None:
        self._admin_client().delete_topics([name], operation_timeout=30)[name].result()
        self._until(f"topic {name} is gone", lambda: name not in self._metadata().topics)

    def alter_topic(self, name: str, config: Mapping[str, str]) -> None:
        """Sets these properties of the topic and leaves the others."""
        entries = [
            ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET) for key, value in config.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        for outcome in self._admin_client().incremental_alter_configs([resource]).values():
            outcome.result()

    def add_partitions(self, name: str, total: int) -> None:
        """Raises the partition count, which moves keys: order across that is not promised."""
        from confluent_kafka.admin import NewPartitions

        self._admin_client().create_partitions([NewPartitions(name, total)])[name].result()
        self._until(f"topic {name} has {total} partitions", lambda: self._is_served(name, total))

    def leader(self, topic: str, partition: int) -> int:
        """The index of the broker that leads this partition, -1 if none does."""
        node_id: int = self._metadata(topic).topics[topic].partitions[partition].leader
        return node_id - 1 if node_id > 0 else -1

    def kill(self, index: int) -> None:
        """Ends one broker as a crash does."""
        self.brokers[index].end(signal.SIGKILL)

    def stop(self, index: int) -> None:
        """Ends one broker cleanly: it hands its partitions over first."""
        self.brokers[index].end(signal.SIGTERM)

    def start_broker(self, index: int) -> None:
        """Brings one broker back; returns when it serves clients and the others know it."""
        broker = self.brokers[index]
        broker.start(self._folder)
        self._until(f"broker {index} listens", lambda: broker.listens)
        self._until(f"broker {index} is back", lambda: broker.node_id in self._metadata().brokers)

    def pause(self, index: int) -> None:
        """Freezes one broker: its connections stay open and nothing answers."""
        os.kill(self.brokers[index].pid, signal.SIGSTOP)

    def resume(self, index: int) -> None:
        os.kill(self.brokers[index].pid, signal.SIGCONT)

    def repair(self) -> None:
        """As it was at first, whatever a test has left it in."""
        for broker in self.brokers:
            if broker.is_running:
                self.resume(broker.index)
        for proxy in self.proxies:
            proxy.heal()
            proxy.accept()
        self.up()

    def down(self) -> None:
        """Ends all brokers as a power cut does."""
        for broker in self.brokers:
            broker.end(signal.SIGKILL)

    def up(self) -> None:
        """Starts whatever is not running; returns when all brokers serve clients and each partition is led.

        The admin client is replaced: one that has seen its brokers refuse waits seconds before it looks
        again.
        """
        for broker in self.brokers:
            broker.start(self._folder)
        self._until("all brokers listen", lambda: all(broker.listens for broker in self.brokers))
        self._admin = None
        self._until("all brokers are up", self._is_up)

    def _client_port(self, broker: Broker) -> int:
        return self.proxies[broker.index].port if self.proxies else broker.client_port

    def _properties_of(self, broker: Broker) -> dict[str, str]:
        internal = f"INTERNAL://127.0.0.1:{broker.internal_port}"
        controller = f"CONTROLLER://127.0.0.1:{broker.controller_port}"
        voters = (f"{peer.node_id}@127.0.0.1:{peer.controller_port}" for peer in self.brokers)
        replicas, in_sync = str(self.replication_factor), str(self.min_insync_replicas)
        return {
            **SMALL_AND_QUICK,
            "node.id": str(broker.node_id),
            "log.dirs": str(broker.folder / "data"),
            "listeners": f"{internal},CLIENT://127.0.0.1:{broker.client_port},{controller}",
            "advertised.listeners": f"{internal},CLIENT://127.0.0.1:{self._client_port(broker)}",
            "listener.security.protocol.map": "INTERNAL:PLAINTEXT,CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "INTERNAL",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": ",".join(voters),
            "default.replication.factor": replicas,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": replicas,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.replication.factor": replicas,
            "share.coordinator.state.topic.min.isr": in_sync,
            **self._properties,
        }

    def _admin_client(self) -> AdminClient:
        """One client for all questions, past the proxies; silent, as tests take brokers away on purpose."""
        if self._admin is None:
            ports = (broker.internal_port for broker in self.brokers)
            bootstrap = ",".join(f"127.0.0.1:{port}" for port in ports)
            quick = {"reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 200, "log_level": 0}
            self._admin = AdminClient({"bootstrap.servers": bootstrap, **quick})
        return self._admin

    def _metadata(self, topic: str | None = None):
        return self._admin_client().list_topics(topic, timeout=5)

    def _is_up(self) -> bool:
        found = self._metadata()
        counts = {name: len(topic.partitions) for name, topic in found.topics.items()}
        return len(found.brokers) == len(self.brokers) and self._has_leaders(counts)

    def _is_served(self, name: str, partitions: int) -> bool:
        topic = self._metadata().topics.get(name)
        if topic is None or len(topic.partitions) != partitions:
            return False
        is_full = all(len(p.isrs) == len(p.replicas) for p in topic.partitions.values())
        return is_full and self._has_leaders({name: partitions})

    def _has_leaders(self, counts: Mapping[str, int]) -> bool:
        """Asks the leaders themselves: the metadata names one some moments before it knows that it leads."""
        latest = OffsetSpec.latest()
        wanted = {TopicPartition(name, p): latest for name, count in counts.items() for p in range(count)}
        answers = self._admin_client().list_offsets(wanted, request_timeout=5) if wanted else {}
        return all(answer.result().offset >= 0 for answer in answers.values())

    def _until(self, what: str, holds: Callable[[], bool], timeout_seconds: float = 60) -> None:
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(KafkaException):
                if holds():
                    return
            self._check_alive()
            time.sleep(0.02)
        raise KafkaError(f"waited {timeout_seconds:g} s until {what}{self.brokers[0].said()}")

    def _check_alive(self) -> None:
        for broker in self.brokers:
            if broker.ended_by_itself:
                raise KafkaError(f"broker {broker.index} ended by itself{broker.said()}")

    def _close_at_exit(self) -> None:
        if os.getpid() == self._owner:
            self.close()


_shared: list[KafkaCluster] = []
_numbers = itertools.count(1)


def shared_cluster() -> KafkaCluster:
    """The session's single broker. Never kill it: take a `KafkaCluster` of your own, three seconds each."""
    if not _shared:
        cluster = KafkaCluster()
        cluster.start()
        _shared.append(cluster)
    return _shared[0]


def close_shared_cluster() -> None:
    """Ends the session's broker."""
    while _shared:
        _shared.pop().close()


def fresh_topic(cluster: KafkaCluster, partitions: int = 8, config: Mapping[str, str] = NOTHING) -> str:
    """The name of a new topic that no other test uses."""
    name = f"test-{next(_numbers)}-{uuid.uuid4().hex[:8]}"
    cluster.create_topic(name, partitions, config)
    return name
