"""What goes wrong in a scenario, each as a `scenario.Nemesis`, shared by the samples and the full matrix.

Each one says how many units lost their connection, their acknowledgements or their process by it (`Run.losses`), so
that the bound on repeats is as tight as the fault allows: a unit repeats at most `rows_max` events.
"""

from __future__ import annotations

import time
from typing import Literal
from urllib.parse import urlsplit

from relay.demo.postgres import EmbeddedPostgres
from tests.support import scenario
from tests.support.kafka import KafkaCluster
from tests.support.proxy import TcpProxy
from tests.support.relay_process import RelayProcess, eventually

UNITS = 2
"""Units in flight of each relay, as in `relay_process.FOR_TESTS`."""

Stop = Literal["fast", "immediate", "crash"]

WAITING = "SELECT count(*) FROM relay.outbox WHERE created_at < clock_timestamp() - interval '2 s'"


SESSIONS = """\
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'relay %%' AND application_name LIKE '%%' || %s"""


def through(proxy: TcpProxy, dsn: str) -> str:
    """The DSN by way of the proxy."""
    parts = urlsplit(dsn)
    return parts._replace(netloc=f"{parts.username}@127.0.0.1:{proxy.port}").geturl()


def flows(dsn: str, seconds: float = 30) -> None:
    """Returns when no visible event is older than two seconds."""
    eventually(lambda: not scenario.ask(dsn, WAITING), seconds, "everything to flow")


def kill_at_random(times: int = 3) -> scenario.Nemesis:
    """Kills one relay or another after so many transactions."""

    def nemesis(run: scenario.Run) -> None:
        for _ in range(times):
            run.let_write(run.draw.randrange(20, 80))
            run.draw.choice(run.fleet.relays).kill9()

    return nemesis


def until_it_died(run: scenario.Run) -> None:
    """Waits for an armed relay to meet its failpoint, and lets its successor work."""
    eventually(lambda: run.fleet.kills, 30, "the relay to die")
    run.let_write(50)


def freeze(run: scenario.Run, relay: RelayProcess, seconds: float) -> None:
    """Stops a relay for so long."""
    relay.pause()
    run.losses += UNITS
    run.fleet.wait_seconds(seconds)
    relay.resume()


def freeze_at_random(seconds: float, times: int = 3) -> scenario.Nemesis:
    """Stops one relay or another for longer than its takeover time, at any moment of its work."""

    def nemesis(run: scenario.Run) -> None:
        for _ in range(times):
            run.let_write(run.draw.randrange(20, 80))
            run.fleet.wait_seconds(run.draw.random() * 0.05)
            freeze(run, run.draw.choice(run.fleet.relays), seconds)
            flows(run.dsn)

    return nemesis


def stop_at(point: str) -> str:
    """The action that freezes a relay at a failpoint.

    What it was just handing over when it froze may arrive late, which docs/GUARANTEES.md says. After it has produced it
    stands still a moment later, so that the test is about what it promises.
    """
    return "stop:0.3" if point == "after_produce" else "stop"


def frozen_at_failpoint(takeover_seconds: float) -> scenario.Nemesis:
    """Waits until the armed relay has stopped itself, sees its lanes taken over, and wakes it up."""

    def nemesis(run: scenario.Run) -> None:
        frozen = run.fleet.relays[0]
        eventually(lambda: frozen.is_stopped, 30, "the relay to stop itself")
        run.losses += UNITS
        if len(run.fleet.relays) > 1:
            run.fleet.wait_seconds(takeover_seconds)
            flows(run.dsn, takeover_seconds + 30)
            assert frozen.is_stopped
        else:
            run.fleet.wait_seconds(takeover_seconds + 2)
        frozen.resume()
        run.let_write(50)
        flows(run.dsn)

    return nemesis


def end_sessions(dsn: str, relay: RelayProcess | None = None) -> int:
    """Has the database end the sessions of this relay, or of all, as an administrator or a failover does; how many."""
    instance = relay.wait_event("relay.started")["instance"] if relay else ""
    return int(scenario.ask(dsn, SESSIONS, instance))


def stop_postgres(server: EmbeddedPostgres, how: Stop) -> None:
    """Ends the server in one of three ways and starts it again."""
    if how == "crash":
        server.kill()
        server.start()
    else:
        server.restart(how)


def postgres_stops(server: EmbeddedPostgres, how: Stop, times: int = 1) -> scenario.Nemesis:
    """Stops the server under load and starts it again."""

    def nemesis(run: scenario.Run) -> None:
        for _ in range(times):
            run.let_write(run.draw.randrange(50, 100))
            count_stop(run, how)
            stop_postgres(server, how)
            run.let_write(50)
            flows(run.dsn)

    return nemesis


def count_stop(run: scenario.Run, how: Stop) -> None:
    """Every unit in flight loses its connection. Without a checkpoint the last commits of relays go with it, as far as
    no writer has committed since: under load that is a unit of each worker."""
    lost = len(run.fleet.relays) * UNITS
    run.losses += lost if how == "fast" else 2 * lost
    run.units_back = max(run.units_back, 1 if how == "fast" else 2)


def commit_is_cut(proxy: TcpProxy, *, arrives: bool, times: int = 3) -> scenario.Nemesis:
    """Cuts a relay's connection at its COMMIT: before the server gets it, or after it has acted on it."""

    def nemesis(run: scenario.Run) -> None:
        for _ in range(times):
            run.let_write(run.draw.randrange(20, 60))
            assert proxy.cut_after(b"COMMIT\0", forward=arrives).wait(30)
            # Committed and not told so: nothing is left to repeat.
            run.losses += 0 if arrives else 1
        eventually(lambda: any(relay.events("database.lost") for relay in run.fleet.relays), 30, "a relay to notice")
        run.let_write(30)

    return nemesis


def half_open(proxy: TcpProxy, seconds: float, direction: Literal["up", "down", "both"] = "both") -> scenario.Nemesis:
    """The network to the database swallows everything and reports nothing; the relays give up by themselves."""

    def nemesis(run: scenario.Run) -> None:
        run.let_write(50)
        run.losses += len(run.fleet.relays) * UNITS
        proxy.freeze(direction)
        frozen_at = time.monotonic()
        for relay in run.fleet.relays:
            relay.wait_event("database.lost", seconds=seconds)
        print(f"noticed {time.monotonic() - frozen_at:.1f} s after the network fell silent")
        # What the frozen network still holds of given-up sessions reaches the server late, as it may in reality.
        proxy.thaw()
        for relay in run.fleet.relays:
            relay.wait_event("database.back")
        run.let_write(50)

    return nemesis


def given_up(dsn: str) -> bool:
    """Whether no unit is open, and none is begun by a worker that had not heard yet that Kafka is away."""
    until = time.monotonic() + 0.5
    while not (is_open := scenario.ask(dsn, scenario.HELD_OPEN)) and time.monotonic() < until:
        time.sleep(0.01)
    return not is_open


def outage(cluster: KafkaCluster, seconds: float) -> scenario.Nemesis:
    """Takes all brokers away; while they are gone nothing is held, parked or piled up in memory, and then all flows."""

    def nemesis(run: scenario.Run) -> None:
        run.let_write(100)
        cluster.down()
        for relay in run.fleet.relays:
            relay.wait_event("kafka.lost")
            run.losses += UNITS
        memory = [relay.memory_bytes for relay in run.fleet.relays]
        until = time.monotonic() + seconds
        eventually(lambda: given_up(run.dsn), 30, "the units to be given up")
        while time.monotonic() < until:
            assert scenario.ask(run.dsn, scenario.HELD_OPEN) == 0
            assert scenario.ask(run.dsn, scenario.LANES_HELD) == 0
            run.let_write(10)
        for relay, before in zip(run.fleet.relays, memory, strict=True):
            assert relay.memory_bytes < before + 20_000_000
            assert relay.get("/readyz")[0] == 503
            assert relay.get("/livez")[0] == 200
        assert scenario.ask(run.dsn, "SELECT count(*) FROM relay.parked") == 0
        waiting = scenario.ask(run.dsn, "SELECT count(*) FROM relay.outbox")
        assert waiting > 100
        cluster.up()
        back = time.monotonic()
        eventually(lambda: scenario.ask(run.dsn, "SELECT count(*) FROM relay.outbox") < 50, 30, "the rate of before")
        print(f"{waiting} events waited, gone {time.monotonic() - back:.1f} s after the brokers were back")
        for relay in run.fleet.relays:
            eventually(lambda relay=relay: relay.get("/readyz")[0] == 200)

    return nemesis
