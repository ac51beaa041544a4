-- Step 3: what can be written can be read, parked and retried in order, whatever the defaults of the database are.

-- By the hash of the key: a key may be longer than an index entry (2,704 bytes), and such an event must be parked, too.
DROP INDEX relay.parked_key;
CREATE INDEX parked_key ON relay.parked (topic, hashtextextended(key, 0), id);

-- One row is one event that went back to the outbox under a new id: `first_id` is the id that it was written with. It
-- says where the event belongs among those of its key, whatever clocks have said since, and it is the event's id again
-- if the event is parked again. A row whose event is no longer in the outbox means nothing; unpark and park remove it.
CREATE TABLE relay.returned (
    id       bigint PRIMARY KEY,
    lane     smallint NOT NULL,
    event_id uuid NOT NULL,
    first_id bigint NOT NULL
);

-- Removes some of the rows whose events were published. Rows are examined in the order of their ids, a hundred at a
-- time: one call for each of 100,000 events must not walk 100,000 rows. SKIP LOCKED: another operator may be at it. A
-- relay of schema 2 parks under the new id and leaves the row, which still says where the event belongs. A session
-- keeps its plans, and the tables may have been empty when it made them: hence the settings, here and below.
CREATE FUNCTION relay.forget_published() RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
    DELETE FROM relay.returned AS r USING (
        SELECT o.id
        FROM (SELECT b.id, b.lane FROM relay.returned AS b ORDER BY b.id LIMIT 100 FOR UPDATE SKIP LOCKED) AS o
        WHERE NOT EXISTS (SELECT FROM relay.outbox AS e WHERE e.lane = o.lane AND e.id = o.id)
          AND NOT EXISTS (SELECT FROM relay.parked AS p WHERE p.id = o.id)) AS gone
    WHERE r.id = gone.id
$$;

-- Moves events of the outbox to the parked events, under their lanes' locks: each is in exactly one place at any time.
-- For the daemon, whose role may insert neither here nor there: what is parked was written by an application.
--
-- An event that has been parked before gets the id that it had then. If an id is taken, because the sequence was set
-- back, the event is parked under the next one that is free.
CREATE FUNCTION relay.park(lanes smallint[], ids bigint[], policy text, waits boolean, code text, reason text,
                           attempts integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    moved bigint;
BEGIN
    WITH moved AS (
        DELETE FROM relay.outbox AS o USING unnest(lanes, ids) AS d (lane, id)
        WHERE o.lane = d.lane AND o.id = d.id
        RETURNING o.*
    ), known AS (
        DELETE FROM relay.returned AS r USING moved AS m WHERE r.id = m.id AND r.event_id = m.event_id
        RETURNING r.id, r.first_id
    ), wanted AS (
        SELECT m.*, w.parked_id,
               row_number() OVER (PARTITION BY w.parked_id ORDER BY m.lane) > 1
               OR EXISTS (SELECT FROM relay.parked AS p WHERE p.id = w.parked_id) AS is_taken
        FROM moved AS m LEFT JOIN known AS k ON k.id = m.id
        CROSS JOIN LATERAL (SELECT coalesce(k.first_id, m.id) AS parked_id) AS w
    ), parked AS (
        INSERT INTO relay.parked (id, lane, event_id, created_at, topic, key, headers, payload,
                                  policy, waits, code, reason, attempts)
        SELECT CASE WHEN w.is_taken
                    THEN greatest((SELECT max(p.id) FROM relay.parked AS p), (SELECT max(a.parked_id) FROM wanted AS a))
                         + row_number() OVER (PARTITION BY w.is_taken ORDER BY w.parked_id, w.lane)
                    ELSE w.parked_id END,
               w.lane, w.event_id, w.created_at, w.topic, w.key, w.headers, w.payload,
               park.policy, park.waits, park.code, park.reason, park.attempts
        FROM wanted AS w
        RETURNING lane
    ), counted AS (
        UPDATE relay.lane AS l SET parked = l.parked + c.n
        FROM (SELECT p.lane, count(*) AS n FROM parked AS p GROUP BY p.lane) AS c WHERE l.lane = c.lane
        RETURNING c.n
    )
    SELECT coalesce(sum(c.n), 0) INTO moved FROM counted AS c;
    PERFORM relay.forget_published();
    RETURN moved;
END $$;

-- A parked event goes back to the outbox, or away for good, under the locks of its key and lane. Returns how many
-- events of its key entered the outbox again, NULL if there is no such event. For operators, not for the daemon's role.
--
-- Each event that goes back draws a new id, since no relay looks below a floor that it has proven. It must stand before
-- the events of its key that were written after it, so those are moved behind it. The order is that of the ids which
-- the events were written with: their writers drew them under the lock of the key. Times of creation do not tell it: a
-- server's clock may be set back.
--
-- Waits half a second for a key, which is less than deadlock_timeout: a writer that emits and touches one key in one
-- transaction could otherwise meet us in a deadlock and be the one to die. Fails with 55P03 then; to be tried again.
--
-- Each statement has to see what was committed while the one before it waited. Only READ COMMITTED shows that.
CREATE OR REPLACE FUNCTION relay.unpark(parked_id bigint, drop_it boolean) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms'
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    event relay.parked;
    gone integer;
    moved integer;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' OR drop_it IS NULL THEN
        PERFORM relay.refuse_unpark(drop_it);
    END IF;
    SELECT p.* INTO event FROM relay.parked AS p WHERE p.id = parked_id;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    -- First the key, as writers do, so that no writer of this key has an id and no commit; then the lane, which waits
    -- for the unit of the relay that holds it, in a queue that the relay cannot overtake. Relays wait for no key.
    IF event.key IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(event.key, 7236837));
        IF NOT (pg_try_advisory_lock(7236838) AND pg_advisory_unlock(7236838)) THEN
            PERFORM relay.lock_by_row(hashtextextended(event.key, 7236837));
        END IF;
        PERFORM 1 FROM relay.entity_version AS v
        WHERE v.entity = split_part(event.key, ':', 1) AND v.id = substr(event.key, strpos(event.key, ':') + 1)
        FOR UPDATE;
    END IF;
    PERFORM set_config('lock_timeout', '30s', true);
    PERFORM 1 FROM relay.lane AS l WHERE l.lane = event.lane FOR UPDATE;
    -- With the event go those that waited for it, unless another one still blocks the key.
    WITH taken AS (
        DELETE FROM relay.parked AS p
        WHERE p.id = parked_id
           OR (p.waits AND p.topic = event.topic AND p.key = event.key
               AND hashtextextended(p.key, 0) = hashtextextended(event.key, 0)
               AND NOT EXISTS (SELECT FROM relay.parked AS q
                               WHERE NOT q.waits AND q.id <> parked_id AND q.policy = 'block'
                                 AND q.topic = event.topic AND q.key = event.key
                                 AND hashtextextended(q.key, 0) = hashtextextended(event.key, 0)))
        RETURNING p.*
    ), kept AS (
        SELECT t.* FROM taken AS t WHERE NOT (drop_it AND t.id = parked_id)
    ), later AS (
        DELETE FROM relay.outbox AS o
        WHERE o.lane = event.lane AND o.topic = event.topic AND o.key = event.key AND EXISTS (SELECT FROM kept)
        RETURNING o.*
    ), known AS (
        -- Also of events that a relay of schema 2 has parked under the id that they had in the outbox.
        DELETE FROM relay.returned AS r USING (SELECT l.id, l.event_id FROM later AS l
                                               UNION ALL SELECT t.id, t.event_id FROM taken AS t) AS e
        WHERE r.id = e.id AND r.event_id = e.event_id
        RETURNING r.id, r.first_id
    ), written AS (
        -- No join: its plan may be one for a handful of events, and a key may have 100,000.
        SELECT w.*
        FROM (SELECT e.is_event, coalesce(max(e.first_id) OVER (PARTITION BY e.id), e.id) AS first_id,
                     e.event_id, e.created_at, e.topic, e.key, e.headers, e.payload
              FROM (SELECT true AS is_event, NULL::bigint AS first_id, k.id, k.event_id, k.created_at,
                           k.topic, k.key, k.headers, k.payload FROM kept AS k
                    UNION ALL
                    SELECT true, NULL, l.id, l.event_id, l.created_at, l.topic, l.key, l.headers, l.payload
                    FROM later AS l
                    UNION ALL
                    SELECT false, n.first_id, n.id, NULL, NULL, NULL, NULL, NULL, NULL FROM known AS n) AS e) AS w
        WHERE w.is_event
    ), numbered AS MATERIALIZED (
        SELECT nextval('relay.outbox_id_seq') AS id, w.*
        FROM (SELECT * FROM written AS s ORDER BY s.first_id) AS w
    ), noted AS (
        INSERT INTO relay.returned AS r (id, lane, event_id, first_id)
        SELECT n.id, event.lane, n.event_id, n.first_id FROM numbered AS n
        ON CONFLICT ON CONSTRAINT returned_pkey
        DO UPDATE SET lane = excluded.lane, event_id = excluded.event_id, first_id = excluded.first_id
    ), back AS (
        INSERT INTO relay.outbox (id, lane, event_id, created_at, topic, key, headers, payload)
        OVERRIDING SYSTEM VALUE
        SELECT n.id, event.lane, n.event_id, n.created_at, n.topic, n.key, n.headers, n.payload FROM numbered AS n
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM taken), (SELECT count(*) FROM back) INTO gone, moved;
    IF gone = 0 THEN
        RETURN NULL;
    END IF;
    UPDATE relay.lane AS l SET parked = l.parked - gone WHERE l.lane = event.lane;
    PERFORM relay.forget_published();
    PERFORM relay.wake();
    RETURN moved;
END $$;

CREATE FUNCTION relay.refuse_unpark(drop_it boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF drop_it IS NULL THEN
        RAISE EXCEPTION 'RLY-607: relay.unpark was not told whether to drop the event'
            USING ERRCODE = 'RL607', HINT = 'Pass false to send it back to the outbox, true to drop it.';
    END IF;
    RAISE EXCEPTION 'RLY-607: relay.unpark cannot keep the order of the key in a transaction that is %',
        current_setting('transaction_isolation')
        USING ERRCODE = 'RL607', HINT = 'Begin the transaction with BEGIN ISOLATION LEVEL READ COMMITTED.';
END $$;

-- Where a relay's scans of the outbox may begin, as relays have proven it: a relay that starts would otherwise walk
-- everything that was published under an old snapshot, or that waits for a missing topic. Slot 0 is about all rows,
-- slot 1 about the rows of all topics but those in `paused`. Hints only: a relay believes them if `origin` names the
-- sequence that it draws from and `proven` is not above its last id. Without a row, or without the table, it proves
-- everything again.
CREATE TABLE relay.floor (
    slot     smallint PRIMARY KEY CHECK (slot IN (0, 1)),
    paused   text[] NOT NULL,
    floors   bigint[] NOT NULL,
    proven   bigint NOT NULL,
    origin   text NOT NULL,
    saved_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

REVOKE ALL ON FUNCTION relay.forget_published(), relay.refuse_unpark(boolean),
    relay.park(smallint[], bigint[], text, boolean, text, text, integer) FROM PUBLIC;

-- Whether UTF-8, in which relays read, has every character of a text. Asked only where the database's own encoding is
-- another one: an event that cannot be read would stop its lane for good.
CREATE FUNCTION relay.is_readable(value text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF value ~ E'^[\\x01-\\x7f]*$' THEN
        RETURN true;
    END IF;
    PERFORM convert_to(value, 'UTF8');
    RETURN true;
EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character OR undefined_function THEN
    RETURN false;
END $$;

-- Wakes a relay that sleeps. A transaction that has notified cannot be prepared, and whether a transaction will be
-- prepared cannot be known here. So where the server lets transactions be prepared, commits do not notify, unless the
-- setting `relay.notify` says otherwise: a relay that sleeps finds the event with its next look.
CREATE FUNCTION relay.wake() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (CASE lower(current_setting('relay.notify', true)) WHEN 'on' THEN true WHEN 'off' THEN false
             ELSE current_setting('max_prepared_transactions') = '0' END) THEN
        PERFORM pg_notify('relay_wake', '');
    END IF;
END $$;

-- As step 1 has it. A value that no relay could read is refused.
CREATE OR REPLACE FUNCTION relay.pack_headers(headers jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    name text;
    value jsonb;
    packed text := '';
    plain text;
BEGIN
    IF jsonb_typeof(headers) <> 'object' THEN
        RAISE EXCEPTION 'RLY-106: headers must be a JSON object of names and texts, not a JSON %', jsonb_typeof(headers)
            USING ERRCODE = 'RL106', HINT = 'Pass for example {"trace": "abc"}.';
    END IF;
    FOR name, value IN SELECT e.key, e.value FROM jsonb_each(headers) AS e LOOP
        IF name !~ '^[A-Za-z0-9_.-]+$' OR octet_length(name) > 128 THEN
            RAISE EXCEPTION 'RLY-106: invalid header name of % characters', length(name)
                USING ERRCODE = 'RL106', HINT = 'Use 1 to 128 of the characters A-Z a-z 0-9 _ . -';
        END IF;
        IF name IN ('event_id', 'entity', 'id', 'action', 'version', 'ts') THEN
            RAISE EXCEPTION 'RLY-106: the header "%" is set by Relay itself', name
                USING ERRCODE = 'RL106', HINT = 'Choose another header name.';
        END IF;
        IF jsonb_typeof(value) NOT IN ('string', 'number', 'boolean') THEN
            RAISE EXCEPTION 'RLY-107: the value of header "%" is a JSON %', name, jsonb_typeof(value)
                USING ERRCODE = 'RL107', HINT = 'A header value is a text.';
        END IF;
        plain := value #>> '{}';
        IF plain ~ E'[\\x01-\\x1f\\x7f]' THEN
            RAISE EXCEPTION 'RLY-107: the value of header "%" holds a control character', name
                USING ERRCODE = 'RL107', HINT = 'Remove line breaks and other control characters.';
        END IF;
        IF getdatabaseencoding() <> 'UTF8' AND NOT relay.is_readable(plain) THEN
            RAISE EXCEPTION 'RLY-107: the value of header "%" holds a character that UTF-8 does not have', name
                USING ERRCODE = 'RL107', HINT = 'Remove that character: relays read in UTF-8.';
        END IF;
        packed := packed || name || E'\x1f' || plain || E'\x1f';
    END LOOP;
    RETURN packed;
END $$;

-- Locks of keys that take no room in the server's table of locks: one row is one key that an open transaction has
-- locked. A transaction removes its rows as it commits; until it has ended they are in the way of whoever inserts the
-- same.
CREATE TABLE relay.key_lock (
    hash     bigint PRIMARY KEY,
    owner    xid8 NOT NULL,
    releases text CHECK (releases IN ('this', 'all'))
);
COMMENT ON COLUMN relay.key_lock.releases IS 'what is removed for this row at commit: itself, or all rows of its owner';

-- How keys are locked
--
-- Writers of one key wait for each other, and draw the ids of its events after that. An advisory lock of the key's hash
-- does it at the least cost, but it takes a slot of a table that all sessions of the server share, about 6,400 as
-- Postgres is installed. So a transaction that has locked 1,000 keys ESCALATES: it locks further keys by rows of
-- relay.key_lock. Such locks hold for one key each, as the others do: two imports of different keys do not meet, and no
-- lock is ever upgraded, so that escalating itself can end in no deadlock.
--
-- Two kinds of locks on one key must know each other. Whoever has escalated holds the lock 7236838, shared, until its
-- transaction ends. Every other writer, once it has its key's advisory lock, looks whether somebody holds 7236838, by
-- taking and releasing it; if so, it locks the key's row too. Writers that looked before 7236838 was taken have their
-- advisory locks by then: these are read from pg_locks, and for their keys the escalated transaction takes the advisory
-- lock as well. All take the advisory lock of a key first and its row second.
CREATE FUNCTION relay.escalate() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(7236838);
    PERFORM set_config('relay.key_locks', 'rows', true);
    PERFORM set_config('relay.keys_of_others', ',' || coalesce(string_agg(DISTINCT h.hash::text, ','), '') || ',', true)
    FROM (SELECT (l.classid::bigint << 32) | l.objid::bigint AS hash FROM pg_locks AS l
          WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.mode = 'ExclusiveLock'
            AND l.pid IS DISTINCT FROM pg_backend_pid()
            AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())) AS h;
    -- A row that stands for no key, to have those of this transaction removed. Should a key have this hash, it waits.
    INSERT INTO relay.key_lock AS k (hash, owner, releases)
    VALUES (pg_current_xact_id()::text::bigint, pg_current_xact_id(), 'all')
    ON CONFLICT ON CONSTRAINT key_lock_pkey DO UPDATE SET owner = excluded.owner, releases = 'all';
END $$;

-- Locks a key by its row: of a transaction that has escalated, or beside the advisory lock of one that has not, if
-- another has. Two who look for 7236838 in the same instant see each other; looked for again, that passes.
CREATE FUNCTION relay.lock_by_row(key_hash bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    has_escalated boolean := coalesce(current_setting('relay.key_locks', true) = 'rows', false);
BEGIN
    IF NOT has_escalated THEN
        FOR attempt IN 1 .. 5 LOOP
            IF pg_try_advisory_lock(7236838) AND pg_advisory_unlock(7236838) THEN
                RETURN;
            END IF;
        END LOOP;
    ELSIF strpos(current_setting('relay.keys_of_others', true), ',' || key_hash || ',') > 0 THEN
        PERFORM pg_advisory_xact_lock(key_hash);
    END IF;
    INSERT INTO relay.key_lock AS k (hash, owner, releases)
    SELECT key_hash, pg_current_xact_id(), CASE WHEN NOT has_escalated THEN 'this' END
    WHERE NOT EXISTS (SELECT FROM relay.key_lock AS mine
                      WHERE mine.hash = key_hash AND mine.owner = pg_current_xact_id())
    ON CONFLICT ON CONSTRAINT key_lock_pkey DO UPDATE SET owner = excluded.owner, releases = excluded.releases;
END $$;

-- At commit, or when the transaction is prepared. A row that is inserted and deleted by an open transaction still makes
-- others wait for its end.
CREATE FUNCTION relay.release_keys() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NEW.releases = 'this' THEN
        DELETE FROM relay.key_lock AS k WHERE k.hash = NEW.hash AND k.owner = NEW.owner;
    ELSE
        DELETE FROM relay.key_lock AS k WHERE k.owner = NEW.owner;
    END IF;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER release_keys AFTER INSERT OR UPDATE ON relay.key_lock
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.releases IS NOT NULL) EXECUTE FUNCTION relay.release_keys();

-- Escalates a transaction with more than 1,000 locked keys: `taken` since the last count and `coming`. From the first
-- count of a long transaction on the number is kept in a setting of the transaction, which costs too much for a short
-- one. It counts events, so beyond the limit the locks are counted again; at most once in a hundred events.
CREATE OR REPLACE FUNCTION relay.count_locks(taken integer, coming integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    said text := nullif(current_setting('relay.key_locks', true), '');
    locks integer;
BEGIN
    IF said = 'rows' THEN
        RETURN;
    END IF;
    locks := said::integer + taken + coming;
    IF (locks <= 1000) IS NOT TRUE THEN
        -- objsubid 1 is a lock by one bigint, as ours are. Those of the application take room all the same.
        SELECT count(*) + coming INTO locks FROM pg_locks AS l
        WHERE l.locktype = 'advisory' AND l.pid = pg_backend_pid() AND l.objsubid = 1 AND l.mode = 'ExclusiveLock';
    END IF;
    IF locks > 1000 THEN
        PERFORM relay.escalate();
    ELSIF said IS NOT NULL OR taken > 0 THEN
        PERFORM set_config('relay.key_locks', least(locks, 900)::text, true);
    END IF;
END $$;

-- As step 1 has it; many keys are locked by rows.
CREATE OR REPLACE FUNCTION relay.emit_many(topics text[], keys text[], payloads bytea[], headers jsonb[],
                                           lock_keys boolean DEFAULT true) RETURNS uuid[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    hashes bigint[];
    one bigint;
    appended uuid[];
BEGIN
    IF lock_keys IS NOT FALSE THEN
        SELECT array_agg(hashtextextended(d.k, 7236837) ORDER BY d.k COLLATE "C") INTO hashes
        FROM (SELECT DISTINCT u.k FROM unnest(keys) AS u (k) WHERE u.k IS NOT NULL) AS d;
        -- Counted before they are taken: it is too late once the room is used up.
        PERFORM relay.count_locks(0, coalesce(cardinality(hashes), 0));
        IF (current_setting('relay.key_locks', true) = 'rows') IS NOT TRUE THEN
            FOREACH one IN ARRAY coalesce(hashes, '{}') LOOP
                PERFORM pg_advisory_xact_lock(one);
            END LOOP;
        END IF;
        IF current_setting('relay.key_locks', true) = 'rows'
           OR NOT (pg_try_advisory_lock(7236838) AND pg_advisory_unlock(7236838)) THEN
            FOREACH one IN ARRAY coalesce(hashes, '{}') LOOP
                PERFORM relay.lock_by_row(one);
            END LOOP;
        END IF;
    END IF;
    SELECT array_agg(relay.append_event(e.topic, e.key, e.payload, e.header, NULL, false) ORDER BY e.position)
    INTO appended
    FROM (SELECT * FROM unnest(topics, keys, payloads, headers)
          WITH ORDINALITY AS u (topic, key, payload, header, position) ORDER BY u.position) AS e;
    RETURN appended;
END $$;

-- As step 1 has it, with the locks of relay.escalate. The expressions are as few as they were.
CREATE OR REPLACE FUNCTION relay.append_event(topic text, key text, payload bytea, headers jsonb, kind text,
                                              lock_key boolean) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    appended uuid;
    bytes integer;
    commands bigint;
    relays_are_awake boolean;
BEGIN
    -- The length apart from the pattern: a bounded repetition in a pattern costs 9 microseconds, this a tenth of one.
    IF (topic ~ '^[a-zA-Z0-9._-]+$' AND octet_length(topic) <= 249 AND topic NOT IN ('.', '..')
        AND (getdatabaseencoding() = 'UTF8' OR relay.is_readable(key))) IS NOT TRUE THEN
        PERFORM relay.refuse_topic(topic), relay.refuse_key();
    END IF;
    -- In this order: whoever has escalated takes no advisory lock here; others take it, and only then look for 7236838.
    -- That the lock's function returns NULL is never true: it is the cheapest way to call one for its effect.
    IF lock_key IS NOT FALSE AND key IS NOT NULL
       AND (current_setting('relay.key_locks', true) = 'rows'
            OR pg_advisory_xact_lock(hashtextextended(key, 7236837)) IS NULL
            OR NOT (pg_try_advisory_lock(7236838) AND pg_advisory_unlock(7236838))) THEN
        PERFORM relay.lock_by_row(hashtextextended(key, 7236837));
    END IF;
    -- Relays that are awake hold no lock, so the last expression is true, costs a microsecond and says nothing. A relay
    -- that sleeps holds it exclusively: only then does a commit pay for a notification. Kept until commit, the shared
    -- lock keeps a relay from falling asleep over an event that it cannot see yet.
    INSERT INTO relay.outbox AS o (lane, topic, key, payload, headers)
    VALUES (relay.lane_of(key), topic, key, payload,
            CASE WHEN headers = '{}' THEN '' ELSE relay.pack_headers(headers) END
            || CASE WHEN payload IS NULL OR headers ? 'content-type' THEN ''
                    WHEN kind = 'bytes' THEN E'content-type\x1fapplication/octet-stream\x1f'
                    WHEN kind = 'text' THEN E'content-type\x1ftext/plain; charset=utf-8\x1f'
                    WHEN kind = 'json' THEN E'content-type\x1fapplication/json\x1f'
                    ELSE '' END)
    RETURNING o.event_id,
              coalesce(octet_length(o.payload), 0) + coalesce(octet_length(o.key), 0) + octet_length(o.headers),
              o.cmin::text::bigint, pg_try_advisory_xact_lock_shared(7236836)
    INTO appended, bytes, commands, relays_are_awake;
    IF bytes > relay.event_bytes_max() THEN
        PERFORM relay.refuse_size(bytes);
    END IF;
    -- Each lock takes a slot of a table that all sessions of the server share (about 6,400 by default). Fewer commands
    -- than that in the transaction mean fewer locks, so most transactions need not count.
    IF commands >= 1000 AND lock_key IS NOT FALSE AND key IS NOT NULL THEN
        PERFORM relay.count_locks(1, 0);
    END IF;
    IF NOT relays_are_awake THEN
        PERFORM relay.wake();
    END IF;
    RETURN appended;
END $$;

-- Returns if the topic's name is valid.
CREATE OR REPLACE FUNCTION relay.refuse_topic(topic text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF (topic ~ '^[a-zA-Z0-9._-]+$' AND octet_length(topic) <= 249 AND topic NOT IN ('.', '..')) IS NOT TRUE THEN
        RAISE EXCEPTION 'RLY-101: invalid topic name of % characters', coalesce(length(topic), 0)
            USING ERRCODE = 'RL101', HINT = 'A topic name has 1 to 249 of the characters A-Z a-z 0-9 . _ -';
    END IF;
END $$;

CREATE FUNCTION relay.refuse_key() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'RLY-109: the key holds a character that UTF-8 does not have'
        USING ERRCODE = 'RL109', HINT = 'Remove that character: relays read in UTF-8.';
END $$;

CREATE OR REPLACE FUNCTION relay.refuse_entity(entity text, id text, action text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF entity IS NULL OR entity !~ '^[A-Za-z0-9_.-]+$' OR octet_length(entity) > 128 THEN
        RAISE EXCEPTION 'RLY-102: invalid entity name of % characters', coalesce(length(entity), 0)
            USING ERRCODE = 'RL102', HINT = 'An entity name has 1 to 128 of the characters A-Z a-z 0-9 _ . -';
    END IF;
    IF id IS NULL OR id = '' OR octet_length(id) > 1024 OR id ~ E'[\\x01-\\x1f\\x7f]' THEN
        RAISE EXCEPTION 'RLY-103: invalid entity id of % bytes', coalesce(octet_length(id), 0)
            USING ERRCODE = 'RL103', HINT = 'An entity id has 1 to 1024 bytes and no control characters.';
    END IF;
    IF NOT relay.is_readable(id) THEN
        RAISE EXCEPTION 'RLY-103: the entity id holds a character that UTF-8 does not have'
            USING ERRCODE = 'RL103', HINT = 'Remove that character: relays read in UTF-8.';
    END IF;
    RAISE EXCEPTION 'RLY-105: invalid action of % characters', coalesce(length(action), 0)
        USING ERRCODE = 'RL105', HINT = 'An action has 1 to 64 of the characters A-Z a-z 0-9 _ . -';
END $$;

-- As step 1 has it, and an id that no relay could read is refused.
CREATE OR REPLACE FUNCTION relay.touch(entity text, id text, action text DEFAULT 'updated', topic text DEFAULT NULL,
                                       payload jsonb DEFAULT NULL, headers jsonb DEFAULT '{}') RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    raised bigint;
    ts text;
    bytes integer;
    relays_are_awake boolean;
BEGIN
    IF (entity ~ '^[A-Za-z0-9_.-]+$' AND octet_length(entity) <= 128
        AND id <> '' AND octet_length(id) <= 1024 AND id !~ E'[\\x01-\\x1f\\x7f]'
        AND action ~ '^[A-Za-z0-9_.-]+$' AND octet_length(action) <= 64
        AND (getdatabaseencoding() = 'UTF8' OR relay.is_readable(id))) IS NOT TRUE THEN
        PERFORM relay.refuse_entity(entity, id, action);
    END IF;
    IF topic IS NULL THEN
        topic := 'relay.changes';
    ELSIF topic !~ '^[a-zA-Z0-9._-]+$' OR octet_length(topic) > 249 OR topic IN ('.', '..') THEN
        PERFORM relay.refuse_topic(topic);
    END IF;
    INSERT INTO relay.entity_version AS v (entity, id, version) VALUES (entity, id, 1)
    ON CONFLICT ON CONSTRAINT entity_version_pkey DO UPDATE SET version = v.version + 1
    RETURNING v.version, to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
    INTO raised, ts;
    -- As in append_event, with the entity's own headers.
    INSERT INTO relay.outbox AS o (lane, topic, key, payload, headers)
    VALUES (relay.lane_of(entity || ':' || id), topic, entity || ':' || id,
        convert_to('{"entity":"' || entity || '","id":' || to_json(id)::text || ',"action":"' || action
            || '","version":' || raised || ',"ts":"' || ts || '"'
            || CASE WHEN payload IS NULL THEN '}' ELSE ',"payload":' || payload::text || '}' END, 'UTF8'),
        E'entity\x1f' || entity || E'\x1fid\x1f' || id || E'\x1faction\x1f' || action
            || E'\x1fversion\x1f' || raised || E'\x1fts\x1f' || ts || E'\x1f'
            || CASE WHEN headers = '{}' THEN '' ELSE relay.pack_headers(headers) END
            || CASE WHEN headers ? 'content-type' THEN '' ELSE E'content-type\x1fapplication/json\x1f' END)
    RETURNING octet_length(o.payload) + octet_length(o.key) + octet_length(o.headers),
              pg_try_advisory_xact_lock_shared(7236836)
    INTO bytes, relays_are_awake;
    IF bytes > relay.event_bytes_max() THEN
        PERFORM relay.refuse_size(bytes);
    END IF;
    IF NOT relays_are_awake THEN
        PERFORM relay.wake();
    END IF;
    RETURN raised;
END $$;

-- As step 2 has it, and ids that no relay could read are refused.
CREATE OR REPLACE FUNCTION relay.check_changes(entities text[], ids text[], actions text[], topics text[],
                                               payloads jsonb[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    bad record;
BEGIN
    IF cardinality(entities) <> cardinality(ids) OR cardinality(actions) <> cardinality(ids)
       OR greatest(cardinality(topics), cardinality(payloads)) > cardinality(ids)
       OR array_to_string(ids, '') ~ E'[\\x01-\\x1f\\x7f]'
       OR array_to_string(entities, '') !~ '^[A-Za-z0-9_.-]*$' OR array_to_string(actions, '') !~ '^[A-Za-z0-9_.-]*$'
       OR (getdatabaseencoding() <> 'UTF8' AND NOT relay.is_readable(array_to_string(ids, ' ')))
       OR EXISTS (SELECT FROM unnest(entities, ids, actions) AS u (entity, id, action)
                  WHERE (octet_length(u.entity) BETWEEN 1 AND 128 AND octet_length(u.id) BETWEEN 1 AND 1024
                         AND octet_length(u.action) BETWEEN 1 AND 64) IS NOT TRUE) THEN
        SELECT u.entity, u.id, u.action INTO bad FROM unnest(entities, ids, actions) AS u (entity, id, action)
        WHERE (u.entity ~ '^[A-Za-z0-9_.-]+$' AND octet_length(u.entity) <= 128
               AND u.id <> '' AND octet_length(u.id) <= 1024 AND u.id !~ E'[\\x01-\\x1f\\x7f]'
               AND u.action ~ '^[A-Za-z0-9_.-]+$' AND octet_length(u.action) <= 64
               AND relay.is_readable(u.id)) IS NOT TRUE
        LIMIT 1;
        PERFORM relay.refuse_entity(bad.entity, bad.id, bad.action);
    END IF;
    SELECT d.topic INTO bad FROM (SELECT DISTINCT t FROM unnest(topics) AS t) AS d (topic)
    WHERE d.topic !~ '^[a-zA-Z0-9._-]+$' OR octet_length(d.topic) > 249 OR d.topic IN ('.', '..')
    LIMIT 1;
    IF FOUND THEN
        PERFORM relay.refuse_topic(bad.topic);
    END IF;
END $$;

-- As step 2 has it. A trigger that was removed after the transaction's snapshot was taken writes no event, so this
-- does.
CREATE OR REPLACE FUNCTION relay.touch_uncaptured(entities text[], ids text[], actions text[], topics text[],
                                                  payloads jsonb[], headers jsonb, owners text[],
                                                  tables regclass[]) RETURNS bigint[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_nestloop = off AS $$
#variable_conflict use_column
DECLARE
    captured text[];
    versions bigint[] := '{}';
    part record;
    wanted text[];
    found_ids text[];
    found_versions bigint[];
BEGIN
    -- 28: one trigger or several, for insert, delete and update together, which write events of the same entity: under
    -- another name nobody who waits for this one would hear of it. Where an entity has several tables, by joined
    -- inheritance, all of them: an event twice is better than none.
    SELECT array_agg(c.entity) INTO captured
    FROM (SELECT o.entity FROM unnest(owners, tables) AS o (entity, relation) GROUP BY o.entity
          HAVING bool_and(coalesce((
              SELECT bit_or(t.tgtype) & 28 = 28 FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
              WHERE t.tgrelid = o.relation AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')
                -- A snapshot of REPEATABLE READ may be older than the end of a capture; pg_get_triggerdef looks at what
                -- is there.
                AND (current_setting('transaction_isolation') = 'read committed'
                     OR pg_get_triggerdef(t.oid) IS NOT NULL)
                AND p.pronamespace = 'relay'::regnamespace
                -- As relay.captures reads it.
                AND CASE WHEN t.tgnargs = 1 THEN convert_from(substr(t.tgargs, 1, octet_length(t.tgargs) - 1),
                                                              getdatabaseencoding())::jsonb ->> 'entity' END = o.entity
             ), false))) AS c;
    IF captured IS NOT NULL THEN
        SELECT relay.touch_many(array_agg(u.entity ORDER BY position), array_agg(u.id ORDER BY position),
                                array_agg(u.action ORDER BY position), array_agg(u.topic ORDER BY position),
                                array_agg(u.payload ORDER BY position), touch_uncaptured.headers)
        INTO versions
        FROM unnest(entities, ids, actions, topics, payloads)
             WITH ORDINALITY AS u (entity, id, action, topic, payload, position)
        WHERE u.entity <> ALL (captured);
        RETURN (SELECT array_agg(CASE WHEN u.ours THEN versions[u.nth] END ORDER BY u.position)
                FROM (SELECT position, entity <> ALL (captured) AS ours,
                             count(*) FILTER (WHERE entity <> ALL (captured)) OVER (ORDER BY position) AS nth
                      FROM unnest(entities) WITH ORDINALITY AS e (entity, position)) AS u);
    END IF;
    PERFORM relay.check_changes(entities, ids, actions, topics, payloads);
    FOR part IN SELECT e.entity, min(e.position) AS low, max(e.position) AS high
                FROM unnest(entities) WITH ORDINALITY AS e (entity, position)
                GROUP BY e.entity ORDER BY e.entity COLLATE "C" LOOP
        wanted := ids[part.low:part.high];
        WITH raised AS (
            UPDATE relay.entity_version AS v SET version = v.version + 1
            WHERE v.entity = part.entity AND v.id = ANY (ARRAY(SELECT unnest(wanted)))
            RETURNING v.id, v.version
        )
        SELECT array_agg(r.id), array_agg(r.version) INTO found_ids, found_versions FROM raised AS r;
        IF found_ids = wanted THEN
            versions := versions || found_versions;
        ELSE
            -- Some are new, or the index has another order.
            WITH added AS (
                INSERT INTO relay.entity_version AS v (entity, id, version)
                SELECT part.entity, n.id, 1 FROM (SELECT unnest(wanted) AS id EXCEPT ALL SELECT unnest(found_ids)) AS n
                ORDER BY n.id COLLATE "C"
                ON CONFLICT ON CONSTRAINT entity_version_pkey DO UPDATE SET version = v.version + 1
                RETURNING v.id, v.version
            ), raised AS (
                SELECT f.id, f.version FROM unnest(found_ids, found_versions) AS f (id, version)
                UNION ALL SELECT a.id, a.version FROM added AS a
            )
            SELECT versions || array_agg(r.version ORDER BY w.position) INTO versions
            FROM unnest(wanted) WITH ORDINALITY AS w (id, position) JOIN raised AS r ON r.id = w.id;
        END IF;
    END LOOP;
    PERFORM relay.append_changes(entities, ids, actions, topics, payloads, headers, versions, clock_timestamp());
    RETURN versions;
END $$;

-- As step 2 has it, but for relay.wake.
CREATE OR REPLACE FUNCTION relay.append_changes(entities text[], ids text[], actions text[], topics text[],
                                                payloads jsonb[], headers jsonb, versions bigint[],
                                                locked_at timestamptz) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    ts text := to_char(locked_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
    packed text := E'\x1fts\x1f' || ts || E'\x1f'
                   || CASE WHEN headers = '{}' THEN '' ELSE relay.pack_headers(headers) END
                   || CASE WHEN headers ? 'content-type' THEN '' ELSE E'content-type\x1fapplication/json\x1f' END;
    bytes integer;
BEGIN
    WITH written AS (
        INSERT INTO relay.outbox AS o (lane, created_at, topic, key, payload, headers)
        SELECT relay.lane_of(u.entity || ':' || u.id), locked_at,
            coalesce(u.topic, 'relay.changes'), u.entity || ':' || u.id,
            convert_to('{"entity":"' || u.entity || '","id":' || to_json(u.id)::text || ',"action":"' || u.action
                || '","version":' || u.version || ',"ts":"' || ts || '"'
                || CASE WHEN u.payload IS NULL THEN '}' ELSE ',"payload":' || u.payload::text || '}' END, 'UTF8'),
            E'entity\x1f' || u.entity || E'\x1fid\x1f' || u.id || E'\x1faction\x1f' || u.action
                || E'\x1fversion\x1f' || u.version || packed
        FROM unnest(entities, ids, actions, topics, payloads, versions)
             AS u (entity, id, action, topic, payload, version)
        RETURNING octet_length(o.payload) + octet_length(o.key) + octet_length(o.headers) AS bytes
    )
    SELECT max(w.bytes) INTO bytes FROM written AS w;
    IF bytes > relay.event_bytes_max() THEN
        PERFORM relay.refuse_size(bytes);
    END IF;
    -- As in append_event, once for all.
    IF bytes IS NOT NULL AND NOT pg_try_advisory_xact_lock_shared(7236836) THEN
        PERFORM relay.wake();
    END IF;
END $$;

-- As step 2 has it, but for relay.wake.
CREATE OR REPLACE FUNCTION relay.touch_set(entity text, ids text[], action text, topic text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_variable
DECLARE
    found_ids text[];
    versions bigint[];
    added record;
    ts text;
    keyed text := entity || ':';
    opening text := '{"entity":"' || entity || '","id":';
    middle text := ',"action":"' || action || '","version":';
    ending text;
    headers text := E'entity\x1f' || entity || E'\x1fid\x1f';
    more_headers text := E'\x1faction\x1f' || action || E'\x1fversion\x1f';
    last_headers text;
BEGIN
    IF ids IS NULL THEN
        RETURN;
    END IF;
    WITH raised AS (
        UPDATE relay.entity_version AS v SET version = v.version + 1
        WHERE v.entity = entity AND v.id = ANY (ARRAY(SELECT unnest(ids)))
        RETURNING v.id, v.version
    )
    SELECT array_agg(r.id), array_agg(r.version) INTO found_ids, versions FROM raised AS r;
    IF cardinality(found_ids) = cardinality(ids) IS NOT TRUE THEN
        WITH added AS (
            INSERT INTO relay.entity_version AS v (entity, id, version)
            SELECT entity, n.id, 1 FROM (SELECT unnest(ids) AS id EXCEPT SELECT unnest(found_ids)) AS n
            ORDER BY n.id COLLATE "C"
            ON CONFLICT ON CONSTRAINT entity_version_pkey DO UPDATE SET version = v.version + 1
            RETURNING v.id, v.version
        )
        SELECT array_agg(a.id) AS ids, array_agg(a.version) AS versions INTO added FROM added AS a;
        found_ids := found_ids || added.ids;
        versions := versions || added.versions;
    END IF;
    ts := to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
    ending := ',"ts":"' || ts || '"}';
    last_headers := E'\x1fts\x1f' || ts || E'\x1fcontent-type\x1fapplication/json\x1f';
    INSERT INTO relay.outbox (lane, topic, key, payload, headers)
    SELECT relay.lane_of(keyed || c.id), topic, keyed || c.id,
           convert_to(opening || to_json(c.id)::text || middle || c.version || ending, 'UTF8'),
           headers || c.id || more_headers || c.version || last_headers
    FROM unnest(found_ids, versions) AS c (id, version);
    IF FOUND AND NOT pg_try_advisory_xact_lock_shared(7236836) THEN
        PERFORM relay.wake();
    END IF;
END $$;

-- As step 2 has it, but for relay.wake.
CREATE OR REPLACE FUNCTION relay.capture_statement(entity text, topic text, texts boolean, action text, rows text)
RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format($f$    WITH raised AS (
        INSERT INTO relay.entity_version AS v (entity, id, version)
        %1$s
        ON CONFLICT ON CONSTRAINT entity_version_pkey DO UPDATE SET version = v.version + 1
        RETURNING v.id, v.version,
            (SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')) AS ts
    )
    INSERT INTO relay.outbox (lane, topic, key, payload, headers)
    SELECT relay.lane_of('%3$s:' || r.id), '%2$s', '%3$s:' || r.id,
        convert_to('{"entity":"%3$s","id":%4$s,"action":"%5$s","version":' || r.version
            || ',"ts":"' || r.ts || '"}', 'UTF8'),
        E'entity\x1f%3$s\x1fid\x1f' || r.id || E'\x1faction\x1f%5$s\x1fversion\x1f' || r.version
            || E'\x1fts\x1f' || r.ts || E'\x1fcontent-type\x1fapplication/json\x1f'
    FROM raised AS r;
    IF FOUND AND NOT pg_try_advisory_xact_lock_shared(7236836) THEN
        PERFORM relay.wake();
    END IF;
$f$, rows, topic, entity,
     -- Of what has only digits, letters and dashes JSON needs no escapes.
     CASE WHEN texts THEN $f$' || to_json(r.id)::text || '$f$ ELSE $f$"' || r.id || '"$f$ END, action)
$$;

-- As step 2 has it, and an id that no relay could read is refused.
CREATE OR REPLACE FUNCTION relay.checked_id(id text) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF id = '' OR octet_length(id) > 1024 OR id ~ E'[\\x01-\\x1f\\x7f]'
       OR (getdatabaseencoding() <> 'UTF8' AND NOT relay.is_readable(id)) THEN
        PERFORM relay.refuse_entity('-', id, 'updated');
    END IF;
    RETURN id;
END $$;

-- The columns of a key whose types an application may have made, as enums. Their owner may define casts, which an
-- explicit cast to text runs, and a comparison may. The triggers of capture, which run as the owner of this schema,
-- must not: they take what the type itself writes, by format().
CREATE FUNCTION relay.capture_foreign(relation regclass, key text[]) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(array_agg(a.attname::text), '{}')
    FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid LEFT JOIN pg_type AS b ON b.oid = t.typbasetype
    WHERE a.attrelid = relation AND a.attnum > 0 AND a.attname = ANY (key)
      AND coalesce(b.typnamespace, t.typnamespace) <> 'pg_catalog'::regnamespace
$$;

-- The text of a row's id; of a row that is not there, NULL, which format() would make an empty text.
DROP FUNCTION relay.capture_id(text, text[], boolean);
CREATE FUNCTION relay.capture_id(alias text, key text[], texts boolean, foreign_columns text[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN texts THEN format('relay.checked_id(%s)', i.id) ELSE i.id END
    FROM (SELECT string_agg(format(CASE WHEN texts AND cardinality(key) > 1
                                        THEN $f$replace(replace(%s, E'\\', E'\\\\'), ':', E'\\:')$f$ ELSE '%s' END,
                                   format(CASE WHEN k.name = ANY (foreign_columns)
                                               THEN $f$CASE WHEN %1$s.%2$I IS NOT NULL
                                                            THEN format('%%s', %1$s.%2$I) END$f$
                                               ELSE '%1$s.%2$I::text' END, alias, k.name)),
                            $f$ || ':' || $f$ ORDER BY k.n)
          FROM unnest(key) WITH ORDINALITY AS k (name, n)) AS i (id)
$$;

-- As step 2 has it; `foreign_columns` are those of relay.capture_foreign.
DROP FUNCTION relay.capture_body(text, text, text[], boolean, boolean, text[], text);
CREATE FUNCTION relay.capture_body(kind text, entity text, key text[], texts boolean, is_unique boolean, columns text[],
                                   topic text, foreign_columns text[]) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    same_key text := (SELECT string_agg(format(CASE WHEN k = ANY (foreign_columns)
                                                    THEN $f$format('%%s', n.%1$I) = format('%%s', o.%1$I)$f$
                                                    ELSE 'n.%1$I = o.%1$I' END, k), ' AND ')
                      FROM unnest(key) AS k);
    is_new text := format('o.%I IS NULL', key[1]);
    is_gone text := format('n.%I IS NULL', key[1]);
    differs text := CASE WHEN columns IS NULL THEN 'o.* *<> n.*' ELSE
                         (SELECT format('record_image_ne(ROW(%s), ROW(%s))', string_agg(format('o.%I', c), ', '),
                                        string_agg(format('n.%I', c), ', ')) FROM unnest(columns) AS c) END;
    new_id text := relay.capture_id('n', key, texts, foreign_columns);
    old_id text := relay.capture_id('o', key, texts, foreign_columns);
    body text;
BEGIN
    CASE kind
        WHEN 'insert' THEN
            body := relay.capture_statement(entity, topic, texts, 'created',
                                            relay.capture_rows(entity, new_id, 'new_rows AS n', is_unique));
        WHEN 'delete' THEN
            body := relay.capture_statement(entity, topic, texts, 'deleted',
                                            relay.capture_rows(entity, old_id, 'old_rows AS o', is_unique));
        WHEN 'truncate' THEN
            body := format($f$    PERFORM relay.touch(%L, '*', 'truncated', %L);
$f$, entity, topic);
        ELSE
            body := relay.capture_statement(entity, topic, texts, 'updated', format(
                $f$SELECT %L, %s, 1 FROM new_rows AS n JOIN old_rows AS o ON %s
        WHERE %s AND NOT EXISTS (SELECT FROM new_rows OFFSET 1)$f$, entity, new_id, same_key, differs))
            || format($f$    IF NOT FOUND AND (EXISTS (SELECT FROM new_rows OFFSET 1)
                          OR NOT EXISTS (SELECT FROM new_rows AS n JOIN old_rows AS o ON %1$s)) THEN
        SELECT array_agg(%3$s) FILTER (WHERE %5$s) AS deleted,
               array_agg(%2$s) FILTER (WHERE NOT (%4$s OR %5$s) AND %6$s) AS updated,
               array_agg(%2$s) FILTER (WHERE %4$s) AS created
        INTO changed FROM old_rows AS o FULL JOIN new_rows AS n ON %1$s;
        PERFORM relay.touch_set(%7$L, changed.deleted, 'deleted', %8$L),
                relay.touch_set(%7$L, changed.updated, 'updated', %8$L),
                relay.touch_set(%7$L, changed.created, 'created', %8$L);
    END IF;
$f$, same_key, new_id, old_id, is_new, is_gone, differs, entity, topic);
            RETURN E'\nDECLARE\n    changed record;\nBEGIN\n' || body || E'    RETURN NULL;\nEND ';
    END CASE;
    RETURN E'\nBEGIN\n' || body || E'    RETURN NULL;\nEND ';
END $$;

-- The function of one trigger.
CREATE FUNCTION relay.write_captured(relation regclass, name text, kind text, entity text, key text[], texts boolean,
                                     is_unique boolean, columns text[], topic text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE OR REPLACE FUNCTION relay.%I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER '
                   -- The text of a date hangs on a setting; those of the other types that are taken do not.
                   'SET search_path = pg_catalog, pg_temp SET datestyle = ''ISO, YMD'' AS %L', name || '_' || kind,
                   relay.capture_body(kind, entity, key, texts, is_unique, columns, topic,
                                      relay.capture_foreign(relation, key)));
END $$;

-- As step 2 has it.
CREATE OR REPLACE FUNCTION relay.capture(relation regclass, entity text DEFAULT NULL, key text[] DEFAULT NULL,
                                         columns text[] DEFAULT NULL, topic text DEFAULT NULL) RETURNS regclass[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $$
#variable_conflict use_variable
DECLARE
    texts boolean;
    is_unique boolean;
    name text;
    kind text;
    part regclass;
    captured regclass[] := '{}';
BEGIN
    PERFORM relay.refuse_capture(relation);
    PERFORM relay.lock_to_change(relation, 'SHARE ROW EXCLUSIVE');
    SELECT coalesce(entity, d.entity, c.relname), coalesce(key, d.key), coalesce(columns, d.columns),
           coalesce(topic, d.topic, 'relay.changes') INTO entity, key, columns, topic
    FROM pg_class AS c LEFT JOIN relay.captures AS d ON d.relation = c.oid WHERE c.oid = relation;
    columns := nullif(columns, '{}');
    IF (entity ~ '^[A-Za-z0-9_.-]+$' AND octet_length(entity) <= 128) IS NOT TRUE THEN
        PERFORM relay.refuse_entity(entity, '-', 'created');
    END IF;
    IF topic !~ '^[a-zA-Z0-9._-]+$' OR octet_length(topic) > 249 OR topic IN ('.', '..') THEN
        PERFORM relay.refuse_topic(topic);
    END IF;
    SELECT k.columns, k.texts, k.is_unique INTO key, texts, is_unique FROM relay.capture_key(relation, key) AS k;
    PERFORM relay.refuse_columns(relation, columns);
    -- After a swap of tables by renaming, the functions of that name belong to the other one.
    SELECT 'captured_' || left(regexp_replace(c.relname, '[^A-Za-z0-9_]', '_', 'g'), 30) || '_'
           || left(to_hex(hashtextextended(n.nspname || '.' || c.relname, 0)), 6) INTO name
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = relation;
    WHILE EXISTS (SELECT FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
                  WHERE p.pronamespace = 'relay'::regnamespace AND p.proname = name || '_insert'
                    AND t.tgrelid <> relation AND t.tgrelid NOT IN (SELECT relay.capture_tree(relation))) LOOP
        name := name || '_';
    END LOOP;
    FOREACH kind IN ARRAY ARRAY['insert', 'update', 'delete', 'truncate'] LOOP
        PERFORM relay.write_captured(relation, name, kind, entity, key, texts, is_unique, columns, topic);
        EXECUTE format('REVOKE ALL ON FUNCTION relay.%I() FROM PUBLIC', name || '_' || kind);
        EXECUTE format('ALTER FUNCTION relay.%I() OWNER TO %I', name || '_' || kind,
                       (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'relay.outbox'::regclass));
        FOR part IN SELECT relation UNION ALL
                    SELECT t.part FROM relay.capture_tree(relation) AS t (part) JOIN pg_class AS c ON c.oid = t.part
                    WHERE c.relkind IN ('r', 'p') LOOP
            EXECUTE format('CREATE OR REPLACE TRIGGER relay_capture_%s AFTER %s ON %s %s FOR EACH STATEMENT '
                           'EXECUTE FUNCTION relay.%I(%L)', kind, kind, part,
                           CASE kind WHEN 'insert' THEN 'REFERENCING NEW TABLE AS new_rows'
                                     WHEN 'update' THEN 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'
                                     WHEN 'delete' THEN 'REFERENCING OLD TABLE AS old_rows' ELSE '' END,
                           name || '_' || kind,
                           jsonb_build_object('entity', entity, 'topic', topic, 'key', key, 'columns', columns)::text);
            captured := captured || CASE WHEN kind = 'insert' THEN ARRAY[part] END;
        END LOOP;
    END LOOP;
    PERFORM relay.drop_captured();
    RETURN captured;
END $$;

-- Writes the functions of all triggers of capture again, as this step writes them. No table is locked. Those of a table
-- whose key has changed since stay as they are, until relay.capture says what the key is now.
DO $$
DECLARE
    found record;
    made record;
BEGIN
    FOR found IN
        SELECT p.proname, t.tgrelid::regclass AS relation,
               convert_from(substr(t.tgargs, 1, octet_length(t.tgargs) - 1), getdatabaseencoding())::jsonb AS said,
               substring(p.proname FROM '_(insert|update|delete|truncate)$') AS kind
        FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
        WHERE p.pronamespace = 'relay'::regnamespace AND NOT t.tgisinternal AND t.tgnargs = 1
          -- Of a table with partitions, which share the function, the table itself.
          AND NOT EXISTS (SELECT FROM pg_inherits AS i JOIN pg_trigger AS u ON u.tgrelid = i.inhparent
                          WHERE i.inhrelid = t.tgrelid AND u.tgfoid = t.tgfoid)
        ORDER BY t.tgrelid, p.proname
    LOOP
        BEGIN
            SELECT k.columns, k.texts, k.is_unique INTO made
            FROM relay.capture_key(found.relation,
                                   ARRAY(SELECT jsonb_array_elements_text(found.said -> 'key'))) AS k;
            PERFORM relay.write_captured(found.relation, regexp_replace(found.proname, '_[a-z]+$', ''), found.kind,
                                         found.said ->> 'entity', made.columns, made.texts, made.is_unique,
                                         CASE WHEN found.said -> 'columns' <> 'null'
                                              THEN ARRAY(SELECT jsonb_array_elements_text(found.said -> 'columns')) END,
                                         found.said ->> 'topic');
        EXCEPTION WHEN SQLSTATE 'RL140' THEN
            RAISE NOTICE 'The triggers of % stay as they are: %', found.relation, SQLERRM;
        END;
    END LOOP;
END $$;

REVOKE ALL ON FUNCTION relay.escalate(), relay.lock_by_row(bigint), relay.release_keys(), relay.is_readable(text),
    relay.wake(), relay.refuse_key(),
    relay.capture_foreign(regclass, text[]), relay.capture_id(text, text[], boolean, text[]),
    relay.capture_body(text, text, text[], boolean, boolean, text[], text, text[]),
    relay.write_captured(regclass, text, text, text, text[], boolean, boolean, text[], text) FROM PUBLIC;

-- The step notes itself, in its own transaction. Code for step 1 works with it.
INSERT INTO relay.schema_version (version, oldest_code) VALUES (3, 1);
