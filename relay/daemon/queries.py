"""Every statement of the data path, in full, with what it locks and which index it needs. A test reads the plans.

All run inside the unit's transaction under the settings of BEGIN. No statistics are relied on: the table is empty one
minute and holds millions the next, so sequential scans are off and plans are generic.
"""

from __future__ import annotations

from typing import LiteralString

# What the plans rely on, for statements within a unit. With SET alone, for a whole session.
PLANS: LiteralString = """\
SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off;
SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL jit = off;
SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL plan_cache_mode = force_generic_plan;
SET LOCAL search_path = pg_catalog, pg_temp"""

# One message, no extra round trip, and no session state that a pooler in transaction mode would lose.
# synchronous_commit off: what a crash of the database can take away from us is a deletion, and that only repeats a
# suffix. The time-outs take the lanes of a frozen relay away, completed with the number at start-up: the first
# while the database waits for its next statement, the second while it sends rows that nobody takes. A frozen process
# acknowledges probes, so without the second such a backend would keep its lanes for as long as the process stands.
BEGIN: LiteralString = (
    """\
BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = off;
SET LOCAL idle_in_transaction_session_timeout = {takeover_ms}; SET LOCAL tcp_user_timeout = {takeover_ms};
"""
    + PLANS
)

# Who answers, and the last id drawn: any role may ask for that. After a crash the server's start is what it was, but
# not the time since when it counts its work: recovery begins to count again. A copy of a database has other numbers
# under the same names, and TRUNCATE ... RESTART IDENTITY gives the sequence another file. These are subqueries, so that
# a statement with many rows asks once.
STARTED: LiteralString = """\
(SELECT (extract(epoch FROM pg_postmaster_start_time()) || ' '
         || coalesce(extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time()), 0))::varchar)"""
ORIGIN: LiteralString = """\
(SELECT (d.oid || ' ' || 'relay.outbox'::regclass::oid || ' ' || pg_relation_filenode('relay.outbox_id_seq'))::varchar
 FROM pg_catalog.pg_database AS d WHERE d.datname = current_database())"""
LAST: LiteralString = "(SELECT CASE WHEN s.is_called THEN s.last_value ELSE 0 END FROM relay.outbox_id_seq AS s)"
SERVER: LiteralString = "SELECT " + STARTED + ", " + ORIGIN + ", " + LAST

# Locks up to `lanes_max` rows of relay.lane, skipping those of other relays. One probe of outbox_pkey per lane, from
# its floor to its end. The lanes come in rotation, so that none starves.
CLAIM: LiteralString = (
    """\
SELECT l.lane, l.parked, head.id, extract(epoch FROM clock_timestamp() - head.created_at)::float8,
       (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
"""  # noqa: S608
    + STARTED + ", " + ORIGIN + ", " + LAST
    + """
FROM relay.lane AS l
CROSS JOIN LATERAL (
    SELECT o.id, o.created_at FROM relay.outbox AS o
    WHERE o.lane = l.lane AND o.id >= (%(floors)s::bigint[])[l.lane + 1] AND o.id < (%(ends)s::bigint[])[l.lane + 1]
      AND o.topic <> ALL (%(paused)s::text[])
    ORDER BY o.id LIMIT 1
) AS head
ORDER BY (l.lane - %(start)s::int) & 16383
LIMIT %(lanes_max)s
FOR UPDATE OF l SKIP LOCKED"""
)  # fmt: skip

# Locks nothing. Must be a statement of its own: in one statement with CLAIM its snapshot would be older than the
# locks, and rows that another relay has just published and removed would be seen again. outbox_pkey, from the floor.
# Key, headers and payload of a row with more than 4 KiB of them stay behind, so that a unit's memory is bounded before
# its rows are known: only their size comes along.
READ: LiteralString = """\
SELECT o.lane, o.id, o.ctid, o.topic::varchar, CASE WHEN o.bytes <= 4096 THEN o.key END,
       CASE WHEN o.bytes <= 4096 THEN o.headers::varchar END, o.event_id::text,
       CASE WHEN o.bytes <= 4096 THEN o.payload END, CASE WHEN o.bytes > 4096 THEN o.bytes END
FROM unnest(%(lanes)s::smallint[], %(floors)s::bigint[], %(ends)s::bigint[]) AS l (lane, floor, ending)
CROSS JOIN LATERAL (
    SELECT p.lane, p.id, p.ctid, p.topic, p.key, p.headers, p.event_id, p.payload,
           coalesce(octet_length(p.key), 0) + octet_length(p.headers) + coalesce(octet_length(p.payload), 0) AS bytes
    FROM relay.outbox AS p
    WHERE p.lane = l.lane AND p.id >= l.floor AND p.id < l.ending AND p.topic <> ALL (%(paused)s::text[])
    ORDER BY p.id LIMIT %(rows_per_lane)s
) AS o"""

# Locks nothing. That it is answered proves that the unit's transaction, and every lane lock, is still there.
CONFIRM: LiteralString = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"

# What READ left behind, by the tuples it saw: the lane's lock keeps them where they are.
READ_LARGE: LiteralString = """\
SELECT o.id, o.key, o.headers::varchar, o.payload FROM relay.outbox AS o WHERE o.ctid = ANY (%(ctids)s::tid[])"""

# Removes exactly what was delivered, by tuple id: 0.8 microseconds a row against 2.5 by key and 1.7 by a join on both.
# Never by range: under READ COMMITTED this sees rows that became visible after READ. The tuples cannot have moved,
# since nobody else may touch the rows of a locked lane; if one was by hand, the sums differ and all is rolled back.
# The sum is numeric: as a bigint that of a whole unit overflows from ids of 10^15 on.
DELETE: LiteralString = """\
WITH gone AS (DELETE FROM relay.outbox WHERE ctid = ANY (%(ctids)s::tid[]) RETURNING id)
SELECT count(*), coalesce(sum(id), 0) FROM gone"""

# Locks nothing: the first row of each lane from its floor to its end, NULL where there is none. In autocommit, so an
# idle relay opens no transaction. A locked lane counts as well: its rows are work of its owner.
LOOK: LiteralString = (
    "SELECT "  # noqa: S608
    + STARTED + ", " + ORIGIN + ", " + LAST
    + """, ARRAY(
    SELECT (SELECT o.id FROM relay.outbox AS o
            WHERE o.lane = l.number - 1 AND o.id >= l.floor AND o.id < l.ending AND o.topic <> ALL (%(paused)s::text[])
            ORDER BY o.id LIMIT 1)
    FROM unnest(%(floors)s::bigint[], %(ends)s::bigint[]) WITH ORDINALITY AS l (floor, ending, number)
    ORDER BY l.number)"""
)  # fmt: skip

# Locks nothing. Some pages of the table, in order: the first row of each lane among them. See relay.daemon.sweep.
SWEEP: LiteralString = (
    "SELECT "  # noqa: S608
    + STARTED + ", " + ORIGIN + ", " + LAST
    + """, pg_relation_filenode('relay.outbox'::regclass)::bigint, s.lanes, s.firsts
FROM (SELECT array_agg(f.lane::int), array_agg(f.id)
      FROM (SELECT o.lane, min(o.id) FROM relay.outbox AS o
            WHERE o.ctid >= %(start)s::tid AND o.ctid < %(stop)s::tid AND o.topic <> ALL (%(paused)s::text[])
            GROUP BY o.lane) AS f (lane, id)) AS s (lanes, firsts)"""
)  # fmt: skip

# The table's file, and how many pages it has.
PAGES: LiteralString = """\
SELECT pg_relation_filenode(o.oid)::bigint, pg_relation_size(o.oid) / current_setting('block_size')::bigint
FROM (SELECT 'relay.outbox'::regclass::oid AS oid) AS o"""

# outbox_pkey. Rows in lanes that are none.
STRAYS: LiteralString = """\
SELECT EXISTS (SELECT FROM relay.outbox WHERE lane < 0)
       OR EXISTS (SELECT FROM relay.outbox WHERE lane >= %(lanes)s::int)"""

# Whether this schema has room for hints, and this role a right to them.
HINTS_ALLOWED: LiteralString = """\
SELECT coalesce(has_table_privilege(f.oid, 'SELECT') AND has_table_privilege(f.oid, 'INSERT')
                AND has_table_privilege(f.oid, 'UPDATE'), false)
FROM (SELECT to_regclass('relay.floor')::oid AS oid) AS f"""

# Hints of another origin, or about ids that are yet to be drawn, are not for this database.
HINTS: LiteralString = (
    "SELECT f.paused::varchar[], f.floors, f.proven FROM relay.floor AS f WHERE f.origin = "  # noqa: S608
    + ORIGIN + " AND f.proven <= " + LAST
)  # fmt: skip

# Says what was proven of the server that answers, or nothing if another one does.
SAVE_HINT: LiteralString = (
    """\
INSERT INTO relay.floor AS f (slot, paused, floors, proven, origin)
SELECT %(slot)s::smallint, %(paused)s::text[], %(floors)s::bigint[], %(proven)s::bigint, %(origin)s::text
WHERE """ + STARTED + " = %(started)s::varchar AND " + ORIGIN + " = %(origin)s::varchar AND " + LAST
    + """ >= %(last_id)s::bigint
ON CONFLICT (slot) DO UPDATE SET paused = excluded.paused, floors = excluded.floors, proven = excluded.proven,
    origin = excluded.origin, saved_at = clock_timestamp()"""
)  # fmt: skip

# parked_lane. Which keys of these lanes have parked events: blocked ones stop, overtaken ones are marked.
PARKED_KEYS: LiteralString = """\
SELECT id, topic, key, policy = 'block' AS blocks, overtaken_at IS NOT NULL AS overtaken FROM relay.parked
WHERE lane = ANY (%(lanes)s::smallint[]) AND NOT waits AND key IS NOT NULL"""

# parked_pkey.
MARK_OVERTAKEN: LiteralString = """\
UPDATE relay.parked SET overtaken_at = clock_timestamp() WHERE id = ANY (%(ids)s::bigint[]) AND overtaken_at IS NULL"""

# Moves rows from the outbox to the parked events, under their lanes' locks: each is in exactly one place at any time.
PARK: LiteralString = """\
SELECT relay.park(%(lanes)s::smallint[], %(ids)s::bigint[], %(policy)s, %(waits)s, %(code)s, %(reason)s,
                  %(attempts)s::int)"""

# Whether this schema and this role have relay.park: code may come before the schema, and both before the grants.
HAS_PARK: LiteralString = """\
SELECT coalesce(has_function_privilege(
    to_regprocedure('relay.park(smallint[],bigint[],text,boolean,text,text,integer)')::oid, 'EXECUTE'), false)"""

# PARK where relay.park is missing. An event that was parked before gets another id here.
PARK_BEFORE_3: LiteralString = """\
WITH moved AS (
    DELETE FROM relay.outbox AS o USING unnest(%(lanes)s::smallint[], %(ids)s::bigint[]) AS d (lane, id)
    WHERE o.lane = d.lane AND o.id = d.id
    RETURNING o.id, o.lane, o.event_id, o.created_at, o.topic, o.key, o.headers, o.payload
), parked AS (
    INSERT INTO relay.parked (id, lane, event_id, created_at, topic, key, headers, payload,
                              policy, waits, code, reason, attempts)
    SELECT id, lane, event_id, created_at, topic, key, headers, payload,
           %(policy)s, %(waits)s, %(code)s, %(reason)s, %(attempts)s FROM moved
    RETURNING lane
), counted AS (SELECT lane, count(*) AS n FROM parked GROUP BY lane)
UPDATE relay.lane AS l SET parked = l.parked + c.n FROM counted AS c WHERE l.lane = c.lane"""

# After SERVER, in a statement of its own: who may still write below the last id drawn.
WRITERS: LiteralString = """\
SELECT virtualtransaction || '/' || coalesce(pid, 0) FROM pg_catalog.pg_locks
WHERE locktype = 'relation' AND relation = 'relay.outbox'::regclass
  AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
  AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') AND granted"""

LANES: LiteralString = "SELECT count(*), max(lane) FROM relay.lane"

# What a relay cannot do without: all lanes that relay.lane_of names, and the sight of all rows. Under row_security =
# off a policy is an error for each table that a statement names, whatever it reads of it.
SIGHT: LiteralString = """\
SELECT array(SELECT n FROM generate_series(0, 63) AS n WHERE NOT EXISTS (SELECT FROM relay.lane AS l WHERE l.lane = n)),
       EXISTS (SELECT FROM relay.outbox WHERE false), EXISTS (SELECT FROM relay.parked WHERE false)"""

# What an operator asks for. Counts walk the whole backlog, so the daemon samples it seldom.
BACKLOG: LiteralString = """\
SELECT topic, count(*), extract(epoch FROM clock_timestamp() - min(created_at))::float8
FROM relay.outbox GROUP BY topic"""

# outbox_pkey, one probe per lane: the age of the oldest event of each lane's head.
OLDEST: LiteralString = """\
SELECT greatest(max(extract(epoch FROM clock_timestamp() - head.created_at)), 0)::float8
FROM relay.lane AS l CROSS JOIN LATERAL (
    SELECT o.created_at FROM relay.outbox AS o
    WHERE o.lane = l.lane AND o.id >= (%(floors)s::bigint[])[l.lane + 1] ORDER BY o.id LIMIT 1) AS head"""

PARKED_COUNT: LiteralString = "SELECT coalesce(sum(parked), 0)::bigint FROM relay.lane"

# By topic, from at most 100,000 rows: a count of everything would walk a backlog of millions at every sample.
BACKLOG_ESTIMATE: LiteralString = """\
SELECT topic, count(*) FROM (SELECT topic FROM relay.outbox LIMIT 100000) AS o GROUP BY topic"""

# The sleeping relay's half of the wake-up (relay.append_event has the other): whether it has the lock now, and whether
# another relay has it. A session's lock, on the watch's own connection. In the same statement the session is bounded:
# a process that stands still must lose the lock, which makes every commit notify, and the server is the only one that
# can take it away, between transactions or within one. TCP's probes do the same for a host that died.
SLEEP: LiteralString = """\
SELECT pg_try_advisory_lock(7236836), EXISTS (
    SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND classid = 0 AND objid = 7236836
    AND mode = 'ExclusiveLock' AND granted
    AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())),
    set_config('idle_session_timeout', %(takeover_ms)s::text, false),
    set_config('idle_in_transaction_session_timeout', %(takeover_ms)s::text, false),
    set_config('tcp_user_timeout', %(takeover_ms)s::text, false),
    set_config('tcp_keepalives_idle', %(probe_seconds)s::text, false),
    set_config('tcp_keepalives_interval', %(probe_seconds)s::text, false),
    set_config('tcp_keepalives_count', '2', false)"""
# Awake the watch may be busy elsewhere for longer, and holds nothing that anybody waits for.
AWAKE: LiteralString = """\
SELECT CASE WHEN %(holds_lock)s::boolean THEN pg_advisory_unlock(7236836) END,
       set_config('idle_session_timeout', '0', false), set_config('tcp_user_timeout', '0', false),
       set_config('idle_in_transaction_session_timeout', '0', false)"""
