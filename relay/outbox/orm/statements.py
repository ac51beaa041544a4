"""INSERT, UPDATE and DELETE that pass the unit of work by: captured through RETURNING, or refused.

Captured are ORM statements of a Session, `session.execute(update(User)...)`: the keys of the rows come back with the
statement, hidden from the caller, and one more call writes the events. Everything else that names a tracked table, on
any connection of this process, is refused before it is sent: bulk_save_objects and its kin, Core statements, DML within
a CTE. Statements as text are not seen; those are what capture triggers are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, Delete, Insert, Update, inspect, select
from sqlalchemy.dialects.postgresql.dml import OnConflictDoNothing, OnConflictDoUpdate
from sqlalchemy.orm import Mapper, ORMExecuteState, Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import UpdateBase

from relay.errors import EventError
from relay.outbox.events import Json
from relay.outbox.orm import cascades, plans
from relay.outbox.orm.flushes import CREATED, DELETED, UPDATED, is_flushing
from relay.outbox.orm.plans import NOT_LOADED, Plan, entity_id, plan_of
from relay.outbox.orm.touches import (
    OPTION,
    Touches,
    chunks,
    is_skipped,
    read_column,
    says_deleted,
    skips,
    with_keys,
)
from relay.outbox.sessions import refuse_unfit

Key = tuple[Any, ...]
LOAD = "change objects that you have loaded, or pass relay='skip' as execution option and call touch_many yourself"

_capturing: WeakSet[Connection] = WeakSet()
"""Connections on which a captured statement is under way."""


# Which statements


def do_orm_execute(execution: ORMExecuteState) -> Any:
    """Runs an ORM statement on a tracked class and writes its events; all others take their course."""
    statement = execution.statement
    if not isinstance(statement, UpdateBase) or skips(execution.execution_options.get(OPTION)):
        return None
    if (mapper := _mapper(statement)) is None:
        return None
    connection = execution.session.connection(bind_arguments=execution.bind_arguments)
    if is_skipped(connection):
        return None
    if isinstance(statement, Delete):
        cascades.refuse_lost(mapper, "delete", by_statement=True)
    plan = plan_of(mapper)
    if plan is None or connection in _capturing:
        return None
    refuse_unfit(connection)
    # Before we let statements through: what listeners do within the flush is not this statement.
    wants_flush = execution.session.autoflush and execution.execution_options.get("autoflush", True)
    if wants_flush and not is_flushing(connection):
        execution.session.flush()
    _capturing.add(connection)
    try:
        result, action, keys = _run(execution, statement, plan)
    finally:
        _capturing.discard(connection)
    touches = Touches()
    touches.add(plan, _changes(execution.session, connection, plan, action, keys))
    touches.write(execution.session, connection)
    return result


def before_cursor_execute(  # noqa: PLR0917
    connection: Connection, cursor: Any, text: str, parameters: Any, context: Any, executemany: bool
) -> None:
    """Refuses what would change a tracked table and is neither the unit of work's nor captured."""
    compiled = context.compiled if context is not None else None
    if compiled is None or not plans.is_any_tracked():
        return
    for statement in _data_changes(compiled):
        name = plans.tracked_by_table(statement.table)
        if name is None or skips(context.execution_options.get(OPTION)):
            continue
        is_ours = is_flushing(connection) or connection in _capturing
        # Only SQLAlchemy's own persistence brings a cache of its own for what it compiles; captured statements are
        # the statement itself.
        if is_ours and (connection in _capturing or "compiled_cache" in context.execution_options):
            continue
        raise _refusal(
            name,
            f"this {type(statement).__name__.upper()} passes the unit of work by",
            f"use the Session: objects, or session.execute({type(statement).__name__.lower()}({name})...);"
            " or pass relay='skip' as execution option and call touch_many yourself",
        )


def _data_changes(compiled: Any) -> Iterable[UpdateBase]:
    if not isinstance(compiled, SQLCompiler):
        return  # DDL
    if compiled.isinsert or compiled.isupdate or compiled.isdelete:
        statement: Any = compiled.dml_compile_state.statement if compiled.dml_compile_state else compiled.statement
        yield statement
    for cte in compiled.ctes or ():
        if isinstance(cte.element, UpdateBase):
            yield cte.element


def _mapper(statement: UpdateBase) -> Mapper[Any] | None:
    """The mapper of an ORM statement; None for one on a table."""
    try:
        entity = statement.entity_description.get("entity")
    except KeyError:  # a statement on a table, with conditions on a class
        return None
    inspected = inspect(entity, raiseerr=False) if entity is not None else None
    mapper = getattr(inspected, "mapper", None)
    return mapper if isinstance(mapper, Mapper) else None


# How each is run


def _run(execution: ORMExecuteState, statement: UpdateBase, plan: Plan) -> tuple[Any, str, list[Key]]:
    """The caller's result, and which rows the statement has changed."""
    if isinstance(statement, Insert):
        return _insert(execution, statement, plan)
    if len(plan.mapper.tables) > 1 and isinstance(statement, Delete):
        raise _refusal(plan.mapper.class_.__name__, "a DELETE would leave the rows of its other tables", LOAD)
    if isinstance(statement, Update) and isinstance(execution.parameters, list | tuple):
        return _update_by_key(execution, plan, execution.parameters)
    names = _assigned(statement, execution.parameters, plan.mapper)
    if isinstance(statement, Update) and names & set(plan.keys):
        raise _refusal(plan.mapper.class_.__name__, "an UPDATE of the primary key hides the old one", LOAD)
    # RETURNING as the ORM itself does it: the caller's result keeps its columns and its row count.
    result = execution.invoke_statement(execution_options={"synchronize_session": "fetch"})
    if isinstance(statement, Update) and not names & plan.compare.keys():
        return result, UPDATED, []
    sent: Any = getattr(result, "raw", result)
    rows = sent.returned_defaults_rows or ()
    return result, DELETED if isinstance(statement, Delete) else UPDATED, [tuple(row)[: len(plan.keys)] for row in rows]


def _update_by_key(
    execution: ORMExecuteState, plan: Plan, parameters: Sequence[dict[str, Any]]
) -> tuple[Any, str, list[Key]]:
    """The ORM's bulk UPDATE by primary key: the keys are in the parameters, and a row that is missing is an error."""
    if execution.statement.whereclause is not None:  # type: ignore[attr-defined]
        raise _refusal(plan.mapper.class_.__name__, "a bulk UPDATE with a condition hides which rows matched", LOAD)
    result = execution.invoke_statement()
    matter = plan.compare.keys() - set(plan.keys)
    return result, UPDATED, [tuple(row[name] for name in plan.keys) for row in parameters if matter & row.keys()]


def _insert(execution: ORMExecuteState, statement: Insert, plan: Plan) -> tuple[Any, str, list[Key]]:
    """With the primary key behind the caller's own RETURNING, and taken away again."""
    conflict = getattr(statement, "_post_values_clause", None)
    action = CREATED
    if isinstance(conflict, OnConflictDoUpdate):
        action = UPDATED  # the database does not say which of the two it did
        if {getattr(name, "key", name) for name in dict(conflict.update_values_to_set)} & set(plan.keys):
            raise _refusal(plan.mapper.class_.__name__, "an upsert that sets the primary key hides the old one", LOAD)
    elif conflict is not None and not isinstance(conflict, OnConflictDoNothing):
        raise _refusal(plan.mapper.class_.__name__, "an INSERT with an unknown clause", LOAD)
    keys = [getattr(plan.mapper.class_, name) for name in plan.keys]
    result = execution.invoke_statement(statement=statement.returning(*keys))
    own = len(result.keys()) - len(keys)
    if not own:
        rows = result.all()
        return getattr(result, "raw", result), action, [tuple(row) for row in rows]
    frozen = result.freeze()
    rows = frozen().all()
    return frozen().columns(*range(own)), action, [tuple(row)[own:] for row in rows]


def _assigned(statement: UpdateBase, parameters: Any, mapper: Mapper[Any]) -> set[str]:
    """The attributes that an UPDATE sets."""
    names = set(parameters or ())
    for target in dict(getattr(statement, "_values", None) or getattr(statement, "_ordered_values", None) or ()):
        column = getattr(target, "key", target)
        names.add(
            next((prop.key for prop in mapper.column_attrs if column in (prop.key, prop.columns[0].key)), str(column))
        )
    return names


# What is said of the rows


def _changes(
    session: Session, connection: Connection, plan: Plan, action: str, keys: list[Key]
) -> list[tuple[str, tuple[str, Json]]]:
    """Ids with action and payload. What the rule and the payload need is read after the statement."""
    if action is DELETED or (plan.deleted is None and plan.payload is None):
        return [(entity_id(key), (action, None)) for key in keys]
    is_gone: Callable[[Key], bool] = lambda _: False  # noqa: E731
    objects: dict[Key, Any] = {}
    if isinstance(plan.deleted, str):
        values = dict(read_column(connection, plan.mapper, plan.deleted, keys))
        is_gone = lambda key: says_deleted(values.get(key, NOT_LOADED))  # noqa: E731
    if plan.payload is not None or callable(plan.deleted):
        objects = _load(session, plan.mapper, keys)
    if callable(rule := plan.deleted):
        is_gone = lambda key: key not in objects or rule(objects[key])  # noqa: E731
    return [
        (
            entity_id(key),
            (DELETED, None)
            if is_gone(key)
            else (action, plan.payload(objects[key]) if plan.payload and key in objects else None),
        )
        for key in keys
    ]


def _load(session: Session, mapper: Mapper[Any], keys: list[Key]) -> dict[Key, Any]:
    """The objects of these rows as they are now."""
    found: dict[Key, Any] = {}
    for chunk in chunks(keys):
        query = select(mapper).where(with_keys(mapper, chunk)).execution_options(populate_existing=True)
        for each in session.scalars(query):
            found[tuple(mapper.primary_key_from_instance(each))] = each
    return found


def _refusal(name: str, message: str, fix: str) -> EventError:
    return EventError("RLY-131", f"rows of the tracked class {name} would change unseen: {message}", fix)
