"""All checks at once, and an end to them: what has not answered by then has its own name, and is not waited for."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from relay.config import Settings, require_database, require_kafka
from relay.daemon.diagnosis import kafka, postgres
from relay.daemon.diagnosis.finding import Finding, ok, refused, unknown
from relay.daemon.properties import check_properties
from relay.database import parse
from relay.errors import ConfigError

DEADLINE_SECONDS = 3.0
"""With the start and the end of the process this stays below five seconds, even when nothing answers."""

OF_DATABASE = tuple(name for name, _ in postgres.CHECKS)
OF_KAFKA = ("kafka", "listeners", "topic")
ORDER = ("settings", *OF_DATABASE, *OF_KAFKA)


def examine(settings: Settings) -> list[Finding]:
    """Every check has at least one finding here, in the order of ORDER. Takes DEADLINE_SECONDS at most."""
    until = time.monotonic() + DEADLINE_SECONDS
    findings: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()
    url, properties, wrong = _usable(settings)
    look = postgres.Look(url, settings, findings.put) if url else None
    database_done = threading.Event()

    def outbox() -> postgres.Outbox:
        database_done.wait(max(0.0, until - time.monotonic() - 0.5))
        return look.outbox if look else postgres.Outbox()

    threads = 0
    if look:
        threads += _start(look.run, "database", findings, database_done)
    else:
        database_done.set()
    if properties:
        run = kafka.Look(properties, settings, outbox, findings.put).run
        threads += _start(run, "topic", findings, threading.Event())
    found = _collect(findings, threads, until)
    said = [refused("settings", error) for error in wrong] or [ok("settings", "valid, with all that is needed")]
    return complete([*said, *found], has_database=bool(url), has_kafka=bool(properties))


def complete(found: list[Finding], *, has_database: bool, has_kafka: bool) -> list[Finding]:
    """With a finding for each check that was not made, in their order; topics by name."""
    seen = {finding.check: finding.state for finding in found}
    every = list(found)
    for check in ORDER:
        if check in seen:
            continue
        is_database = check in OF_DATABASE
        named = "the database" if is_database else "Kafka"
        is_named = has_database if is_database else has_kafka
        first = OF_DATABASE[0] if is_database else OF_KAFKA[0]
        if not is_named:
            text, fix = f"{named} is not named by valid settings", "correct the settings first"
        elif seen.get(first) == "failed":
            text, fix = f"{named} was not reached", f"see {first}"
        else:
            text, fix = f"no answer within {DEADLINE_SECONDS:g} s", f"see whether {named} or the way there is slow"
        every.append(unknown(check, text, fix))
    return sorted(every, key=lambda finding: (ORDER.index(finding.check), finding.subject))


def _usable(settings: Settings) -> tuple[str, Mapping[str, Any], list[ConfigError]]:
    """What can be looked at, and what keeps `relay run` from starting."""
    url, properties, wrong = "", {}, []
    try:
        url = parse(require_database(settings))
    except ConfigError as error:
        wrong.append(error)
    try:
        given = require_kafka(settings)
        check_properties(given)
        properties = dict(given)
    except ConfigError as error:
        wrong.append(error)
    return url, properties, wrong


def _start(
    run: Callable[[], None], check: str, findings: queue.SimpleQueue[Finding | None], done: threading.Event
) -> int:
    """A thread that the process does not wait for at its end; None in the queue says that it has finished."""

    def guarded() -> None:
        try:
            run()
        except Exception as error:
            # Drivers raise more than their own errors. The text may hold what was read; the class does not.
            findings.put(unknown(check, f"the checks ended in {type(error).__name__}", "report it as a fault of Relay"))
        finally:
            done.set()
            findings.put(None)

    threading.Thread(target=guarded, daemon=True).start()
    return 1


def _collect(findings: queue.SimpleQueue[Finding | None], threads: int, until: float) -> list[Finding]:
    """What was found until all have finished, or the time is over."""
    found: list[Finding] = []
    while threads:
        try:
            finding = findings.get(timeout=max(0.001, until - time.monotonic()))
        except queue.Empty:
            break
        if finding is None:
            threads -= 1
        else:
            found.append(finding)
    return found
