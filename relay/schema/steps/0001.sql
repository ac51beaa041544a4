-- Step 1: the outbox, its lanes, entity versions, parked events, and the functions that write them.

-- One row is one of N hash lanes. It exists to be locked: whoever holds a lane's row may publish that lane's events.
-- The lock dies with the connection, so there are no leases, heartbeats or rescuers.
CREATE TABLE relay.lane (
    lane   smallint PRIMARY KEY,
    parked integer NOT NULL DEFAULT 0 CHECK (parked >= 0)
);
INSERT INTO relay.lane (lane) SELECT generate_series(0, 63);

-- The lane of a key, and any lane for an event that owes no order. Rows that are inserted by hand need it as well.
CREATE FUNCTION relay.lane_of(key text) RETURNS smallint
LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN (coalesce(hashtextextended(key, 0), date_part('microseconds', clock_timestamp())::bigint) & 63)::smallint;

-- A UUID of version 8: 48 bits of time in steps of 16 microseconds and 12 of the process id, then 40 random bits and 22 of
-- the process id. gen_random_uuid() asks the operating system: 13 microseconds of a transaction that lasts 170, this
-- one 2. The random bits alone would not do: an application may call setseed(). No subquery in it: the planner then
-- puts the expression in the place of the call.
CREATE FUNCTION relay.new_event_id() RETURNS uuid
LANGUAGE sql VOLATILE
RETURN (lpad(to_hex(((date_part('epoch', clock_timestamp()) * 62500)::bigint << 16) | 32768 | (pg_backend_pid() & 4095)),
             16, '0')
        || to_hex((-9223372036854775808) | ((random() * 1099511627775)::bigint << 22)
                  | (pg_backend_pid() & 4194303)))::uuid;

-- One row is one event that Kafka has not acknowledged; it is deleted when Kafka has. count(*) is the backlog.
-- CACHE 1 and GENERATED ALWAYS: ids are drawn one by one while the writer holds its locks, which is what makes id order
-- commit order per key, and the floors provable. The lane is no generated column: the expression of one is parsed anew
-- by every INSERT statement, which costs 20 microseconds. Who may insert goes through the functions below.
CREATE TABLE relay.outbox (
    id         bigint GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME relay.outbox_id_seq CACHE 1) NOT NULL,
    lane       smallint NOT NULL,
    event_id   uuid NOT NULL DEFAULT relay.new_event_id(),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    topic      text NOT NULL,
    key        text,
    headers    text NOT NULL DEFAULT '',
    payload    bytea,
    PRIMARY KEY (lane, id)
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 1000000, vacuum_truncate = false
);
-- Kafka compresses whole batches; compressing each payload here as well costs processor time and gains nothing.
ALTER TABLE relay.outbox ALTER COLUMN payload SET STORAGE EXTERNAL;
COMMENT ON COLUMN relay.outbox.headers IS 'name, value, name, value ... separated by the unit separator (0x1F)';

-- The version of an entity. The row survives the entity: a deletion is a version too. fillfactor leaves room to
-- raise the version in place, without touching the index.
CREATE TABLE relay.entity_version (
    entity  text NOT NULL,
    id      text NOT NULL,
    version bigint NOT NULL,
    PRIMARY KEY (entity, id)
) WITH (fillfactor = 80);

-- One row is one event that was taken out of its key's way. `waits` says that it is not broken itself: its key is
-- blocked by an earlier event. `overtaken_at` says since when later events of the key have been published.
CREATE TABLE relay.parked (
    id           bigint PRIMARY KEY,
    lane         smallint NOT NULL,
    event_id     uuid NOT NULL,
    created_at   timestamptz NOT NULL,
    topic        text NOT NULL,
    key          text,
    headers      text NOT NULL,
    payload      bytea,
    parked_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    policy       text NOT NULL CHECK (policy IN ('park', 'block', 'topic')),
    waits        boolean NOT NULL DEFAULT false,
    code         text NOT NULL,
    reason       text NOT NULL,
    attempts     integer NOT NULL,
    overtaken_at timestamptz
);
CREATE INDEX parked_lane ON relay.parked (lane) WHERE NOT waits;
CREATE INDEX parked_key ON relay.parked (topic, key, id);

-- The largest event in bytes (key, headers and payload together). Kafka's default limit is 1,048,588 with its own
-- framing. Replace the function when your topics allow another size; it is read at every insert.
CREATE FUNCTION relay.event_bytes_max() RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT 1000000';

-- Headers as the relay sends them: name, value, name, value. The names that Relay itself sets are refused.
CREATE FUNCTION relay.pack_headers(headers jsonb) RETURNS text
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
    FOR name, value IN SELECT * FROM jsonb_each(headers) LOOP
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
        IF plain ~ '[\x01-\x1f\x7f]' THEN
            RAISE EXCEPTION 'RLY-107: the value of header "%" holds a control character', name
                USING ERRCODE = 'RL107', HINT = 'Remove line breaks and other control characters.';
        END IF;
        packed := packed || name || E'\x1f' || plain || E'\x1f';
    END LOOP;
    RETURN packed;
END $$;

-- Every event but an entity change enters here. Takes the key's lock BEFORE the id is drawn: two transactions that write
-- the same key draw their ids in the order in which they commit. As few expressions as possible: PL/pgSQL prepares each
-- anew in every transaction, and most transactions write one event.
CREATE FUNCTION relay.append_event(topic text, key text, payload bytea, headers jsonb, kind text, lock_key boolean)
RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    appended uuid;
    bytes integer;
    commands bigint;
    relays_are_awake boolean;
BEGIN
    -- The length apart from the pattern: a bounded repetition in a pattern costs 9 microseconds, this a tenth of one.
    IF (topic ~ '^[a-zA-Z0-9._-]+$' AND octet_length(topic) <= 249 AND topic NOT IN ('.', '..')) IS NOT TRUE THEN
        PERFORM relay.refuse_topic(topic);
    END IF;
    IF lock_key AND key IS NOT NULL AND pg_advisory_xact_lock(hashtextextended(key, 7236837)) IS NULL THEN
        RETURN NULL; -- Never: this is the cheapest way to call a function for its effect.
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
    IF commands >= 1000 AND lock_key AND key IS NOT NULL THEN
        PERFORM relay.count_locks(1, 0);
    END IF;
    IF NOT relays_are_awake THEN
        PERFORM pg_notify('relay_wake', '');
    END IF;
    RETURN appended;
END $$;

-- The refusals stand apart, so that the functions that everybody calls stay short.
CREATE FUNCTION relay.refuse_topic(topic text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'RLY-101: invalid topic name of % characters', coalesce(length(topic), 0)
        USING ERRCODE = 'RL101', HINT = 'A topic name has 1 to 249 of the characters A-Z a-z 0-9 . _ -';
END $$;

CREATE FUNCTION relay.refuse_size(bytes integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'RLY-104: the event has % bytes with its key and headers, the limit is %',
        bytes, relay.event_bytes_max()
        USING ERRCODE = 'RL104', HINT = 'Send a reference instead of the content, or raise the limit of the '
            'topic and replace relay.event_bytes_max().';
END $$;

-- Refuses more than 1,000 locked keys of this transaction: `taken` since the last count and `coming`. From the first count
-- of a long transaction on the number is kept in a setting of the transaction, which costs too much for a short one.
CREATE FUNCTION relay.count_locks(taken integer, coming integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    kept integer := nullif(current_setting('relay.key_locks', true), '');
    locks integer := kept + taken + coming;
BEGIN
    IF kept IS NULL THEN
        -- objsubid 1 is a lock by one bigint, as ours are. Those of the application take room all the same.
        SELECT count(*) + coming INTO locks FROM pg_locks
        WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND objsubid = 1 AND mode = 'ExclusiveLock';
    END IF;
    IF locks > 1000 THEN
        RAISE EXCEPTION 'RLY-108: more than 1000 keyed events of one transaction lock their keys'
            USING ERRCODE = 'RL108', HINT = 'Use relay.touch, which has no such limit, emit in several '
                'transactions, or lock the entities'' rows first and use relay.emit_many with lock_keys => false.';
    END IF;
    IF kept IS NOT NULL OR taken > 0 THEN
        PERFORM set_config('relay.key_locks', locks::text, true);
    END IF;
END $$;

CREATE FUNCTION relay.refuse_entity(entity text, id text, action text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF entity IS NULL OR entity !~ '^[A-Za-z0-9_.-]+$' OR octet_length(entity) > 128 THEN
        RAISE EXCEPTION 'RLY-102: invalid entity name of % characters', coalesce(length(entity), 0)
            USING ERRCODE = 'RL102', HINT = 'An entity name has 1 to 128 of the characters A-Z a-z 0-9 _ . -';
    END IF;
    IF id IS NULL OR id = '' OR octet_length(id) > 1024 OR id ~ '[\x01-\x1f\x7f]' THEN
        RAISE EXCEPTION 'RLY-103: invalid entity id of % bytes', coalesce(octet_length(id), 0)
            USING ERRCODE = 'RL103', HINT = 'An entity id has 1 to 1024 bytes and no control characters.';
    END IF;
    RAISE EXCEPTION 'RLY-105: invalid action of % characters', coalesce(length(action), 0)
        USING ERRCODE = 'RL105', HINT = 'An action has 1 to 64 of the characters A-Z a-z 0-9 _ . -';
END $$;

-- The three forms of emit differ in the type of the payload and in the content-type they announce. The planner puts the
-- one call in their place, so they cost nothing; their names were bound when they were created.
CREATE FUNCTION relay.emit(topic text, key text, payload bytea, headers jsonb DEFAULT '{}') RETURNS uuid
LANGUAGE sql RETURN relay.append_event(topic, key, payload, headers, 'bytes', true);

CREATE FUNCTION relay.emit(topic text, key text, payload text, headers jsonb DEFAULT '{}') RETURNS uuid
LANGUAGE sql RETURN relay.append_event(topic, key, convert_to(payload, 'UTF8'), headers, 'text', true);

CREATE FUNCTION relay.emit(topic text, key text, payload jsonb, headers jsonb DEFAULT '{}') RETURNS uuid
LANGUAGE sql RETURN relay.append_event(topic, key, convert_to(payload::text, 'UTF8'), headers, 'json', true);

-- Many events in one call, in the order of the arrays. All keys are locked first, sorted, so that two calls with the
-- same keys cannot deadlock. lock_keys => false is for callers that already hold the locks of the entities' rows.
CREATE FUNCTION relay.emit_many(topics text[], keys text[], payloads bytea[], headers jsonb[],
                                lock_keys boolean DEFAULT true) RETURNS uuid[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    distinct_keys text[];
    one text;
    appended uuid[];
BEGIN
    IF lock_keys THEN
        SELECT array_agg(k ORDER BY k COLLATE "C") INTO distinct_keys
        FROM (SELECT DISTINCT k FROM unnest(keys) AS k WHERE k IS NOT NULL) AS d;
        -- Counted before they are taken: it is too late once the room is used up.
        PERFORM relay.count_locks(0, coalesce(cardinality(distinct_keys), 0));
        FOREACH one IN ARRAY coalesce(distinct_keys, '{}') LOOP
            PERFORM pg_advisory_xact_lock(hashtextextended(one, 7236837));
        END LOOP;
    END IF;
    SELECT array_agg(relay.append_event(e.topic, e.key, e.payload, e.header, NULL, false) ORDER BY e.position)
    INTO appended
    FROM (SELECT * FROM unnest(topics, keys, payloads, headers)
          WITH ORDINALITY AS u (topic, key, payload, header, position) ORDER BY position) AS e;
    RETURN appended;
END $$;

-- An entity change: raises the entity's version and writes the event that says so, in one call. The row lock of the
-- upsert, taken before the event's id is drawn, is what makes versions and events follow commit order per entity.
CREATE FUNCTION relay.touch(entity text, id text, action text DEFAULT 'updated', topic text DEFAULT NULL,
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
        AND id <> '' AND octet_length(id) <= 1024 AND id !~ '[\x01-\x1f\x7f]'
        AND action ~ '^[A-Za-z0-9_.-]+$' AND octet_length(action) <= 64) IS NOT TRUE THEN
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
        PERFORM pg_notify('relay_wake', '');
    END IF;
    RETURN raised;
END $$;

-- A parked event goes back to the outbox, or away for good, under the locks of its key and lane. Returns how many events
-- of its key entered the outbox anew, NULL if there is no such event. For operators; the daemon's role does not need it.
--
-- Whatever goes back draws a new id, since one below a floor that a relay has proven would never be found. It must stand
-- before the events of its key that were written after it, so those are moved behind it. Ids cannot tell which these
-- are: an event that has gone back before has a late one. Times of creation can, and never fall within a key, unless
-- the server's clock was set back; hence the running maximum, which keeps what is in the outbox in its order then too.
--
-- Waits half a second for a key, which is less than deadlock_timeout: a writer that emits and touches one key in one
-- transaction could otherwise meet us in a deadlock and be the one to die. Fails with 55P03 then; to be tried again.
CREATE FUNCTION relay.unpark(parked_id bigint, drop_it boolean) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
    event relay.parked;
    gone integer;
    moved integer;
BEGIN
    SELECT * INTO event FROM relay.parked WHERE id = parked_id;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    -- First the key, as writers do, so that no writer of this key has an id and no commit; then the lane, which waits
    -- for the unit of the relay that holds it, in a queue that the relay cannot overtake. Relays wait for no key.
    IF event.key IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(event.key, 7236837));
        PERFORM 1 FROM relay.entity_version
        WHERE entity = split_part(event.key, ':', 1) AND id = substr(event.key, strpos(event.key, ':') + 1) FOR UPDATE;
    END IF;
    PERFORM set_config('lock_timeout', '30s', true);
    PERFORM 1 FROM relay.lane WHERE lane = event.lane FOR UPDATE;
    -- With the event go those that waited for it, unless another one still blocks the key.
    WITH taken AS (
        DELETE FROM relay.parked AS p
        WHERE p.id = parked_id
           OR (p.waits AND p.topic = event.topic AND p.key = event.key
               AND NOT EXISTS (SELECT 1 FROM relay.parked AS q
                               WHERE NOT q.waits AND q.id <> parked_id AND q.policy = 'block'
                                 AND q.topic = event.topic AND q.key = event.key))
        RETURNING p.*
    ), kept AS (
        SELECT * FROM taken WHERE NOT (drop_it AND id = parked_id)
    ), later AS (
        DELETE FROM relay.outbox AS o
        WHERE o.lane = event.lane AND o.topic = event.topic AND o.key = event.key AND EXISTS (SELECT 1 FROM kept)
        RETURNING o.*
    ), behind AS (
        SELECT 1 AS place, id, event_id, created_at, topic, key, headers, payload FROM kept
        UNION ALL
        SELECT 2, id, event_id, created_at, topic, key, headers, payload FROM later
    ), back AS (
        INSERT INTO relay.outbox (lane, event_id, created_at, topic, key, headers, payload)
        SELECT event.lane, event_id, created_at, topic, key, headers, payload
        FROM (SELECT *, max(created_at) OVER (PARTITION BY place ORDER BY id) AS since FROM behind) AS b
        ORDER BY since, place, id
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM taken), (SELECT count(*) FROM back) INTO gone, moved;
    IF gone = 0 THEN
        RETURN NULL;
    END IF;
    UPDATE relay.lane SET parked = parked - gone WHERE lane = event.lane;
    PERFORM pg_notify('relay_wake', '');
    RETURN moved;
END $$;

REVOKE ALL ON ALL TABLES IN SCHEMA relay FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA relay FROM PUBLIC;

-- The step notes itself, in its own transaction: whichever door runs it, the version is what is there.
INSERT INTO relay.schema_version (version, oldest_code) VALUES (1, 1);
