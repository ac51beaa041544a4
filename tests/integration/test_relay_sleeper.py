"""The lock of a sleeper makes every commit notify, so it must not outlive the sleeper's attention: frozen, or on a host
that died, it loses the lock within its takeover time, and another relay takes over."""

from __future__ import annotations

import time
from contextlib import closing

import psycopg
import pytest

from relay.daemon import queries
from relay.database import connect
from tests.support import nemesis, scenario
from tests.support.proxy import TcpProxy
from tests.support.relay_process import SHORT, RelayProcess, eventually

TAKEOVER_SECONDS = float(SHORT["RELAY_DAEMON__TAKEOVER_SECONDS"])
SLEEPER = """\
SELECT a.application_name || '/' || a.pid FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
WHERE l.locktype = 'advisory' AND l.objid = 7236836 AND l.mode = 'ExclusiveLock' AND l.granted"""


def sleeper(dsn: str) -> str:
    """Session and backend of the relay that holds the lock, or nothing."""
    return scenario.ask(dsn, SLEEPER) or ""


def is_of(relay: RelayProcess, session: str) -> bool:
    return session.partition("/")[0].endswith(f"-{relay.pid}")


def test_a_frozen_sleeper_loses_its_lock_to_another_relay(any_database, kafka, topic):
    """Nothing has to be written for that, and the one that was frozen goes on when it wakes."""
    relays = [RelayProcess(any_database, kafka.bootstrap, settings=SHORT) for _ in range(2)]
    try:
        for relay in relays:
            relay.start().wait_started()
        held = eventually(lambda: sleeper(any_database), 30, "a relay to fall asleep")
        frozen, other = sorted(relays, key=lambda relay: not is_of(relay, held))
        frozen.pause()
        eventually(lambda: is_of(other, sleeper(any_database)), TAKEOVER_SECONDS + 30, "the other one to take over")
        assert frozen.is_stopped
        scenario.ask(any_database, "SELECT relay.emit(%s, 'k', 'v'::text)", topic)
        scenario.wait_empty(any_database, 30)
        frozen.resume()
        eventually(lambda: frozen.get("/readyz")[0] == 200, 30, "the frozen one to be ready")
        assert [relay.stop() for relay in relays] == [0, 0]
    finally:
        for relay in relays:
            relay.close()


def test_a_sleeper_that_is_alone_and_frozen_leaves_the_writers_in_peace(database, kafka):
    """Without a lock nobody notifies, at twice the rate."""
    with RelayProcess(database, kafka.bootstrap, settings=SHORT) as relay:
        relay.wait_started()
        held = eventually(lambda: sleeper(database), 30, "the relay to fall asleep")
        relay.pause()
        eventually(lambda: not sleeper(database), TAKEOVER_SECONDS + 30, "the lock to go")
        relay.resume()
        again = eventually(lambda: sleeper(database), 30, "the relay to fall asleep again")
        assert is_of(relay, again)
        assert again != held
        assert relay.stop() == 0


@pytest.mark.parametrize("first", ["SELECT 1", "BEGIN"])
def test_the_session_of_a_sleeper_ends_wherever_it_stands_still(any_database, first):
    """Between two statements or between two transactions. Awake it is bounded no more."""
    bounds = {"takeover_ms": 1000, "probe_seconds": 1}
    with closing(connect(any_database, "test")) as connection:
        assert connection.execute(queries.SLEEP, bounds).fetchone()[0]
        connection.execute(first)
        eventually(lambda: not sleeper(any_database), 30, "the lock to go")
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT 1")
    with closing(connect(any_database, "test")) as connection:
        connection.execute(queries.SLEEP, bounds)
        connection.execute(queries.AWAKE, {"holds_lock": True})
        assert not sleeper(any_database)
        connection.execute(first)
        scenario.ask(any_database, "SELECT pg_sleep(2)")
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_host_that_dies_asleep_takes_its_lock_along(database, kafka):
    """No packet says so: the server is not told, and TCP would notice after hours."""
    port = scenario.ask(database, "SELECT inet_server_port()")
    with (
        TcpProxy(port) as proxy,
        RelayProcess(nemesis.through(proxy, database), kafka.bootstrap, settings=SHORT) as relay,
    ):
        relay.wait_started()
        eventually(lambda: sleeper(database), 30, "the relay to fall asleep")
        proxy.freeze()
        relay.kill9()
        eventually(lambda: not sleeper(database), TAKEOVER_SECONDS + 30, "the lock to go")


@pytest.mark.parametrize("idle_seconds", ["0.1", "60"])
def test_a_sleeper_that_is_well_keeps_its_session_for_longer_than_its_takeover_time(database, kafka, idle_seconds):
    """However seldom it looks into the outbox."""
    settings = {**SHORT, "RELAY_DAEMON__IDLE_SECONDS": idle_seconds}
    with RelayProcess(database, kafka.bootstrap, settings=settings) as relay:
        relay.wait_started()
        held = eventually(lambda: sleeper(database), 30, "the relay to fall asleep")
        # That nothing happens has no condition to wait for.
        time.sleep(3 * TAKEOVER_SECONDS)
        assert sleeper(database) == held
        assert relay.stop() == 0
