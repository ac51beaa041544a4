"""The rights of five roles, as SQL to read first. What each must not be able to do is tested as well as what it must.

| role | may | may not |
|---|---|---|
| writer | call emit, emit_many, touch and touch_many | read or change any table of the schema, call anything else |
| relay | lock lanes, read and delete events, park them | insert or change events or parked ones, any DDL |
| monitor | read everything but keys, headers, payloads | change anything, read content |
| admin | read parked events and keys that wait, retry and drop | change what is in an event, publish one of its own |
| reader | read which version each entity has | change anything, read events |

Roles are not created here: where they come from differs from place to place. Rights that were granted to PUBLIC or to a
role by other means are not taken away, but for the one that an older version of this file granted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString

from psycopg.sql import SQL, Composable, Composed, Identifier

SCHEMA: LiteralString = "GRANT USAGE ON SCHEMA relay TO {role};\n"

# append_event and touch run as their owner: a writer needs no right on any table, and no event gets round the checks.
# The three forms of emit are shorthands for append_event, which a writer must therefore be allowed to call.
WRITER: LiteralString = """\
GRANT EXECUTE ON FUNCTION relay.append_event(text, text, bytea, jsonb, text, boolean),
    relay.emit(text, text, bytea, jsonb), relay.emit(text, text, text, jsonb),
    relay.emit(text, text, jsonb, jsonb), relay.emit_many(text[], text[], bytea[], jsonb[], boolean),
    relay.touch(text, text, text, text, jsonb, jsonb),
    relay.touch_many(text[], text[], text[], text[], jsonb[], jsonb),
    relay.touch_uncaptured(text[], text[], text[], text[], jsonb[], jsonb, text[], regclass[]) TO {role};
"""

# FOR UPDATE needs UPDATE of some column: that of the counter. Nothing may be inserted into the outbox or changed in it,
# and nothing inserted into the parked events: `relay parked retry --all` would publish it as an application's event.
# Before schema version 3 the role could; the right is taken away where it was granted.
RELAY: LiteralString = """\
GRANT SELECT ON relay.schema_version TO {role};
GRANT SELECT, UPDATE (parked) ON relay.lane TO {role};
GRANT SELECT, DELETE ON relay.outbox TO {role};
GRANT SELECT ON relay.outbox_id_seq TO {role};
GRANT SELECT, INSERT, UPDATE ON relay.floor TO {role};
GRANT SELECT, UPDATE (overtaken_at) ON relay.parked TO {role};
REVOKE INSERT ON relay.parked FROM {role};
GRANT EXECUTE ON FUNCTION relay.park(smallint[], bigint[], text, boolean, text, text, integer) TO {role};
"""

# The names of the relays and who holds which lane are shown to any role by pg_stat_activity and pg_locks.
MONITOR: LiteralString = """\
GRANT SELECT ON relay.schema_version, relay.lane TO {role};
GRANT SELECT (id, lane, event_id, created_at, topic) ON relay.outbox TO {role};
GRANT SELECT (id, lane, event_id, created_at, topic, parked_at, policy, waits, code, reason, attempts, overtaken_at)
    ON relay.parked TO {role};
GRANT SELECT ON relay.captures, relay.floor TO {role};
GRANT EXECUTE ON FUNCTION relay.capture_tree(regclass) TO {role};
"""

# Reads what is parked, content included (`relay parked show --reveal`), and changes it through one function only.
ADMIN: LiteralString = """\
GRANT SELECT ON relay.schema_version, relay.lane, relay.parked, relay.captures TO {role};
GRANT SELECT (id, lane, event_id, created_at, topic, key) ON relay.outbox TO {role};
GRANT EXECUTE ON FUNCTION relay.unpark(bigint, boolean), relay.capture_tree(regclass) TO {role};
"""

# Loaders of caches, which read an entity's version beside its row, and `relay cache verify`, which compares.
READER: LiteralString = """\
GRANT SELECT ON relay.schema_version, relay.entity_version TO {role};
"""

ROLES: dict[str, LiteralString] = {
    "writer": WRITER,
    "relay": RELAY,
    "monitor": MONITOR,
    "admin": ADMIN,
    "reader": READER,
}


def grants(roles: Sequence[tuple[str, str]]) -> str:
    """One transaction of plain SQL, valid without a connection.

    Args:
        roles: pairs of a part (a key of ROLES) and the name of a role that exists.
    """
    parts: list[Composable] = [SQL("BEGIN;\n")]
    for part, role in roles:
        parts += [
            _heading(part),
            SQL(SCHEMA).format(role=Identifier(role)),
            SQL(ROLES[part]).format(role=Identifier(role)),
        ]
    return Composed([*parts, SQL("COMMIT;\n")]).as_string(None)


def _heading(part: str) -> SQL:
    headings: dict[str, LiteralString] = {
        "writer": "\n-- Applications: write events, read nothing.\n",
        "relay": "\n-- relay run: publish and remove events, never change one.\n",
        "monitor": "\n-- relay status: see how much waits and since when, no content.\n",
        "admin": "\n-- relay parked: treat what Kafka refused.\n",
        "reader": "\n-- Caches and relay cache verify: see which version each entity has, no content.\n",
    }
    return SQL(headings[part])
