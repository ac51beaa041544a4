"""Many reads as one: one pass over the process tier, one look for all the rest, one load of what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from relay.cache.effects import Lead, Load, Look, Steps, TakeLease, Together
from relay.cache.flights import CHAIN, Flight, begin_wait, end_wait
from relay.cache.glancing import Found
from relay.cache.loading import checked, enter, leave, too_old
from relay.cache.local import Mark
from relay.cache.numbers import LOAD_SECONDS, LOADS
from relay.cache.reader import BYPASS, Reader, Sight
from relay.cache.reading import Attempt, direct, keep, learn_clock, loaded_at, refresh, release, through
from relay.cache.sessions import CURRENT
from relay.cache.tiers import Grant, Lease, Page, TierError
from relay.cache.values import Need
from relay.core.policy import Bounded, Policy, Strong
from relay.errors import CacheError

Led = tuple[Flight[Found], Attempt]


def many(reader: Reader, ids: Iterable[Any], policy: Policy | None = None) -> Steps[dict[Any, Any]]:
    """The values of these ids, in their order; see `read_many`."""
    policy = policy or reader.plan.policy
    names = {id_: f"{reader.name_prefix}{id_}" for id_ in ids}
    values: dict[Any, Any] = {}
    left = list(names)
    if can_glance(reader, policy):
        try:
            page: Page = yield Look(list(names.values()))
        except TierError as error:
            reader.tier_failed(error)
        else:
            moment = None if page.epoch is None else reader.moment(page.epoch, policy)
            if moment is not None:
                values, left = reader.at_a_glance.values(names, page.records, moment)
                reader.hit("shared", by=len(values))
    if not left:
        return values
    found = yield from read_many(reader, left, policy)
    values.update({id_: one.value for id_, one in found.items()})
    return {id_: values[id_] for id_ in names}


def can_glance(reader: Reader, policy: Policy) -> bool:
    """Whether any current record of the shared tier will do."""
    is_plain = not (isinstance(policy, (Bounded, Strong)) or CURRENT.get() or BYPASS.get() or CHAIN.get())
    return is_plain and reader.has_shared and reader.local is None and not reader.is_off


class Batch(NamedTuple):
    """What one call of `many` has in hand."""

    reader: Reader
    policy: Policy
    wants: Mapping[Any, int]
    """What a session needs; empty without one."""
    mark: Mark | None
    found: dict[Any, Found]


def read_many(reader: Reader, ids: Iterable[Any], policy: Policy | None = None) -> Steps[dict[Any, Found]]:
    """The values of these ids, each as `reading.read` would give it. An exception of one is an exception of all.

    Raises:
        CacheError: as `reading.read`.
        Exception: whatever a loader raises, after all the others have ended.
    """
    policy = policy or reader.plan.policy
    keys = {id_: f"{id_}" for id_ in ids}
    if CHAIN.get() and any(map(reader.flights.is_inside, keys.values())):
        raise CacheError(
            "RLY-911", f"the loader of {reader.plan.name} reads a key that it is loading", "read from the source"
        )
    session, is_bypassed = CURRENT.get(), BYPASS.get()
    wants: dict[Any, int] = {}
    if session is not None and not is_bypassed:
        wants = {id_: session.least(reader.plan.name, key) for id_, key in keys.items()}
    if is_bypassed or reader.is_off or isinstance(policy, Strong):
        alone, together = list(keys), {}
    else:
        alone = [id_ for id_, want in wants.items() if want < 0]
        together = {id_: key for id_, key in keys.items() if wants[id_] >= 0} if alone else keys
    batch = Batch(reader, policy, wants, reader.mark(), {})
    found = batch.found
    is_ordered = yield from _through(batch, together)
    if alone:
        steps = [direct(reader, reader.target(id_), max(wants.get(id_, 0), 0)) for id_ in alone]
        loaded = yield Together(steps)
        found.update(zip(alone, loaded, strict=True))
        for one in loaded:
            reader.served(one, "off" if is_bypassed or reader.is_off else "miss")
    if wants and session is not None:
        for id_, one in found.items():
            session.observe(reader.plan.name, keys[id_], one.version)
    return found if is_ordered and not alone else {id_: found[id_] for id_ in keys}


def _through(batch: Batch, keys: Mapping[Any, str]) -> Steps[bool]:
    """Returns whether all were found by one look, and so in the order of the keys."""
    reader = batch.reader
    if reader.local is not None:
        keys = yield from _from_process(batch, keys)
    if not keys:
        return False
    left = yield from _look(batch, keys)
    is_ordered = not left and reader.local is None
    if left and reader.load_many is not None:
        left = yield from _load_together(reader, reader.load_many, left, batch.found)
    if left:
        steps = [through(reader, one.target, batch.wants.get(id_, 0), batch.policy, one) for id_, one in left.items()]
        loaded = yield Together(steps)
        batch.found.update(zip(left, loaded, strict=True))
    return is_ordered


def _from_process(batch: Batch, keys: Mapping[Any, str]) -> Steps[dict[Any, str]]:
    """One pass over the process tier. Returns those that it has not."""
    reader, policy = batch.reader, batch.policy
    missed: dict[Any, str] = {}
    get = reader.space.entries.get
    for id_, key in keys.items():
        entry = get(key)
        if entry is not None:
            need = max(batch.wants.get(id_, 0), reader.space.floor(key))
            there, is_due = reader.from_entry(entry, need, policy)
            if there is not None:
                batch.found[id_] = there
                if is_due:
                    yield from refresh(reader, Attempt(reader.target(id_), policy, Sight(need), batch.mark, entry))
                continue
        missed[id_] = key
    return missed


def _look(batch: Batch, keys: Mapping[Any, str]) -> Steps[dict[Any, Attempt]]:
    """One look for all of them. Returns those that are to be loaded."""
    reader, policy, wants, found = batch.reader, batch.policy, batch.wants, batch.found
    page = yield from _page(batch, keys)
    epoch = page.epoch
    moment = None if epoch is None or reader.local is not None else reader.moment(epoch, policy)
    left: dict[Any, Attempt] = {}
    hits = 0
    for (id_, key), data in zip(keys.items(), page.records, strict=True):
        if moment is not None:
            one = reader.at_a_glance.glance(data, wants.get(id_, 0), moment)
            if one is not None:
                found[id_] = one
                hits += 1
                continue
        need = max(wants.get(id_, 0), reader.space.floor(key))
        sight = Sight(need, is_away=True) if epoch is None else reader.see(epoch, data, need, policy)
        attempt = Attempt(reader.target(id_), policy, sight, batch.mark, reader.space.entries.get(key))
        if sight.found is None:
            left[id_] = attempt
            continue
        reader.keep_local(attempt.target, sight, batch.mark)
        if sight.is_due:
            yield from refresh(reader, attempt)
        found[id_] = sight.found
        hits += 1
    reader.hit("shared", by=hits)
    return left


def _page(batch: Batch, keys: Mapping[Any, str]) -> Steps[Page]:
    """The records of these keys; none of them and no epoch, if the tier does not answer."""
    reader = batch.reader
    if reader.has_shared:
        prefix = reader.name_prefix
        try:
            page: Page = yield Look([prefix + key for key in keys.values()])
        except TierError as error:
            reader.tier_failed(error)
        else:
            if page.epoch is None:
                reader.tier_failed(TierError("closed"))
            elif not reader.server_clock.is_known(reader.clock()):
                yield from learn_clock(reader)
            return page
    return Page(None, [None] * len(keys))


def _load_together(
    reader: Reader, load_many: Callable[..., Any], missed: Mapping[Any, Attempt], found: dict[Any, Found]
) -> Steps[dict[Any, Attempt]]:
    """Leads the flights that nobody leads yet, all with one load. Returns what is left, for waiting only then."""
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
    return left


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
        # As in `reading.filled`: a bound counts from the load, and only the primary shows what was true then.
        id_: Need(
            max(led[id_][1].sight.need, 0 if lease is None else lease.floor),
            primary=lease is None or isinstance(led[id_][1].policy, Bounded),
        )
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
        flight.landed = loaded_at(began, versioned)
