"""What the database was made with and may have lost since: its encoding, and the sequence that numbers events.

`relay db check` looks at both as well: it runs after a restore or a switch to another server, before any relay does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import LiteralString

import psycopg

from relay.daemon.diagnosis.finding import Finding, failed, ok, unknown, warning
from relay.database import Connection

ENCODING: LiteralString = "SELECT pg_catalog.current_setting('server_encoding')"

HOW_IT_COUNTS: LiteralString = """\
SELECT seqcache, seqcycle, seqincrement FROM pg_catalog.pg_sequence WHERE seqrelid = 'relay.outbox_id_seq'::regclass"""

LAST: LiteralString = "SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM relay.outbox_id_seq"

# outbox_pkey from its end, once for each lane, and parked_pkey; both after the sequence was read, so that an event that
# is written in between is above.
LARGEST: LiteralString = """\
SELECT greatest(
    (SELECT max(found.id) FROM relay.lane AS l
     CROSS JOIN LATERAL (SELECT max(o.id) AS id FROM relay.outbox AS o WHERE o.lane = l.lane) AS found),
    (SELECT max(id) FROM relay.parked))"""


def encoding(connection: Connection) -> Iterable[Finding]:
    """Relays read in UTF-8, whatever the database keeps."""
    row = connection.execute(ENCODING).fetchone()
    name = row[0] if row else "?"
    if name == "UTF8":
        yield ok("encoding", "UTF8")
        return
    if name == "SQL_ASCII":
        text = "SQL_ASCII: the database takes any bytes for text; those that are not UTF-8 are refused in events"
    else:
        text = f"{name}: text is converted; characters that UTF-8 does not have are refused in events"
    fix = "move to a database that was created with ENCODING 'UTF8', unless all that you write is in UTF-8"
    yield warning("encoding", text, "RLY-815", fix)


def sequence(connection: Connection) -> Iterable[Finding]:
    """Relays take an id that is above all others for the newest: order hangs on ids that only grow."""
    row = connection.execute(HOW_IT_COUNTS).fetchone()
    if row is None:
        yield failed("sequence", "relay.outbox_id_seq is missing", "RLY-816", "restore the schema relay as it was")
        return
    cache, cycles, step = row
    wrong = [f"CACHE {cache}"] if cache != 1 else []
    wrong += ["CYCLE"] if cycles else []
    wrong += [f"INCREMENT {step}"] if step != 1 else []
    if wrong:
        text = f"relay.outbox_id_seq has {', '.join(wrong)}: later events may have smaller ids, and lose order"
        fix = "ALTER SEQUENCE relay.outbox_id_seq CACHE 1 NO CYCLE INCREMENT 1"
        yield failed("sequence", text, "RLY-816", fix)
        return
    last = connection.execute(LAST).fetchone()
    largest = connection.execute(LARGEST).fetchone()
    if last and largest and largest[0] is not None and largest[0] > last[0]:
        text = f"relay.outbox_id_seq is at {last[0]:,}, an event has {largest[0]:,}: new events would go first"
        statement = f"SELECT setval('relay.outbox_id_seq', {largest[0]})"
        fix = f"stop writers and relays, {statement} as its owner, start them again"
        yield failed("sequence", text, "RLY-816", fix)
    else:
        yield ok("sequence", "counts up, above all events that are there")


def foundations(connection: Connection) -> list[Finding]:
    """Both, each on its own: what this role may not see is unknown.

    Raises:
        psycopg.Error: the database does not answer.
    """
    found: list[Finding] = []
    for name, look in (("encoding", encoding), ("sequence", sequence)):
        try:
            with connection.transaction():
                found += look(connection)
        except psycopg.errors.InsufficientPrivilege:
            fix = "run it as the role of `relay run`, or as the owner"
            found.append(unknown(name, "this role may not see it", fix))
    return found
