"""Which classes are tracked and how, and what that means for each of their mappers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from uuid import UUID

from sqlalchemy import ClauseElement, Column, inspect
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import InstanceState, Mapper

from relay.errors import EventError
from relay.outbox.events import Json, entity_change

NOT_LOADED = object()
"""In place of a value that no attribute holds and that only the database can say."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the user said to `track` of one class."""

    entity: str | None = None
    topic: str | None = None
    columns: frozenset[str] | None = None
    ignore: frozenset[str] = frozenset()
    payload: Callable[[Any], Json] | None = None
    deleted: str | Callable[[Any], bool] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What happens at a change of one mapper's objects."""

    mapper: Mapper[Any]
    entity: str
    topic: str | None
    compare: Mapping[str, Callable[[Any, Any], bool]] = field(repr=False)
    """The attributes whose change is a change of the entity, and how their type compares values."""
    keys: tuple[str, ...]
    """The attributes of the primary key, in its order."""
    payload: Callable[[Any], Json] | None
    deleted: str | Callable[[Any], bool] | None

    def key_of(self, state: InstanceState[Any]) -> tuple[Any, ...]:
        """The primary key that the object has now, which a new object has nowhere else yet."""
        try:
            return tuple([state.dict[name] for name in self.keys])
        except KeyError:  # not loaded: a trigger or an SQL expression has set it
            return tuple(self.mapper.primary_key_from_instance(state.obj()))

    def is_changed(self, committed: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
        """Whether an attribute that matters has another value than before: what would be in the UPDATE."""
        return is_changed(self.compare, committed, current)


_options: dict[Mapper[Any], Options] = {}
_plans: dict[Mapper[Any], Plan | None] = {}
_tables: dict[Any, str] = {}
_keys: dict[Mapper[Any], dict[str, Callable[[Any, Any], bool]]] = {}


def add(cls: type[Any], options: Options) -> None:
    """Tracks the class, once.

    Raises:
        EventError: RLY-130, and the class is not tracked.
    """
    mapper = mapper_of(cls)
    known = _options.get(mapper)
    if known is not None and known != options:
        raise _refusal(cls, "is tracked already, with other options", "track it in one place, or untrack it first")
    names = set().union(*(each.columns.keys() for each in mapper.self_and_descendants))
    wanted = {*(options.columns or ()), *options.ignore}
    wanted |= {options.deleted} if isinstance(options.deleted, str) else set()
    if unknown := sorted(wanted - names):
        raise _refusal(cls, f"has no mapped column {', '.join(unknown)}", "name attributes that are mapped to columns")
    if options.columns is not None and options.ignore:
        raise _refusal(cls, "has both columns and ignore", "say which columns matter, or which do not")
    entity_change(options.entity or name_of(cls), "1", "updated", options.topic)
    _options[mapper] = options
    forget()
    try:
        _refuse_two_names(mapper)
    except EventError:
        remove(cls)
        raise


def remove(cls: type[Any]) -> None:
    """Tracks the class no longer."""
    _options.pop(mapper_of(cls), None)
    forget()


def forget() -> None:
    """Forgets what was worked out: other classes are tracked now, or there are more of them."""
    _plans.clear()
    _tables.clear()


def mapper_of(cls: object) -> Mapper[Any]:
    """The mapper of the class, which need not be configured yet.

    Raises:
        EventError: RLY-130: it is no mapped class.
    """
    try:
        mapper = inspect(cls)
    except NoInspectionAvailable:
        mapper = None
    if not isinstance(mapper, Mapper):
        raise EventError("RLY-130", f"{cls!r:.100} is no mapped class", "pass classes that SQLAlchemy has mapped")
    return mapper


def tracked() -> Collection[Mapper[Any]]:
    """The mappers of the classes that were tracked by name."""
    return _options.keys()


def is_any_tracked() -> bool:
    """Whether there is anything to look after at all."""
    return bool(_options)


def tracked_by_table(table: Any) -> str | None:
    """The name of the tracked class whose rows lie in this table, or in a table of a class below it."""
    if not _tables:
        for mapper in _options:
            for each in mapper.self_and_descendants:
                _tables.update((one, mapper.class_.__name__) for one in each.tables)
    return _tables.get(table)


def plan_of(mapper: Mapper[Any]) -> Plan | None:
    """The plan of the nearest tracked class, from this one upwards; None if there is none."""
    try:
        return _plans[mapper]
    except KeyError:
        return _plans.setdefault(mapper, _plan(mapper))


def is_changed(
    compare: Mapping[str, Callable[[Any, Any], bool]], committed: Mapping[str, Any], current: Mapping[str, Any]
) -> bool:
    """Whether one of the attributes that were set was set to something else, by the rule of SQLAlchemy itself."""
    for name in committed:
        equal = compare.get(name)
        if equal is None:
            continue
        new = current.get(name, NOT_LOADED)
        # An SQL expression: nobody knows before the database does. And to compare one would make another.
        if isinstance(new, ClauseElement) or hasattr(new, "__clause_element__") or not equal(new, committed[name]):
            return True
    return False


def keys_of(mapper: Mapper[Any]) -> dict[str, Callable[[Any, Any], bool]]:
    """The attributes of the primary key in its order, and how their types compare values; of any class."""
    if mapper not in _keys:
        names = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        _keys[mapper] = {name: mapper.column_attrs[name].columns[0].type.compare_values for name in names}
    return _keys[mapper]


def name_of(cls: type[Any]) -> str:
    """OrderLine is order_line."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()


def entity_id(key: tuple[Any, ...]) -> str:
    """The primary key as the id of the entity: as Postgres would print it, so that triggers and hands say the same.

    The parts of a composite key are joined with ":"; a ":" or backslash within a part gets a backslash before it, so
    no two keys are one id.

    Raises:
        EventError: RLY-103: a part has a type whose text is not the same everywhere.
    """
    if len(key) == 1:
        return str(key[0]) if type(key[0]) is int else _part(key[0])
    return ":".join(_part(part).replace("\\", "\\\\").replace(":", "\\:") for part in key)


def _part(value: Any) -> str:
    if type(value) in (int, str, UUID, date):
        return str(value)
    return entity_change("entity", value, "updated", None)["id"] or ""


def _plan(mapper: Mapper[Any]) -> Plan | None:
    source: Mapper[Any] | None = mapper
    while source is not None and source not in _options:
        source = source.inherits
    if source is None:
        return None
    options = _options[source]
    root = _owner_of_name(mapper, source)
    if root is not source and options.entity is not None:
        raise _refusal(
            mapper.class_,
            f"has a table and keys of its own, but would be the entity {options.entity} of {source.class_.__name__}",
            "track it under a name of its own",
        )
    compare = {
        prop.key: prop.columns[0].type.compare_values
        for prop in mapper.column_attrs
        if isinstance(prop.columns[0], Column) and _matters(prop.key, options)
    }
    compare |= keys_of(mapper)
    return Plan(
        mapper,
        options.entity or name_of(root.class_),
        options.topic,
        compare,
        tuple(keys_of(mapper)),
        options.payload,
        options.deleted,
    )


def _matters(name: str, options: Options) -> bool:
    if name == options.deleted:
        return True
    return name in options.columns if options.columns is not None else name not in options.ignore


def _owner_of_name(mapper: Mapper[Any], source: Mapper[Any]) -> Mapper[Any]:
    """The class that names the entity: the tracked one, unless a concrete class stands between, which has own keys."""
    each: Mapper[Any] | None = mapper
    while each is not None and each is not source:
        if each.concrete:
            return each
        each = each.inherits
    return source


def _refuse_two_names(mapper: Mapper[Any]) -> None:
    """One row is one entity, and one entity is one row: two events of it in one flush would contradict each other."""
    ours = _options[mapper]
    name = ours.entity or name_of(mapper.class_)
    for other, theirs in _options.items():
        if other is mapper:
            continue
        is_same = name == (theirs.entity or name_of(other.class_))
        shares = mapper.local_table is other.local_table or _shares_keys(mapper, other) or _shares_keys(other, mapper)
        if shares and not (is_same and ours.topic == theirs.topic):
            raise _refusal(
                mapper.class_,
                f"shares rows with {other.class_.__name__}, which is tracked with another entity name or topic",
                "give both the same entity and topic",
            )
        if is_same and not shares:
            raise _refusal(
                mapper.class_,
                f"would be the entity {name}, as {other.class_.__name__} is",
                "name one of them otherwise",
            )


def _shares_keys(child: Mapper[Any], parent: Mapper[Any]) -> bool:
    each: Mapper[Any] | None = child
    while each is not None and each is not parent and not each.concrete:
        each = each.inherits
    return each is parent


def _refusal(cls: type[Any], message: str, fix: str) -> EventError:
    return EventError("RLY-130", f"the class {cls.__name__} {message}", fix)
