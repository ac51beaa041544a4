"""Where tracking meets SQLAlchemy: listeners of the whole process, since any session may change a tracked object."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, event, inspect
from sqlalchemy.orm import InstanceState, Mapper, Session

from relay.errors import EventError
from relay.outbox.orm import cascades, flushes, plans, statements, versions
from relay.outbox.orm.kinds import is_async, unscoped
from relay.outbox.orm.plans import Options

LISTENERS: tuple[tuple[Any, str, Any, dict[str, Any]], ...] = (
    (Mapper, "before_insert", flushes.before_insert, {"raw": True}),
    (Mapper, "before_update", flushes.before_update, {"raw": True}),
    (Mapper, "after_update", flushes.after_update, {"raw": True}),
    (Mapper, "before_delete", flushes.before_delete, {"raw": True}),
    (Mapper, "after_configured", plans.forget, {}),
    (Session, "after_flush", flushes.after_flush, {}),
    (Session, "after_soft_rollback", flushes.after_soft_rollback, {}),
    (Session, "do_orm_execute", statements.do_orm_execute, {}),
    (Engine, "before_cursor_execute", statements.before_cursor_execute, {}),
)


def track(classes: tuple[type[Any], ...], options: Options) -> None:
    """Tracks the classes; the first call starts to listen."""
    for target, name, listener, how in LISTENERS:
        if not event.contains(target, name, listener):
            event.listen(target, name, listener, **how)
    for cls in classes:
        plans.add(cls, options)
    cascades.forget()


def untrack(classes: tuple[type[Any], ...]) -> None:
    """Tracks them no longer; without any the listeners go as well, and cost nothing."""
    for cls in classes:
        plans.remove(cls)
    cascades.forget()
    if not plans.is_any_tracked():
        for target, name, listener, _ in LISTENERS:
            if event.contains(target, name, listener):
                event.remove(target, name, listener)


def version_of(session: Any, instance: object) -> int | None:
    """The version of a tracked object that this session wrote last.

    Raises:
        EventError: RLY-130: the class is not tracked, RLY-111: the session is none of the ORM.
    """
    state = inspect(instance, raiseerr=False)
    plan = plans.plan_of(state.mapper) if isinstance(state, InstanceState) else None
    if not isinstance(state, InstanceState) or plan is None:
        raise EventError(
            "RLY-130", f"the class {type(instance).__name__} is not tracked", "track it, or keep what touch returns"
        )
    key = state.key[1] if state.key is not None else plan.key_of(state)
    return versions.find(plain(session), (plan.entity, plans.entity_id(key)))


def plain(session: Any) -> Session:
    """The session behind a scoped or an asynchronous one."""
    session = unscoped(session)
    if is_async(session):
        session = session.sync_session
    if not isinstance(session, Session):
        raise EventError("RLY-111", f"a {type(session).__name__} is no session of the ORM", "pass a session of the ORM")
    return session
