"""Log events: their names are constants, their fields are named here, and payloads, keys and secrets are in none.

| event | level | fields |
|---|---|---|
| relay.started | info | instance, version, lanes, librdkafka, http |
| relay.stopping | info | signal |
| relay.stopped | info | published |
| unit.settled | info | rows, lanes, oldest_s, publish_s, duration_s |
| unit.unsettled | error | rows, code, reason, retry_s |
| unit.held | warning | rows, delivered, unknown, held, topic, refused, code |
| event.parked | error | event_id, topic, policy, code, reason, waiting |
| event.dead_lettered | error | event_id, topic, dead_letter, code, reason |
| topic.paused | error | topic, code, reason, hint |
| topic.resumed | info | topic |
| kafka.lost | error | code, reason, hint |
| kafka.back | info | away_s |
| producer.rebuilt | warning | rebuilds, reason |
| relay.fenced | warning | frozen_s |
| database.lost | error | code, reason |
| database.back | info | away_s |
| database.pooled | warning | code, hint |
| schema.broken | error | code, reason |
| schema.mended | info | broken_s |
| row.moved | error | lanes |
| floor.breached | error | lane, below |
| http.elsewhere | warning | port |
| worker.failed | error | kind, where |
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from relay.config import Log

EVENTS = frozenset(
    {
        "relay.started", "relay.stopping", "relay.stopped", "unit.settled", "unit.unsettled", "unit.held",
        "event.parked", "event.dead_lettered", "topic.paused", "topic.resumed", "kafka.lost", "kafka.back",
        "producer.rebuilt", "schema.broken", "schema.mended",
        "relay.fenced", "database.lost", "database.back", "database.pooled", "row.moved", "floor.breached",
        "http.elsewhere", "worker.failed",
    }
)  # fmt: skip

Logger = structlog.stdlib.BoundLogger


def set_up(settings: Log) -> Logger:
    """The logger of this process: one line per event on stdout, as JSON unless it is a terminal."""
    console = settings.format == "console" or (settings.format == "auto" and sys.stdout.isatty())
    renderer: Any = structlog.processors.JSONRenderer(sort_keys=False)
    if console:
        # As wide as the longest name and no wider, without fractions of a second: most lines fit 80 columns then.
        renderer = structlog.dev.ConsoleRenderer(max(map(len, EVENTS)), sort_keys=False)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S" if console else "iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(settings.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    logger: Logger = structlog.get_logger()
    return logger
