"""A refused event is tried once more by itself, and never after its lanes may belong to another relay."""

from __future__ import annotations

import json
import random

from tests.support import scenario
from tests.support.kafka import fresh_topic
from tests.support.relay_process import SHORT, RelayProcess, eventually
from tests.support.topic import read_topic

TOUCH = "SELECT relay.touch('item', '1', 'updated', %s, %s::jsonb)"


def test_a_refused_event_is_not_tried_again_after_the_lanes_were_taken_over(database, kafka):
    """The topic's limit is raised while the relay stands still, so that a late try would land behind a newer event."""
    topic = fresh_topic(kafka, config={"max.message.bytes": "20000"})
    with RelayProcess(database, kafka.bootstrap, settings=SHORT, failpoints="after_ack=stop") as frozen:
        frozen.wait_started()
        large = json.dumps(random.Random(1).randbytes(50_000).hex())
        assert scenario.ask(database, TOUCH, topic, large) == 1
        eventually(lambda: frozen.is_stopped, 30, "the relay to stop itself")
        kafka.alter_topic(topic, {"max.message.bytes": "1000000"})
        with RelayProcess(database, kafka.bootstrap, settings=SHORT) as successor:
            scenario.wait_empty(database, 60)
            assert scenario.ask(database, TOUCH, topic, "{}") == 2
            scenario.wait_empty(database, 60)
            frozen.resume()
            frozen.wait_event("database.lost")
            assert (frozen.stop(), successor.stop()) == (0, 0)
    versions = [dict(record.headers)["version"] for record in read_topic(kafka.bootstrap, topic)]
    assert versions == [b"1", b"2"]
