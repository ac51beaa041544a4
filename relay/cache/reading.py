"""The protocol of one read, written once: generators that ask for effects, for threads, tasks and the simulation alike.

    mark the generation  -- before anything is looked at: what is found is put into the process tier only if nothing
    |                       happened there in between
    process tier         -- an entry, if its version is enough and the policy accepts it
    shared tier: look    -- a record of the present epoch, if its version is enough and the policy accepts it
    flight: join or lead -- one caller of this process loads; the others wait, and compare what it got with their need
    |
    +- lease             -- one process loads. GRANTED: load, put. BUSY: pause, look, and after a while load without
    |                       putting. CLOSED, UNKNOWN or no answer: load without putting
    +- load              -- from the source, through the bulkhead
    +- put               -- accepted if the lease holds and nothing newer was applied; refused or not, the caller has
                            the value
    process tier: put    -- under the mark

Every reader looks before it joins a flight, and takes the flight's result only if that is not below what it saw: a
flight that began before an event was applied must not answer readers that came after it.

Refreshing in the background is the same as filling: there is no second way of putting a value.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from relay.cache.effects import AskTime, Lead, Look, Pause, PutValue, Release, Spawn, Steps, TakeLease, Wait
from relay.cache.eviction import Entry
from relay.cache.flights import CHAIN, Flight, begin_wait, end_wait
from relay.cache.glancing import Found
from relay.cache.loading import load
from relay.cache.local import Mark
from relay.cache.numbers import REJECTS, SAVED, UPGRADES
from relay.cache.reader import BYPASS, RETRY_SECONDS, Reader, Sight, Target
from relay.cache.sessions import CURRENT
from relay.cache.tiers import Grant, Lease, Put, Reject, TierError
from relay.cache.values import Need, Versioned
from relay.core.policy import Bounded, Policy, Strong
from relay.core.record import HAS_VALUE, NEGATIVE
from relay.core.stamps import digest_of
from relay.errors import CacheError

ATTEMPTS: Final = 3
"""How often a reader looks and joins before it loads for itself."""
PAUSE_SECONDS: Final = 0.005
PAUSE_SECONDS_MAX: Final = 0.05


class Attempt(NamedTuple):
    """What is read, and what was there before the first look."""

    target: Target
    policy: Policy
    sight: Sight
    mark: Mark | None
    entry: Entry | None
    """What the process tier had, and the reader refused."""
    is_background: bool = False


def read(reader: Reader, id: Any, policy: Policy | None = None) -> Steps[Found]:  # noqa: A002
    """The value of one id, or of one set of arguments.

    Raises:
        CacheError: RLY-911 to RLY-914, see `loading.load`.
        Exception: whatever the loader raises, if no copy may be served instead.
    """
    policy = policy or reader.plan.policy
    target = reader.target(id)
    if CHAIN.get() and reader.flights.is_inside(target.key):
        raise CacheError(
            "RLY-911",
            f"the loader of {reader.plan.name} reads the key that it is loading",
            "let the loader read from the source",
        )
    session = None if reader.is_derived else CURRENT.get()
    want = 0 if session is None else session.least(reader.plan.name, target.key)
    if BYPASS.get():
        # The version may be rolled back: the session must not wait for it.
        found = yield from direct(reader, target, 0)
        reader.served(found, "off")
        return found
    if reader.is_off or want < 0 or isinstance(policy, Strong):
        found = yield from direct(reader, target, max(want, 0))
        reader.served(found, "off" if reader.is_off else "miss")
    else:
        found = yield from through(reader, target, want, policy)
    if session is not None:
        if want > 0 and found.tier == "source":
            reader.count(UPGRADES)
        session.observe(reader.plan.name, target.key, found.version)
    return found


def through(reader: Reader, target: Target, want: int, policy: Policy, looked: Attempt | None = None) -> Steps[Found]:
    """Through the tiers; and the last value, where that is allowed, if the source fails.

    Args:
        looked: what a look for many has shown, if there was one.
    """
    if looked is None and reader.local is None:
        # Without a process tier a hit needs no more than this.
        sight = yield from look(reader, target, want, policy)
        if sight.found is not None and not sight.is_due:
            reader.hit(sight.found.tier, sight.found.as_of)
            return sight.found
        looked = Attempt(target, policy, sight, None, None)
    sight = Sight(want)
    try:
        for _ in range(ATTEMPTS):
            attempt = looked or (yield from tiers(reader, target, want, policy))
            sight, looked = attempt.sight, None
            if sight.found is not None:
                if sight.is_due:
                    yield from refresh(reader, attempt)
                reader.hit(sight.found.tier, sight.found.as_of)
                return sight.found
            landed = yield from fly(reader, attempt)
            if landed is not None:
                return landed
        found = yield from direct(reader, target, 0 if reader.is_derived else sight.need)
    except Exception:
        old = reader.old(sight.record, target.key, want, policy)
        if old is None:
            raise
        reader.served(old, "stale")
        return old
    reader.missed(found, leads=True)
    return found


def tiers(reader: Reader, target: Target, want: int, policy: Policy) -> Steps[Attempt]:
    """What the process tier has, or else the shared one: `sight.found`, or what is to be loaded."""
    mark = reader.mark()
    need = max(want, reader.space.floor(target.key))
    entry = reader.space.entries.get(target.key)
    if entry is not None:
        found, is_due = reader.from_entry(entry, need, policy)
        if found is not None:
            return Attempt(target, policy, Sight(need, found, is_due), mark, entry)
    sight = yield from look(reader, target, need, policy)
    reader.keep_local(target, sight, mark)
    return Attempt(target, policy, sight, mark, entry)


def fly(reader: Reader, attempt: Attempt) -> Steps[Found | None]:
    """Leads the flight of the key, or waits for it. None: what it brought is not what this reader needs, or nothing."""
    flight, leads = reader.flights.enter(attempt.target.key)
    # In vain: this reader would wait for itself, or the flight takes longer than a load may.
    is_vain = not begin_wait(flight)
    if not is_vain:
        try:
            if leads:
                yield Lead((flight,), fill(reader, flight, attempt))
            else:
                is_vain = not (yield Wait(flight.ended, reader.plan.load_seconds + reader.plan.wait_seconds))
        finally:
            end_wait(flight)
    if is_vain:
        found = yield from direct(reader, attempt.target, 0 if reader.is_derived else attempt.sight.need)
        reader.missed(found, leads=True)
        return found
    landed = flight.result(leads=leads)
    if landed is None or not (leads or reader.does(landed, attempt.sight.need, attempt.policy)):
        return None
    reader.missed(landed, leads=leads)
    return landed


def look(reader: Reader, target: Target, need: int, policy: Policy) -> Steps[Sight]:
    """One look into the shared tier, if there is one."""
    if not reader.has_shared:
        return Sight(need, is_away=True)
    try:
        page = yield Look((target.name, *target.stamps))
    except TierError as error:
        reader.tier_failed(error)
        return Sight(need, is_away=True)
    if page.epoch is None:
        reader.tier_failed(TierError("closed"))
        return Sight(need, is_away=True)
    if reader.is_derived:
        need = digest_of(page.records[1:])
    if reader.local is None and (need or not reader.is_derived):
        moment = reader.moment(page.epoch, policy)
        found = None if moment is None else reader.at_a_glance.glance(page.records[0], need, moment)
        if found is not None:
            return Sight(need, found)
    sight = reader.see(page.epoch, page.records[0], need, policy)
    if (sight.found is not None or sight.is_refused) and not reader.server_clock.is_known(reader.clock()):
        # Once a minute: without an idea of the server's clock no age is known.
        yield from learn_clock(reader)
        sight = reader.see(page.epoch, page.records[0], need, policy)
    return sight


def learn_clock(reader: Reader) -> Steps[None]:
    """Asks the server what time it is."""
    sent = reader.clock()
    try:
        reader.server_clock.learn((yield AskTime()), sent)
    except TierError as error:
        reader.tier_failed(error)


def direct(reader: Reader, target: Target, need: int, flight: Flight[Found] | None = None) -> Steps[Found]:
    """From the primary. Nothing is kept; and without a flight it is for this caller alone."""
    began = reader.clock()
    own = flight or Flight(reader.flights, target.key)
    try:
        versioned = yield from load(reader, target, Need(need, primary=True), own)
    finally:
        if flight is None:
            own.ended.fire()
    return loaded_at(began, versioned)


def loaded_at(began: float, versioned: Versioned[Any]) -> Found:
    """What came of a load that began then. A replica shows a past of which nobody knows how long ago it was."""
    return Found(versioned.value, versioned.version, "source", began if versioned.cacheable else None)


def refresh(reader: Reader, attempt: Attempt) -> Steps[None]:
    """Has the value loaded anew in the background, unless that is under way or has failed just now."""
    key, entry = attempt.target.key, attempt.entry
    if reader.rests(key):
        return
    flight = reader.flights.try_lead(key, has_begun=False)
    if flight is None:
        return
    if entry is not None:
        # The other readers take it as fresh for a moment, instead of asking for the same.
        entry.soft_until = entry.fresh_until = min(reader.clock() + RETRY_SECONDS, entry.hard_until)
    steps = fill(reader, flight, attempt._replace(policy=reader.plan.policy, is_background=True))
    if not (yield Spawn((flight,), steps)):
        reader.flights.leave(flight)


def fill(reader: Reader, flight: Flight[Found], attempt: Attempt) -> Steps[None]:
    """Leads a flight to its end."""
    if flight.ended.has_fired:
        return  # A reader took it over while it waited for a thread.
    flight.has_begun = True
    try:
        # Somebody may have filled it between our look and our lead. What was refused before the look is no news.
        entry = None if attempt.is_background else reader.space.entries.get(attempt.target.key)
        if entry is not None and entry is not attempt.entry:
            flight.landed, _ = reader.from_entry(entry, attempt.sight.need, attempt.policy)
        if flight.landed is None:
            flight.landed = yield from filled(reader, flight, attempt)
    except Exception as error:  # It is raised by everybody who waits for the flight.
        flight.error = error
        if attempt.is_background:
            reader.rest(attempt.target.key)
    finally:
        reader.flights.leave(flight)


def filled(reader: Reader, flight: Flight[Found], attempt: Attempt) -> Steps[Found | None]:
    """Takes the lease, loads and puts. None: somebody else refreshes already."""
    lease: Lease | None = None
    need = attempt.sight.need
    if reader.has_shared and not attempt.sight.is_away:
        got = yield from obtain(reader, attempt)
        if isinstance(got, Sight):
            reader.keep_local(attempt.target, got, attempt.mark)
            reader.count(SAVED, "lease")
            return got.found
        lease = got
        if attempt.is_background and (lease is None or lease.grant is not Grant.GRANTED):
            return None
    if lease is not None and lease.grant is Grant.GRANTED:
        need = digest_of(lease.stamps) if reader.is_derived else max(need, lease.floor)
    elif lease is not None:
        # An event of this entity could not be applied, so nobody knows what is old: serve it, and keep it nowhere.
        return (yield from direct(reader, attempt.target, need, flight))
    began = reader.clock()
    try:
        # A bound counts from the load: only the primary shows what was true then.
        primary = lease is None or isinstance(attempt.policy, Bounded)
        versioned = yield from load(reader, attempt.target, Need(need, primary), flight)
    except Exception:
        if lease is not None:
            yield from release(reader, attempt.target, lease)
        raise
    yield from keep(reader, attempt, lease, versioned, began)
    return loaded_at(began, versioned)


def obtain(reader: Reader, attempt: Attempt) -> Steps[Lease | Sight | None]:
    """The lease; or what somebody else has put meanwhile; or None, if one has to do without.

    A lease of the grant UNKNOWN is none: nothing may be kept, wherever.
    """
    target, sight = attempt.target, attempt.sight
    if attempt.is_background and sight.record is None:
        # What is past its soft TTL here may have been refreshed there, by another process.
        sight = yield from look(reader, target, sight.need, attempt.policy)
        if sight.found is not None and not sight.is_due:
            return sight
    ends = reader.clock() + reader.plan.wait_seconds
    pause = PAUSE_SECONDS
    wants_new = attempt.is_background or sight.is_refused
    while True:
        sent = reader.clock()
        try:
            lease: Lease = yield TakeLease(target.name, sight.need, target.stamps, wants_new)
        except TierError as error:
            reader.tier_failed(error)
            return None
        reader.server_clock.learn(lease.now_ms, sent)
        if lease.grant in (Grant.GRANTED, Grant.UNKNOWN):
            return lease
        if lease.grant is Grant.CLOSED or attempt.is_background:
            return None
        while True:
            seen = yield from look(reader, target, sight.need, attempt.policy)
            if seen.found is not None:
                return seen
            if seen.is_away or reader.clock() >= ends:
                return None
            if not reader.is_leased(seen.record):
                break
            yield Pause(pause)
            pause = min(2 * pause, PAUSE_SECONDS_MAX)
        wants_new = seen.is_refused


def release(reader: Reader, target: Target, lease: Lease) -> Steps[None]:
    """Gives the lease back, so that the next one need not wait until it ends."""
    try:
        yield Release(target.name, lease.lease)
    except TierError as error:
        reader.tier_failed(error)


def keep(reader: Reader, attempt: Attempt, lease: Lease | None, versioned: Versioned[Any], began: float) -> Steps[None]:
    """Puts what was loaded into the shared tier, if there is a lease, and into the process tier."""
    load_seconds = reader.clock() - began
    refusal = unkept(reader, versioned, load_seconds)
    if refusal is not None:
        reader.count(REJECTS, "local" if lease is None else "shared", refusal)
        if lease is not None:
            yield from release(reader, attempt.target, lease)
        return
    soft, hard = reader.ttls(versioned.value)
    if lease is not None:
        rejected = yield from put(reader, attempt.target, lease, versioned, (soft, hard, load_seconds))
        if rejected not in (None, Reject.CLOSED, Reject.TOO_LARGE):
            # Something newer is known there, and the process tier may not have heard of it yet.
            return
    found = Found(versioned.value, versioned.version, "source", began)
    sight = Sight(versioned.version, found, soft_left=soft, hard_left=hard, load=load_seconds)
    reader.keep_local(attempt.target, sight, attempt.mark)


def unkept(reader: Reader, versioned: Versioned[Any], load_seconds: float) -> str | None:
    """Why a loaded value is to be put nowhere."""
    if not versioned.cacheable:
        return "replica"
    return "deadline" if load_seconds > reader.plan.load_seconds else None


def put(
    reader: Reader, target: Target, lease: Lease, versioned: Versioned[Any], seconds: tuple[float, float, float]
) -> Steps[Reject | None]:
    """Into the shared tier, under the lease. No answer counts as closed."""
    soft_ms, hard_ms, load_ms = (max(1, min(round(value * 1000), 2**32 - 1)) for value in seconds)
    try:
        payload = reader.encoded(versioned.value)
    except Exception:
        yield from release(reader, target, lease)
        raise
    record = Put(
        key=target.name,
        lease=lease.lease,
        version=versioned.version,
        flags=reader.flags | HAS_VALUE | (NEGATIVE if versioned.value is None else 0),
        codec=reader.codec_id,
        schema=reader.plan.schema,
        payload=payload,
        soft_ms=soft_ms,
        hard_ms=hard_ms,
        load_ms=load_ms,
        stamps=dict(zip(target.stamps, lease.stamps, strict=True)),
    )
    try:
        rejected: Reject | None = yield PutValue(record)
    except TierError as error:
        reader.tier_failed(error)
        return Reject.CLOSED
    if rejected is not None:
        reader.count(REJECTS, "shared", rejected.value)
        if rejected in (Reject.FLOOR, Reject.STAMPS):
            # The lease still holds, and the next one would wait for it.
            yield from release(reader, target, lease)
    return rejected
