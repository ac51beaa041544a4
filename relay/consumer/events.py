"""What a consumer logs: names are constants, their fields are named here; payloads, keys and ids are in none of them.

Through the standard library, to the logger `relay.consumer`: the message is the event and its fields as `name=value`,
and the fields are in the record's attribute `relay` as well, for those who format them otherwise.

| event | level | fields |
|---|---|---|
| consumer.started | info | consumer, topics |
| consumer.stopped | info | consumer, drained |
| consumer.gained | info | consumer, partitions |
| consumer.revoked | info | consumer, partitions, lost |
| consumer.cold_start | error | consumer, cause, topic, partitions |
| consumer.epoch | error | consumer, cause |
| consumer.tier_lost | error | consumer, code, reason |
| consumer.tier_back | info | consumer, away_s |
| consumer.kafka_trouble | error | consumer, code, reason |
| consumer.kafka_back | info | consumer, away_s |
| consumer.commit_failed | warning | consumer, reason |
| consumer.hook_failed | warning | consumer, code, entity, attempt, kind |
| consumer.set_aside | error | consumer, code, reason, topic, partition, offset |
| consumer.cannot_set_aside | error | consumer, code, topic, reason |
| consumer.failed | error | consumer, code, reason, where |
| feed.opened | info | feed, partitions, waited_s |
| feed.closed | warning | feed, cause |
"""

from __future__ import annotations

import logging
from typing import Any, Final

LOGGER: Final = logging.getLogger("relay.consumer")


def say(level: int, event: str, **fields: Any) -> None:
    """One line about one event."""
    if LOGGER.isEnabledFor(level):
        text = " ".join(f"{name}={value}" for name, value in fields.items())
        LOGGER.log(level, "%s %s", event, text, extra={"relay": {"event": event, **fields}})
