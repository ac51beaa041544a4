"""What a transaction wrote, told to whoever reads for the same session, once it is committed and not before."""

from __future__ import annotations

from typing import Any, Protocol, overload
from uuid import UUID

from relay.outbox.sessions import AnyAsyncSession, AnySession


class Reader(Protocol):
    """A cache's session, or anything else that wants to know."""

    def wrote(self, entity: str, id: str | int | UUID, version: int, /) -> None:  # noqa: A002
        """This version is committed."""


@overload
def wrote_on_commit(database: AnySession | AnyAsyncSession, reader: Reader, /) -> None: ...
@overload
def wrote_on_commit(
    database: AnySession | AnyAsyncSession,
    reader: Reader,
    entity: str,
    id: str | int | UUID,
    version: int,
    /,
) -> None: ...
def wrote_on_commit(database: Any, reader: Reader, *entity_id_version: Any) -> None:
    """Calls `reader.wrote` when the transaction that this session is in has committed; never if it is rolled back.

        wrote_on_commit(database, reads, "user", 42, touch(database, "user", 42))
        wrote_on_commit(database, reads)   # from now on, whatever the session writes of tracked classes; one reader

    A savepoint that is rolled back takes its writes with it. Where an outer transaction that the session has merely
    joined decides, as in the fixtures of many test suites, `wrote` is called when the session says that it commits.

    Raises:
        EventError: RLY-111: not a session of the ORM. With a connection of a driver, call `wrote` yourself after the
            commit.
    """
    from relay.outbox.orm import commits

    commits.wrote_on_commit(database, reader, *entity_id_version)
