"""Foreign keys through which the database changes tracked rows behind the unit of work's back.

Deleting a customer may delete its orders by ON DELETE CASCADE: no statement names them, so nobody could say that they
changed. Refused, unless the unit of work treats the children itself before the database has to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from sqlalchemy import FromClause, Table
from sqlalchemy.exc import NoReferenceError
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.schema import ForeignKeyConstraint

from relay.errors import EventError
from relay.outbox.orm import plans

Cause = Literal["delete", "update"]
ACTIONS = ("CASCADE", "SET NULL", "SET DEFAULT")

_found: dict[tuple[Mapper[Any], Cause, bool], tuple[str, str] | None] = {}


def forget() -> None:
    """After a change of what is tracked."""
    _found.clear()


def refuse_lost(mapper: Mapper[Any], cause: Cause, *, by_statement: bool) -> None:
    """Refuses a deletion, or a new primary key, that would change tracked rows of other classes unseen.

    Args:
        by_statement: no unit of work looks after the children then.

    Raises:
        EventError: RLY-132, with the classes.
    """
    question = (mapper, cause, by_statement)
    if question not in _found:
        _found[question] = next(_lost(mapper, cause, by_statement), None)
    if (lost := _found[question]) is None:
        return
    child, table = lost
    what = "deleting" if cause == "delete" else "changing the primary key of"
    raise EventError(
        "RLY-132",
        f"{what} {mapper.class_.__name__} lets the database change rows of the tracked class {child} by the"
        f" ON {cause.upper()} of a foreign key of {table}",
        f"let a relationship do it (without passive_{cause}s), or leave {child} to `relay capture add`",
    )


def _lost(mapper: Mapper[Any], cause: Cause, by_statement: bool) -> Iterator[tuple[str, str]]:
    for table in mapper.tables:
        for constraint in _referring(table, cause):
            child = constraint.table
            if _is_one_entity(child, table):
                continue
            if not by_statement and _has_keeper(mapper, constraint, cause):
                continue
            for name in _reached(child, cause, set()):
                yield name, child.name


def _referring(table: FromClause, cause: Cause) -> Iterator[ForeignKeyConstraint]:
    """The foreign keys to this table through which the database writes."""
    if not isinstance(table, Table):
        return
    for other in table.metadata.tables.values():
        for constraint in other.foreign_key_constraints:
            action = constraint.ondelete if cause == "delete" else constraint.onupdate
            if (action or "").upper().startswith(ACTIONS) and _refers_to(constraint, table):
                yield constraint


def _refers_to(constraint: ForeignKeyConstraint, table: Table) -> bool:
    try:
        return constraint.referred_table is table
    except NoReferenceError:
        return False  # its table is not in this metadata, so it is not ours


def _reached(table: Table, cause: Cause, seen: set[Table]) -> Iterator[str]:
    """The tracked classes whose rows go with this table's, this one's first."""
    if table in seen:
        return
    seen.add(table)
    yield from (each.class_.__name__ for each in plans.tracked() if table in each.tables)
    for constraint in _referring(table, cause):
        yield from _reached(constraint.table, cause, seen)


def _is_one_entity(child: Table, parent: FromClause) -> bool:
    """Whether the two tables are the parts of one object, by joined inheritance."""
    return any(
        child in each.tables and parent in each.tables for top in plans.tracked() for each in top.self_and_descendants
    )


def _has_keeper(mapper: Mapper[Any], constraint: ForeignKeyConstraint, cause: Cause) -> bool:
    """Whether a relationship makes the unit of work load the children and change them itself."""
    columns = set(constraint.columns)
    return any(
        columns & set(each.remote_side)
        and not each.viewonly
        and not (each.passive_deletes if cause == "delete" else each.passive_updates)
        for each in mapper.relationships
    )
