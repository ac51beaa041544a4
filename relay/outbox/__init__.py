"""The write side: events that commit or roll back with your own change.

    with Session(engine) as session, session.begin():
        user.email = "new@example.org"
        touch(session, "user", user.id)

`touch` announces that an entity changed and gives back its new version; `emit` writes any event. Both run one
statement in the transaction of the session you pass in, and need nothing but that session's own library.
"""

from relay.outbox.events import Event
from relay.outbox.writer import emit, emit_many, touch

__all__ = ["Event", "emit", "emit_many", "touch"]
