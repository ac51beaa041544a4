"""One relay process: two workers, a watch, an HTTP thread, and the order in which they start and stop."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import confluent_kafka
import psycopg

from relay import __version__
from relay.config import Settings, require_database, require_kafka
from relay.daemon.brokers import Brokers
from relay.daemon.failpoints import failpoint
from relay.daemon.floors import Floors
from relay.daemon.lanes import LaneBook
from relay.daemon.presence import Presence
from relay.daemon.properties import refused
from relay.daemon.publisher import Publisher
from relay.daemon.sampler import WAIT_SECONDS, Figure, Sampler
from relay.daemon.sight import LANES, hidden
from relay.daemon.state import State
from relay.daemon.store import Store
from relay.daemon.unanswered import Unanswered
from relay.daemon.unsettled import Unsettled
from relay.daemon.watch import Watch
from relay.daemon.worker import Worker
from relay.database import Connection, connect, explain
from relay.errors import GrantError
from relay.health import DEFAULT_PORT, Answer, Health, answer_json, route
from relay.logs import Logger
from relay.metrics import Metrics
from relay.schema.install import require_version

CLAIM_RIGHTS = """\
SELECT has_table_privilege('relay.outbox', 'SELECT') AND has_table_privilege('relay.outbox', 'DELETE'),
       has_table_privilege('relay.lane', 'SELECT') AND has_any_column_privilege('relay.lane', 'UPDATE'),
       has_table_privilege('relay.parked', 'SELECT') AND has_any_column_privilege('relay.parked', 'UPDATE'),
       has_table_privilege('relay.parked', 'INSERT') OR coalesce(has_function_privilege(
           to_regprocedure('relay.park(smallint[],bigint[],text,boolean,text,text,integer)')::oid, 'EXECUTE'), false),
       has_sequence_privilege('relay.outbox_id_seq', 'SELECT')"""
CLAIM_RIGHTS_NAMES = ("SELECT, DELETE on relay.outbox", "SELECT, UPDATE on relay.lane",
                      "SELECT, UPDATE on relay.parked", "EXECUTE on relay.park",
                      "SELECT on relay.outbox_id_seq")  # fmt: skip


class Relay:
    """Everything that `relay run` runs. `run` blocks until the relay has stopped and returns the exit code."""

    def __init__(self, settings: Settings, log: Logger, *, drain: bool = False) -> None:
        self._settings = settings
        self._log = log
        self._drain = drain
        self._url = require_database(settings)
        self._kafka = require_kafka(settings)
        self.instance = f"{socket.gethostname()}-{os.getpid()}"
        self.state = State()
        self.metrics = Metrics()
        self._failed = False

    def run(self) -> int:
        """Checks, starts, waits for a signal, stops.

        Raises:
            RelayError: a setting, the schema or a grant is wrong, or the database cannot be reached at the start; or a
                drain could not be done.
        """
        self._check_database()
        floors = Floors(LANES)
        brokers, unanswered, publishers = self._new_publishers(floors)
        failpoint("at_startup")
        presence = Presence(brokers, self.state, self.metrics, self._log)
        sampler = Sampler(lambda: self._connect("sample", at_most=WAIT_SECONDS), floors)
        self.metrics.readings.source = lambda: {**sampler.figures(), **readings(self.state, presence, floors)}
        health = self._start_health()
        self._catch_signals()
        workers = self._start_workers(brokers, presence, publishers, unanswered, floors)
        self.state.started = True
        self._log.info(
            "relay.started", instance=self.instance, version=__version__, lanes=LANES,
            librdkafka=confluent_kafka.libversion()[0], http=health.port if health else None,
        )  # fmt: skip
        self._wait(workers, unanswered)
        if health:
            health.stop()
        self._log.info("relay.stopped", published=self.state.published)
        if self.state.failure:
            raise self.state.failure
        return 1 if self._failed else 0

    def _connect(self, part: str, at_most: float = float("inf")) -> Connection:
        database = self._settings.database
        return connect(
            self._url,
            f"relay {part} {self.instance}",
            connect_timeout_seconds=min(at_most, database.connect_timeout_seconds),
            deadline_seconds=min(at_most, database.deadline_seconds),
        )

    def _check_database(self) -> None:
        """Refuses to start on a schema or with rights that do not fit."""
        with self._connect("start") as connection:
            require_version(connection)
            try:
                allowed = connection.execute(CLAIM_RIGHTS).fetchone() or ()
                missing = [name for name, ok in zip(CLAIM_RIGHTS_NAMES, allowed, strict=True) if not ok]
                if missing:
                    raise GrantError(
                        "RLY-501",
                        "the database role lacks " + "; ".join(missing),
                        f"run the SQL that `relay db grants --relay {shlex.quote(connection.info.user)}` prints",
                    )
                if problem := hidden(connection):
                    raise problem
            except psycopg.Error as error:
                raise explain(error) from None

    def _new_publishers(self, floors: Floors) -> tuple[Brokers, Unanswered, list[Publisher]]:
        """A producer for each worker. librdkafka checks its properties here, and nothing is connected yet."""
        daemon = self._settings.daemon
        try:
            brokers = Brokers(self._kafka)
            unanswered = Unanswered(floors, brokers)
            return (
                brokers,
                unanswered,
                [
                    Publisher(
                        self._kafka,
                        brokers,
                        unanswered,
                        is_strict=lambda topic: self._settings.topic(topic).order == "strict",
                        publish_timeout_seconds=daemon.publish_timeout_seconds,
                    )
                    for _ in range(daemon.units_in_flight)
                ],
            )
        except Exception as error:
            raise refused(error, self._kafka) from None

    def _start_workers(
        self,
        brokers: Brokers,
        presence: Presence,
        publishers: list[Publisher],
        unanswered: Unanswered,
        floors: Floors,
    ) -> list[threading.Thread]:
        daemon = self._settings.daemon
        common: dict[str, Any] = {
            "brokers": brokers, "floors": floors, "settings": self._settings,
            "state": self.state, "metrics": self.metrics, "log": self._log,
        }  # fmt: skip

        def open_store(index: int) -> Store:
            return Store(
                self._connect(f"worker {index}"),
                floors,
                rows_max=daemon.rows_max,
                bytes_max=daemon.bytes_max,
                lanes_max=min(daemon.lanes_max, LANES // 2),
                takeover_seconds=daemon.takeover_seconds,
            )

        shared: dict[str, Any] = {"presence": presence, "lane_book": LaneBook(), "unsettled": Unsettled()}

        def worker(index: int) -> Callable[[], None]:
            publisher = publishers[index]
            return Worker(
                index, open_store=lambda: open_store(index), publisher=publisher, drain=self._drain, **shared, **common
            ).run

        watch = Watch(
            open_connection=lambda: self._connect("watch"), lanes=LANES, unanswered=unanswered, drain=self._drain,
            **common,
        )  # fmt: skip
        workers = [self._thread(f"worker-{i}", worker(i)) for i in range(len(publishers))]
        for thread in [*workers, self._thread("watch", watch.run), self._thread("presence", presence.run)]:
            thread.start()
        return workers

    def _thread(self, name: str, target: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                target()
            except Exception as error:
                # Its text may hold a row: the kind and the place must do. A restart is safe by design.
                place = traceback.extract_tb(error.__traceback__)[-1]
                self._log.error("worker.failed", kind=type(error).__name__, where=f"{place.name}:{place.lineno}")
                self._failed = True
                self._stop()

        return threading.Thread(target=guarded, name=name, daemon=True)

    def _stop(self) -> None:
        self.state.stop.set()
        self.state.ring()

    def _catch_signals(self) -> None:
        def on_signal(number: int, _frame: object) -> None:
            if self.state.stop.is_set():
                os._exit(128 + number)
            self._log.info("relay.stopping", signal=signal.Signals(number).name)
            self._stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)

    def _wait(self, workers: list[threading.Thread], unanswered: Unanswered) -> None:
        """Waits until the workers have ended, by a signal, a failure or an empty outbox, and their records with them.

        A stop does not wait for ever."""
        while any(thread.is_alive() for thread in workers) and not self.state.stop.is_set():
            for thread in workers:
                thread.join(0.1)
        until = time.monotonic() + self._settings.daemon.shutdown_seconds
        self._stop()
        for thread in workers:
            thread.join(max(0.0, until - time.monotonic()))
        while len(unanswered) and time.monotonic() < until:
            unanswered.serve()
            time.sleep(0.05)

    def _start_health(self) -> Health | None:
        http = self._settings.http
        if not http.enabled:
            return None
        routes = {"/livez": route(self._livez), "/readyz": route(self._readyz), "/metrics": self.metrics.application()}
        health = Health(http.host, http.port, routes)
        health.start()
        if http.port == 0 and health.port != DEFAULT_PORT:
            self._log.warning("http.elsewhere", port=health.port)
        return health

    def _livez(self) -> Answer:
        """Alive while the loop has turned within three times the longest step it may take."""
        daemon, database = self._settings.daemon, self._settings.database
        allowed = 3 * (daemon.publish_timeout_seconds + database.deadline_seconds + daemon.idle_seconds)
        age = self.state.clock() - self.state.heartbeat if self.state.heartbeat else 0.0
        return answer_json(age < allowed, {"alive": age < allowed, "heartbeat_age_seconds": round(age, 1)})

    def _readyz(self) -> Answer:
        state = self.state
        works = state.database_up and state.kafka_up and state.schema_ok
        ready = state.started and works and not state.stop.is_set()
        return answer_json(ready, {"ready": ready, "stopping": state.stop.is_set(), "problems": dict(state.problems)})


def readings(state: State, presence: Presence, floors: Floors) -> dict[str, Figure]:
    """The gauges of what this process knows by itself, at this moment."""
    known: dict[str, float | None] = {
        "relay_kafka_up": presence.is_up,
        "relay_database_up": state.database_up,
        "relay_paused_topics": len(floors.view().paused),
        "relay_asleep": state.asleep.is_set(),
        "relay_heartbeat_timestamp_seconds": time.time() - (state.clock() - state.heartbeat)
        if state.heartbeat
        else None,
    }
    return {name: {(): float(value)} for name, value in known.items() if value is not None}
