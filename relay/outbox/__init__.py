"""The write side: events that commit or roll back with your own change.

    with Session(engine) as session, session.begin():
        user.email = "new@example.org"
        touch(session, "user", user.id)

`touch` announces that an entity changed and gives back its new version; `emit` writes any event. Both run one
statement in the transaction of the session you pass in, and need nothing but that session's own library. `track` lets
the unit of work call `touch` for every change of a mapped class.

For caches: `get_versioned` and `current_version` read rows with their versions, `wrote_on_commit` tells a session what
it has written.
"""

from relay.outbox.changes import Change, touch_many
from relay.outbox.commits import wrote_on_commit
from relay.outbox.events import Event
from relay.outbox.loading import VersionedRow, current_version, get_versioned
from relay.outbox.tracked import track, untrack, version_of
from relay.outbox.writer import emit, emit_many, touch

__all__ = [
    "Change",
    "Event",
    "VersionedRow",
    "current_version",
    "emit",
    "emit_many",
    "get_versioned",
    "touch",
    "touch_many",
    "track",
    "untrack",
    "version_of",
    "wrote_on_commit",
]
