"""Which kind of session it is, without SQLAlchemy's asyncio, which needs greenlet: who has not loaded it cannot pass one of
its sessions, and a synchronous service need not install it."""

from __future__ import annotations

import sys
from typing import Any

from sqlalchemy.orm import scoped_session


def unscoped(session: Any) -> Any:
    """The session behind a scoped one."""
    asynchronous = sys.modules.get("sqlalchemy.ext.asyncio")
    if isinstance(session, scoped_session) or (asynchronous and isinstance(session, asynchronous.async_scoped_session)):
        return session()
    return session


def is_async(session: Any) -> bool:
    """Whether it is an asynchronous session."""
    asynchronous = sys.modules.get("sqlalchemy.ext.asyncio")
    return bool(asynchronous) and isinstance(session, asynchronous.AsyncSession)  # type: ignore[union-attr]
