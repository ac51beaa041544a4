"""Many reads as one: one pass over the process tier, one look for all the rest, one load of what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from relay.cache.effects import Lead, Load, Look, Steps, TakeLease, Together
from relay.cache.flights import Flight, begin_wait, end_wait
from relay.cache.loading import checked, enter, leave, too_old
from relay.cache.numbers import LOAD_SECONDS, LOADS
from relay.cache.reader import BYPASS, Found, Reader, Sight, Target
from relay.cache.reading import Attempt, direct, keep, learn_clock, refresh, release, through
from relay.cache.sessions import CURRENT
from relay.cache.tiers import Grant, Lease, Page, TierError
from relay.cache.values import Need
from relay.core.policy import Policy, Strong
from relay.errors import CacheError

Led = tuple[Flight[Found], Attempt]


def read_many(reader: Reader, ids: Iterable[Any], policy: Policy | None = None) -> Steps[dict[Any, Found]]:
    """The values of these ids, each as `reading.read` would give it. An exception of one is an exception of all.

    Raises:
        CacheError: as `reading.read`.
        Exception: whatever a loader raises, after all the others have ended.
    """
    policy = policy or reader.plan.policy
    targets = {id_: reader.target(id_) for id_ in ids}
    inside = [target for target in targets.values() if reader.flights.is_inside(target.key)]
    if inside:
        raise CacheError(
            "RLY-911", f"the loader of {reader.plan.name} reads a key that it is loading", "read from the source"
        )
    session = CURRENT.get()
    wants = {id_: 0 if session is None else session.least(reader.plan.name, at.key) for id_, at in targets.items()}
    is_bypassed = BYPASS.get()
    if is_bypassed or reader.is_off or isinstance(policy, Strong):
        alone = list(targets)
        found: dict[Any, Found] = {}
    else:
        alone = [id_ for id_, want in wants.items() if want < 0]
        found = yield from _through(
            reader, {id_: (at, wants[id_]) for id_, at in targets.items() if wants[id_] >= 0}, policy
        )
    if alone:
        steps = [direct(reader, targets[id_], 0 if is_bypassed else max(wants[id_], 0)) for id_ in alone]
        loaded = yield Together(steps)
        found.update(zip(alone, loaded, strict=True))
    if session is not None and not is_bypassed:
        for id_, one in found.items():
            session.observe(reader.plan.name, targets[id_].key, one.version)
    return {id_: found[id_] for id_ in targets}


def _through(reader: Reader, wanted: Mapping[Any, tuple[Target, int]], policy: Policy) -> Steps[dict[Any, Found]]:
    found: dict[Any, Found] = {}
    missed: dict[Any, Attempt] = {}
    mark, entries = reader.mark(), reader.space.entries
    for id_, (target, want) in wanted.items():
        entry = entries.get(target.key)
        need = max(want, reader.space.floor(target.key))
        attempt = Attempt(target, policy, Sight(need), mark, entry)
        if entry is not None:
            there, is_due = reader.from_entry(entry, need, policy)
            if there is not None:
                found[id_] = there
                if is_due:
                    yield from refresh(reader, attempt)
                continue
        missed[id_] = attempt
    if missed:
        missed = yield from _look(reader, missed, found)
    if missed and reader.load_many is not None:
        missed = yield from _load_together(reader, reader.load_many, missed, found)
    if missed:
        steps = [through(reader, one.target, wanted[id_][1], policy, one) for id_, one in missed.items()]
        loaded = yield Together(steps)
        found.update(zip(missed, loaded, strict=True))
    return found


def _look(reader: Reader, missed: Mapping[Any, Attempt], found: dict[Any, Found]) -> Steps[dict[Any, Attempt]]:
    """One look for all of them. Returns those that are to be loaded."""
    page = Page(None, ())
    if reader.has_shared:
        try:
            page = yield Look([attempt.target.name for attempt in missed.values()])
        except TierError as error:
            reader.tier_failed(error)
        else:
            if not reader.server_clock.is_known(reader.clock()):
                yield from learn_clock(reader)
    if page.epoch is None:
        return {id_: one._replace(sight=Sight(one.sight.need, is_away=True)) for id_, one in missed.items()}
    left: dict[Any, Attempt] = {}
    hits = []
    for (id_, attempt), record in zip(missed.items(), page.records, strict=True):
        sight = reader.see(page.epoch, record, attempt.sight.need, attempt.policy)
        if sight.found is None:
            left[id_] = attempt._replace(sight=sight)
            continue
        reader.keep_local(attempt.target, sight, attempt.mark)
        if sight.is_due:
            yield from refresh(reader, attempt._replace(sight=sight))
        found[id_] = sight.found
        hits.append(sight.found)
    reader.hits(hits)
    return left


def _load_together(
    reader: Reader, load_many: Callable[..., Any], missed: Mapping[Any, Attempt], found: dict[Any, Found]
) -> Steps[dict[Any, Attempt]]:
    """Leads the flights that nobody leads yet, all with one load. Returns what is left: only then one waits for others."""
    led: dict[Any, Led] = {}
    for id_, attempt in missed.items():
        flight = reader.flights.try_lead(attempt.target.key)
        if flight is not None:
            begin_wait(flight)
            led[id_] = (flight, attempt)
    if not led:
        return dict(missed)
    flights = tuple(flight for flight, _ in led.values())
    try:
        yield Lead(flights, _fill(reader, load_many, led))
    finally:
        for flight in flights:
            end_wait(flight)
    left = dict(missed)
    for id_, (flight, attempt) in led.items():
        if flight.landed is not None and reader.does(flight.landed, attempt.sight.need, attempt.policy):
            found[id_] = flight.landed
            reader.missed(flight.landed, leads=True)
            del left[id_]
        elif flight.error is not None:
            old = reader.old(attempt.sight.record, attempt.target.key, 0, attempt.policy)
            if old is None:
                raise flight.error
            found[id_] = old
            reader.served(old, "stale")
            del left[id_]
    return {id_: attempt._replace(sight=Sight(attempt.sight.need)) for id_, attempt in left.items()}


def _fill(reader: Reader, load_many: Callable[..., Any], led: Mapping[Any, Led]) -> Steps[None]:
    """Leads all of these flights to their end. Those that cannot be loaded together are left without a result."""
    leases: dict[Any, Lease | None] = {}
    try:
        for id_, (_, attempt) in led.items():
            lease = yield from _lease(reader, attempt)
            if lease is None or lease.grant in (Grant.GRANTED, Grant.CLOSED):
                leases[id_] = lease if lease is not None and lease.grant is Grant.GRANTED else None
        if leases:
            yield from _load(reader, load_many, {id_: led[id_] for id_ in leases}, leases)
    except Exception as error:
        for lease_id, lease in leases.items():
            if lease is not None:
                yield from release(reader, led[lease_id][1].target, lease)
        for flight, _ in led.values():
            flight.error = error
    finally:
        for flight, _ in led.values():
            reader.flights.leave(flight)


def _lease(reader: Reader, attempt: Attempt) -> Steps[Lease | None]:
    """One question, without waiting. None: there is nobody to ask."""
    if not reader.has_shared or attempt.sight.is_away:
        return None
    sent = reader.clock()
    try:
        lease: Lease = yield TakeLease(attempt.target.name, attempt.sight.need, (), attempt.sight.is_refused)
    except TierError as error:
        reader.tier_failed(error)
        return None
    reader.server_clock.learn(lease.now_ms, sent)
    return lease


def _load(
    reader: Reader, load_many: Callable[..., Any], led: Mapping[Any, Led], leases: dict[Any, Lease | None]
) -> Steps[None]:
    needs = {
        id_: Need(max(led[id_][1].sight.need, 0 if lease is None else lease.floor), primary=lease is None)
        for id_, lease in leases.items()
    }
    yield from enter(reader)
    began = reader.clock()
    try:
        loaded = yield Load(load_many, (needs,), tuple(flight for flight, _ in led.values()))
    except Exception:
        reader.count(LOADS, "error")
        raise
    finally:
        leave(reader)
    reader.count(LOADS, "ok")
    reader.recorder.measure(LOAD_SECONDS, reader.plan.name, value=max(0.0, reader.clock() - began))
    if not isinstance(loaded, Mapping):
        raise CacheError(
            "RLY-912",
            f"the loader of many of {reader.plan.name} returned a {type(loaded).__name__}",
            "return a dict of Versioned by id",
        )
    for id_, (flight, attempt) in led.items():
        lease = leases.pop(id_)
        versioned = loaded.get(id_)
        if versioned is None or too_old(checked(reader, versioned), needs[id_]):
            # Left out, or behind: its own loader is asked, with a need of its own.
            if lease is not None:
                yield from release(reader, attempt.target, lease)
            continue
        yield from keep(reader, attempt, lease, versioned, began)
        flight.landed = Found(versioned.value, versioned.version, "source", began)
