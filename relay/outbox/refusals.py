"""What the database says against an event, in our words, whichever driver carried it.

The SQL functions raise SQLSTATE `RL104` for RLY-104, with a message and a hint that hold nothing of the event. The
driver's own error is dropped, not chained: SQLAlchemy's carries the statement's parameters, and so the payload.
"""

from __future__ import annotations

from relay.errors import CODES, EventError, GrantError, SchemaError, words_of


def translated(error: Exception) -> Exception:
    """Our error where the database refused the event or lacks our functions; any other error comes back as it is.

    Deadlocks, serialization failures and lost connections stay the driver's: applications have retries for those.
    """
    raised = getattr(error, "orig", None) or error  # SQLAlchemy wraps the driver's error
    state = getattr(raised, "sqlstate", None) or getattr(raised, "pgcode", None) or ""
    code = f"RLY-{state[2:]}"
    if state.startswith("RL") and code in CODES:
        message, hint = words_of(raised)
        return EventError(code, message.removeprefix(f"{code}: ") or CODES[code], hint.rstrip("."))
    if state in ("3F000", "42883"):
        return SchemaError(
            "RLY-401", "the schema relay, or this function of it, is missing in this database", "run `relay db upgrade`"
        )
    if state == "42501":
        return GrantError(
            "RLY-501",
            "the database role of this session may not write events",
            "run the SQL that `relay db grants` prints",
        )
    return error
