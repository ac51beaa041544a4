"""Kafka as a consumer sees it: batches of records, and lanes that come and go. Belongs to the polling thread.

Each lane starts at an explicit offset: the committed one, or, where there is none to trust, the end of the partition as
of now, which makes the start *cold*. The committed offset carries the id of its topic in its metadata: a topic that was
deleted and made anew has other events under the same offsets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from relay.consumer.lane import Lane
from relay.consumer.settings import connection_properties, is_incremental
from relay.consumer.topology import ASK_SECONDS, Shape, described, offsets, shapes

ASK_TRIES: Final = 3
SHAPES_SECONDS: Final = 5.0


class Cold(NamedTuple):
    """A start that skips events that nobody can tell."""

    cause: str
    topic: str
    partition: int
    offset: int
    """Where reading goes on."""


class Listener:
    """What the owner of a source is told, from within `fetch`."""

    def on_gained(self, lanes: Sequence[Lane], cold: Sequence[Cold]) -> None:
        """These lanes are owned from now on."""

    def on_lost(self, lanes: Sequence[Lane], *, may_commit: bool) -> None:
        """These lanes are owned no more after this call, which may still commit, unless they are gone already."""


class Source:
    """A member of a group.

    Args:
        properties: of the client, complete.
        topics: to subscribe to.
        from_beginning: where a group without offsets begins; otherwise at the end.
    """

    def __init__(
        self,
        properties: Mapping[str, Any],
        topics: Sequence[str],
        listener: Listener,
        *,
        from_beginning: bool,
        on_error: Callable[[Any], None],
    ) -> None:
        self._topics = list(topics)
        self._listener = listener
        self._first = OFFSET_BEGINNING if from_beginning else OFFSET_END
        self._incremental = is_incremental(properties)
        self._admin = AdminClient(connection_properties(properties, on_error))
        self._client = Consumer({**properties, "error_cb": on_error, "on_commit": self._on_commit})
        self.lanes: dict[tuple[str, int], Lane] = {}
        self.commit_error: Any = None
        self._must_rejoin = False
        self._asked: dict[str, Any] | None = None
        self._ask_at = 0.0
        self._ids: dict[str, str] = {}
        self._ends: dict[tuple[str, int], Any] = {}
        self._subscribe()

    def _subscribe(self) -> None:
        self._client.subscribe(
            self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def fetch(self, records_max: int, timeout_seconds: float) -> list[Any]:
        """What has arrived, in order per partition; waits only if nothing has. Serves callbacks in any case."""
        if self._must_rejoin:
            self._must_rejoin = False
            self._client.unsubscribe()
            self._subscribe()
        # consume(n, timeout) waits for n records or the whole timeout: it would add that to each event's latency.
        records = self._client.consume(records_max, 0)
        if not records and timeout_seconds > 0:
            first = self._client.poll(timeout_seconds)
            if first is not None:
                records = [first, *self._client.consume(records_max - 1, 0)]
        return records

    def pause(self, lanes: Iterable[Lane]) -> None:
        """Nothing more is fetched of these lanes. What is on its way may still come."""
        self._pause(lanes, self._client.pause, is_paused=True)

    def resume(self, lanes: Iterable[Lane]) -> None:
        """Fetches again."""
        self._pause(lanes, self._client.resume, is_paused=False)

    def _pause(self, lanes: Iterable[Lane], do: Callable[[list[Any]], None], *, is_paused: bool) -> None:
        chosen = [lane for lane in lanes if lane.is_paused != is_paused and not lane.revoked]
        if chosen:
            do([TopicPartition(lane.topic, lane.partition) for lane in chosen])
            for lane in chosen:
                lane.is_paused = is_paused

    def commit(self, lanes: Iterable[Lane], *, wait: bool) -> None:
        """Commits what is done of these lanes. Errors of a commit that is not waited for are in `commit_error`.

        Raises:
            KafkaException: the commit failed; only if it is waited for.
        """
        changed = [(lane, lane.done) for lane in lanes if lane.done != lane.committed]
        if not changed:
            return
        noted = [TopicPartition(lane.topic, lane.partition, done, lane.topic_id) for lane, done in changed]
        if wait:
            self._client.commit(offsets=noted, asynchronous=False)
        else:
            self._client.commit(offsets=noted, asynchronous=True)
        for lane, done in changed:
            lane.committed = done

    def restart(self, lane: Lane, offset: int) -> None:
        """Reads the lane from another offset on."""
        lane.read = lane.applied = offset
        lane.committed = -1
        lane.topic_id = self._ids.get(lane.topic, lane.topic_id)
        # A partition that had an error cannot be sought: it has to be assigned anew.
        if self._incremental:
            self._client.incremental_unassign([TopicPartition(lane.topic, lane.partition)])
            self._client.incremental_assign([TopicPartition(lane.topic, lane.partition, offset)])
            lane.is_paused = False
        else:
            self._client.assign([TopicPartition(each.topic, each.partition, each.read) for each in self.lanes.values()])
            for each in self.lanes.values():
                each.is_paused = False

    def look(self) -> None:
        """Notes in each lane where its partition ends: as the last fetch has told; or, while nothing is fetched of it,
        as its leader has answered since the last look. Waits for nobody."""
        for lane in self.lanes.values():
            if not lane.is_paused:
                _, end = self._client.get_watermark_offsets(TopicPartition(lane.topic, lane.partition), cached=True)
                lane.end = end if end >= 0 else lane.end
        if all(answer.done() for answer in self._ends.values()):
            self._note_ends()
            latest: Any = OffsetSpec.latest()  # type: ignore[no-untyped-call]
            paused = {TopicPartition(*place): latest for place, lane in self.lanes.items() if lane.is_paused}
            asked = self._admin.list_offsets(paused, request_timeout=ASK_SECONDS) if paused else {}
            self._ends = {(each.topic, each.partition): answer for each, answer in asked.items()}

    def _note_ends(self) -> None:
        for place, answer in self._ends.items():
            if place in self.lanes and answer.exception() is None:
                self.lanes[place].end = answer.result().offset

    def shapes(self) -> dict[str, Shape] | None:
        """The topics as the brokers describe them, asked every few seconds. None: no answer yet, or no new one."""
        now = time.monotonic()
        self._admin.poll(0)
        if self._asked is None and now >= self._ask_at:
            self._asked = self._admin.describe_topics(TopicCollection(self._topics), request_timeout=ASK_SECONDS)
            self._ask_at = now + SHAPES_SECONDS
        if self._asked is None or not all(answer.done() for answer in self._asked.values()):
            return None
        answers, self._asked = self._asked, None
        found = described(answers, 0).shapes
        self._ids |= {topic: shape.id for topic, shape in found.items()}
        return found

    def end(self, lane: Lane) -> int:
        """Where the partition ends now.

        Raises:
            KafkaException: its leader did not answer.
        """
        place = lane.topic, lane.partition
        return offsets(self._client, {place: OFFSET_END})[place]

    def close(self) -> None:
        """Leaves the group. The listener is told of the lanes that go."""
        self._client.close()

    def _on_assign(self, client: Any, partitions: list[Any]) -> None:
        # Raising out of here would surface in some later poll; a failed start is rather tried again by joining anew.
        for attempt in range(ASK_TRIES):
            try:
                lanes, cold = self._starts(partitions)
                break
            except KafkaException:
                time.sleep(0.2 * attempt)
        else:
            self._must_rejoin = True
            self._assign(client, [])
            return
        self.lanes.update({(lane.topic, lane.partition): lane for lane in lanes})
        starts = [TopicPartition(lane.topic, lane.partition, lane.read) for lane in lanes]
        self._assign(client, starts)
        # The client remembers that a partition was paused when it was owned before.
        client.resume(starts)
        self._listener.on_gained(lanes, cold)

    def _assign(self, client: Any, partitions: list[Any]) -> None:
        if self._incremental:
            client.incremental_assign(partitions)
        else:
            client.assign(partitions)

    def _starts(self, partitions: list[Any]) -> tuple[list[Lane], list[Cold]]:
        """Where each partition begins, and which of them skip something. Offsets are fixed here, before any epoch."""
        if not partitions:
            return [], []
        found_shapes = shapes(self._admin, {partition.topic for partition in partitions})
        ids = {topic: shape.id for topic, shape in found_shapes.items()}
        self._ids |= ids
        committed = self._client.committed(partitions, timeout=ASK_SECONDS)
        causes = {}
        for found in committed:
            if found.error is not None:
                raise KafkaException(found.error)
            topic_id = found.metadata or ""
            if found.offset < 0:
                causes[found.topic, found.partition] = "no offsets"
            elif topic_id and topic_id != ids.get(found.topic, topic_id):
                causes[found.topic, found.partition] = "topic made anew"
        first = offsets(self._client, dict.fromkeys(causes, self._first))
        lanes, cold = [], []
        for found in committed:
            place = (found.topic, found.partition)
            if place in causes:
                lane = Lane(*place, applied=first[place], read=first[place])
                cold.append(Cold(causes[place], *place, first[place]))
            else:
                lane = Lane(*place, applied=found.offset, read=found.offset, committed=found.offset)
            lane.topic_id = ids.get(found.topic, "")
            lanes.append(lane)
        return lanes, cold

    def _on_revoke(self, _client: Any, partitions: list[Any]) -> None:
        self._take_away(partitions, may_commit=True)

    def _on_lost(self, _client: Any, partitions: list[Any]) -> None:
        self._take_away(partitions, may_commit=False)

    def _take_away(self, partitions: list[Any], *, may_commit: bool) -> None:
        places = [(partition.topic, partition.partition) for partition in partitions]
        gone = [self.lanes[place] for place in places if place in self.lanes]
        self._listener.on_lost(gone, may_commit=may_commit)
        for lane in gone:
            lane.revoked = True
            del self.lanes[lane.topic, lane.partition]

    def _on_commit(self, error: Any, _partitions: list[Any]) -> None:
        self.commit_error = error
