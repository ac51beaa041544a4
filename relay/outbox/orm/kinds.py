"""Which kind of session it is, without loading SQLAlchemy's asyncio.

That needs greenlet, which a synchronous service need not install; and who has not loaded it cannot pass its sessions.
"""

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
