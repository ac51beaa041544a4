"""One cache at work: its settings, its parts, and what it makes of the copies that it finds. Nothing here waits."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from math import inf
from typing import Any, Final, NamedTuple

from relay.cache.bulkhead import Bulkhead
from relay.cache.eviction import Entry
from relay.cache.flights import Flights
from relay.cache.glancing import Found, Glancer, Moment
from relay.cache.local import Local, Mark, Space
from relay.cache.numbers import READS, REJECTS, SAVED, SERVED_AGE, TIER_ERRORS, Metric, Recorder
from relay.cache.plan import Plan
from relay.cache.server_clock import ServerClock
from relay.cache.tiers import TierError
from relay.cache.values import Read, Tier
from relay.core.freshness import Copy, Verdict, early_by, is_within, jittered, judge
from relay.core.names import record_name
from relay.core.policy import Bounded, Eventual, Policy, Strong
from relay.core.record import (
    DERIVED,
    HAS_VALUE,
    KEEP,
    NEGATIVE,
    NO_LEASE,
    Record,
    decode_record,
)

AGES_MEASURED: Final = 16
"""One in so many hits has its age measured: a histogram of all would cost as much as the hit."""

BYPASS: Final[ContextVar[bool]] = ContextVar("relay_bypass", default=False)
"""This thread or task has written and not committed: it reads its own rows, and no copy may be made of them."""
BYPASSES: Final[list[None]] = []
"""As many as there are bypasses in this process; mostly none. A hit asks this and not the context, which is dearer."""


RETRY_SECONDS: Final = 1.0
"""How long a value that should be refreshed is served before the next attempt."""


class Target(NamedTuple):
    """What is read: its key in the process tier, its name in the shared one, and what the loader is called with."""

    key: str
    name: str
    arguments: tuple[Any, ...]
    stamps: tuple[str, ...] = ()


class Sight(NamedTuple):
    """What one look into the shared tier has shown to a reader."""

    need: int
    """What has to be reached: the greatest of what the session, the process tier and the record ask for. Of derived
    values: the digest that they must have, and 0 if it is not known."""
    found: Found | None = None
    is_due: bool = False
    """`found` may be served, and is to be loaded anew."""
    is_refused: bool = False
    """There is a value that the tier would call usable, and this reader does not."""
    is_away: bool = False
    """The tier is closed or does not answer."""
    record: Record | None = None
    soft_left: float | None = None
    hard_left: float | None = None
    load: float = 0.0
    """How long `found` took to load, and how long it is to be kept; None if that is not known."""


class Reader:
    """The parts of one cache.

    Args:
        target_of: what an id, or the arguments of a derived value, stand for.
        loader: called with the arguments of the target, and with a `Need` if the values are versioned.
        local: None if there is no process tier for this cache.
        has_shared: whether there is a shared tier behind it.
        draw: of the uniform distribution over [0, 1).
    """

    def __init__(
        self,
        plan: Plan,
        target_of: Callable[[Any], Target],
        loader: Callable[..., Any],
        *,
        recorder: Recorder,
        local: Local | None = None,
        has_shared: bool = False,
        is_derived: bool = False,
        server_clock: ServerClock | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.plan = plan
        self.target = target_of
        self.name_prefix = record_name(plan.name, "")
        """Of entities: their keys follow."""
        self.loader = loader
        self.load_many: Callable[..., Any] | None = None
        self.local = local
        self.space = Space(plan.name) if local is None else local.space(f"d:{plan.name}" if is_derived else plan.name)
        self.space.keep = plan.keep
        self.has_shared = has_shared
        self.is_derived = is_derived
        self.is_off = False
        self.flights: Flights[Found] = Flights()
        self.bulkhead = Bulkhead(plan.loads_max)
        self.server_clock = server_clock or ServerClock()
        self.clock = clock
        self.draw = draw
        self.recorder = recorder
        self.shared_hits = 0
        """Hits of the shared tier; a few are lost when threads count in the same moment."""
        self.at_a_glance = Glancer(self.flags | HAS_VALUE, plan.codec, plan.schema, is_derived=is_derived)
        self._resting: dict[Hashable, float] = {}

    # -- the process tier

    def mark(self) -> Mark | None:
        """To be taken before anything is looked at."""
        return None if self.local is None else self.local.mark()

    def from_entry(self, entry: Entry, need: int, policy: Policy) -> tuple[Found | None, bool]:
        """What an entry of the process tier is worth to this reader, and whether it is to be loaded anew."""
        now = self.clock()
        copy = Copy(entry.version, now - entry.as_of, entry.soft_until - now, entry.hard_until - now, 0.0)
        verdict = judge(copy, need if not self.is_derived else 0, policy, 0.0, 1.0)
        if verdict is Verdict.REFUSE:
            return None, False
        entry.hits += 1
        return Found(entry.value, entry.version, "local", entry.as_of), verdict is Verdict.REFRESH

    def keep_local(self, target: Target, sight: Sight, mark: Mark | None) -> None:
        """Puts what was found into the process tier, unless something has happened since the mark."""
        local, plan, found = self.local, self.plan, sight.found
        if local is None or found is None:
            return
        now = self.clock()
        ttl = jittered(local.ttl, plan.jitter, self.draw())
        if found.value is None:
            ttl = min(ttl, plan.negative_ttl)
        hard = ttl if sight.hard_left is None else min(ttl, sight.hard_left)
        soft = hard
        if sight.soft_left is not None:
            soft = max(sight.soft_left - early_by(sight.load, plan.early, 1 - self.draw()), RETRY_SECONDS)
        as_of = float("-inf") if found.as_of is None else found.as_of
        fresh_until = now + min(hard, soft)
        if isinstance(plan.policy, Bounded):
            fresh_until = min(fresh_until, as_of + plan.policy.seconds)
        elif isinstance(plan.policy, Strong):
            # It is there for reads with a policy of their own.
            fresh_until = float("-inf")
        entry = Entry(
            target.key,
            found.value,
            found.version,
            as_of=as_of,
            fresh_until=fresh_until,
            soft_until=now + soft,
            hard_until=now + hard,
        )
        rejected = local.put(self.space, entry, mark)
        if rejected is not None:
            self.count(REJECTS, "local", rejected)

    # -- the shared tier

    def moment(self, epoch: bytes, policy: Policy) -> Moment | None:
        """What the records of a look are compared with at a glance; None while no age can be told."""
        now = self.clock()
        now_ms = self.server_clock.now_ms(now)
        if now_ms is None or not self.server_clock.is_known(now):
            return None
        bound = policy.seconds if isinstance(policy, Bounded) else inf
        return Moment(epoch, now, now_ms, bound, early_by(1.0, self.plan.early, 1 - self.draw()))

    def see(self, epoch: bytes, data: bytes | None, need: int, policy: Policy) -> Sight:
        """What a record that was looked up in this epoch is worth. Records of another epoch are not there.

        Args:
            need: of derived values the digest that it must have, 0 if a stamp is missing.
        """
        record = decode_record(data)
        if record is None or record.epoch != epoch:
            return Sight(need)
        if not self.is_derived:
            need = max(need, record.floor)
            if not record.is_current or record.version < need:
                return Sight(need, record=record)
        elif not record.has_value or not need or record.version != need:
            return Sight(need, record=record)
        return self._judged(record, need, policy)

    def _judged(self, record: Record, need: int, policy: Policy) -> Sight:
        plan, now = self.plan, self.clock()
        since = self.server_clock.age(record.written_at_ms, now)
        load = record.load_ms / 1000
        age = soft_left = hard_left = None
        if since is not None:
            age = since + load
            soft_left = record.soft_ms / 1000 - since
            # The jitter that was drawn for it is not known here; the tier itself ends it in time.
            ttl = plan.negative_ttl if record.flags & NEGATIVE else plan.hard_ttl * (1 + plan.jitter)
            hard_left = max(0.001, ttl - since)
        copy = Copy(record.version, age, soft_left, None, load)
        verdict = judge(copy, 0, policy, plan.early, 1 - self.draw())
        if verdict is Verdict.REFUSE or not self.is_readable(record):
            return Sight(need, is_refused=True, record=record)
        try:
            value = self.value_of(record)
        except Exception:  # Bytes that cannot be read are a miss, whatever the codec says of them.
            return Sight(need, is_refused=True, record=record)
        found = Found(value, record.version, "shared", None if age is None else now - age)
        return Sight(need, found, verdict is Verdict.REFRESH, False, False, record, soft_left, hard_left, load)

    def is_readable(self, record: Record) -> bool:
        """Whether its value is of our codec and schema."""
        return bool(record.flags & NEGATIVE) or (
            self.plan.codec is not None and record.codec == self.plan.codec.id and record.schema == self.plan.schema
        )

    def value_of(self, record: Record) -> Any:
        """The decoded value; None if it is the certain absence of one."""
        if record.flags & NEGATIVE or self.plan.codec is None:
            return None
        return self.plan.codec.decode(record.payload)

    def encoded(self, value: Any) -> bytes:
        """The bytes of a value."""
        return b"" if value is None or self.plan.codec is None else self.plan.codec.encode(value)

    @property
    def codec_id(self) -> int:
        """Which codec wrote a value."""
        return 0 if self.plan.codec is None else self.plan.codec.id

    def is_leased(self, record: Record | None) -> bool:
        """Whether somebody loads, as far as one can tell from here."""
        if record is None or record.lease == NO_LEASE:
            return False
        now_ms = self.server_clock.now_ms(self.clock())
        return now_ms is None or now_ms < record.lease_until_ms

    # -- answers

    def does(self, found: Found, need: int, policy: Policy) -> bool:
        """Whether what others loaded is good enough for this reader."""
        if self.is_derived:
            return need in (0, found.version)
        if found.version < need:
            # An absence that the primary shows is newer than any version; see `loading.checked`.
            return found.value is None and found.tier == "source"
        if isinstance(policy, Bounded):
            return is_within(None if found.as_of is None else self.clock() - found.as_of, policy.seconds)
        return True

    def old(self, record: Record | None, key: str, want: int, policy: Policy) -> Found | None:
        """The last value, for when the source fails: only if the cache keeps such, the reader may have any, and the
        session has not seen a newer one."""
        if not self.plan.keep or not isinstance(policy, Eventual):
            return None
        if record is not None and record.has_value and record.version >= want and self.is_readable(record):
            since = self.server_clock.age(record.written_at_ms, self.clock())
            as_of = None if since is None else self.clock() - since - record.load_ms / 1000
            try:
                return Found(self.value_of(record), record.version, "shared", as_of, is_stale=True)
            except Exception:  # As above: a miss.
                record = None
        entry = self.space.entries.get(key) or self.space.kept.get(key)
        if entry is not None and entry.version >= want:
            return Found(entry.value, entry.version, "local", entry.as_of, is_stale=True)
        return None

    def as_read(self, found: Found) -> Read[Any]:
        """The answer with what is known of its age."""
        now = self.clock()
        age = None if found.as_of is None or found.as_of == float("-inf") else max(0.0, now - found.as_of)
        return Read(found.value, found.version, found.tier, age, age, found.is_stale)

    # -- refreshing, and counting

    def rest(self, key: Hashable) -> None:
        """After a refresh that failed: the next one is due a little later."""
        if len(self._resting) > 1000:
            self._resting.clear()
        self._resting[key] = self.clock() + RETRY_SECONDS

    def rests(self, key: Hashable) -> bool:
        """Whether a refresh has failed just now."""
        until = self._resting.get(key)
        return until is not None and self.clock() < until

    def ttls(self, value: Any) -> tuple[float, float]:
        """Soft and hard TTL of a value that was loaded just now."""
        plan = self.plan
        if value is None:
            hard = jittered(plan.negative_ttl, plan.jitter, self.draw())
            return hard, hard
        draw = self.draw()
        hard = jittered(plan.hard_ttl, plan.jitter, draw)
        return (hard if plan.soft_ttl is None else jittered(plan.soft_ttl, plan.jitter, draw)), hard

    @property
    def flags(self) -> int:
        """Of the records that this cache writes."""
        return (DERIVED if self.is_derived else 0) | (KEEP if self.plan.keep else 0)

    def count(self, metric: Metric, *labels: str) -> None:
        """Counts something of this cache."""
        self.recorder.count(metric, self.plan.name, *labels)

    def hit(self, tier: Tier, as_of: float | None = None, *, by: int = 1) -> None:
        """Counts reads that a tier answered. Entries of the process tier count their own."""
        if tier == "shared":
            self.shared_hits += by
            if as_of is not None and not self.shared_hits % AGES_MEASURED:
                age = max(0.0, self.clock() - as_of)
                self.recorder.measure(SERVED_AGE, self.plan.name, tier, value=age)

    def missed(self, found: Found, *, leads: bool) -> None:
        """Counts a read that the source answered, by a load of this caller or of another one."""
        if not leads:
            self.count(SAVED, "flight")
        self.served(found, "miss")

    def served(self, found: Found, result: str) -> None:
        """Counts a read that did not come from the fast path."""
        self.recorder.count(READS, self.plan.name, found.tier, result)
        if found.as_of is not None:
            self.recorder.measure(SERVED_AGE, self.plan.name, found.tier, value=max(0.0, self.clock() - found.as_of))

    def tier_failed(self, error: TierError) -> None:
        """Counts a call of the shared tier that failed."""
        self.recorder.count(TIER_ERRORS, "shared", error.reason)
