-- Back to step 2. No event and no version is lost, and events in the outbox keep their order; where an event of a key
-- stood before it was parked is forgotten.
DROP INDEX relay.parked_key;
CREATE INDEX parked_key ON relay.parked (topic, key, id);

-- What step 3 replaced, as steps 1 and 2 have it.

CREATE OR REPLACE FUNCTION relay.unpark(parked_id bigint, drop_it boolean) RETURNS integer
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

CREATE OR REPLACE FUNCTION relay.count_locks(taken integer, coming integer) RETURNS void LANGUAGE plpgsql AS $$
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

CREATE OR REPLACE FUNCTION relay.emit_many(topics text[], keys text[], payloads bytea[], headers jsonb[],
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

CREATE OR REPLACE FUNCTION relay.append_event(topic text, key text, payload bytea, headers jsonb, kind text, lock_key boolean)
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

CREATE OR REPLACE FUNCTION relay.refuse_topic(topic text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'RLY-101: invalid topic name of % characters', coalesce(length(topic), 0)
        USING ERRCODE = 'RL101', HINT = 'A topic name has 1 to 249 of the characters A-Z a-z 0-9 . _ -';
END $$;

CREATE OR REPLACE FUNCTION relay.refuse_entity(entity text, id text, action text) RETURNS void LANGUAGE plpgsql AS $$
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

CREATE OR REPLACE FUNCTION relay.check_changes(entities text[], ids text[], actions text[], topics text[], payloads jsonb[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    bad record;
BEGIN
    IF cardinality(entities) <> cardinality(ids) OR cardinality(actions) <> cardinality(ids)
       OR greatest(cardinality(topics), cardinality(payloads)) > cardinality(ids)
       OR array_to_string(ids, '') ~ '[\x01-\x1f\x7f]'
       OR array_to_string(entities, '') !~ '^[A-Za-z0-9_.-]*$' OR array_to_string(actions, '') !~ '^[A-Za-z0-9_.-]*$'
       OR EXISTS (SELECT FROM unnest(entities, ids, actions) AS u (entity, id, action)
                  WHERE (octet_length(u.entity) BETWEEN 1 AND 128 AND octet_length(u.id) BETWEEN 1 AND 1024
                         AND octet_length(u.action) BETWEEN 1 AND 64) IS NOT TRUE) THEN
        SELECT u.entity, u.id, u.action INTO bad FROM unnest(entities, ids, actions) AS u (entity, id, action)
        WHERE (u.entity ~ '^[A-Za-z0-9_.-]+$' AND octet_length(u.entity) <= 128
               AND u.id <> '' AND octet_length(u.id) <= 1024 AND u.id !~ '[\x01-\x1f\x7f]'
               AND u.action ~ '^[A-Za-z0-9_.-]+$' AND octet_length(u.action) <= 64) IS NOT TRUE
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

CREATE OR REPLACE FUNCTION relay.touch_uncaptured(entities text[], ids text[], actions text[], topics text[], payloads jsonb[],
                                       headers jsonb, owners text[], tables regclass[]) RETURNS bigint[]
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

CREATE OR REPLACE FUNCTION relay.append_changes(entities text[], ids text[], actions text[], topics text[], payloads jsonb[],
                                     headers jsonb, versions bigint[], locked_at timestamptz) RETURNS void
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
        PERFORM pg_notify('relay_wake', '');
    END IF;
END $$;

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
        PERFORM pg_notify('relay_wake', '');
    END IF;
END $$;

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
        PERFORM pg_notify('relay_wake', '');
    END IF;
$f$, rows, topic, entity,
     -- Of what has only digits, letters and dashes JSON needs no escapes.
     CASE WHEN texts THEN $f$' || to_json(r.id)::text || '$f$ ELSE $f$"' || r.id || '"$f$ END, action)
$$;

CREATE OR REPLACE FUNCTION relay.checked_id(id text) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF id = '' OR octet_length(id) > 1024 OR id ~ '[\x01-\x1f\x7f]' THEN
        PERFORM relay.refuse_entity('-', id, 'updated');
    END IF;
    RETURN id;
END $$;

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
        EXECUTE format('CREATE OR REPLACE FUNCTION relay.%I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER '
                       -- The text of a date hangs on a setting; those of the other types that are taken do not.
                       'SET search_path = pg_catalog, pg_temp SET datestyle = ''ISO, YMD'' AS %L',
                       name || '_' || kind, relay.capture_body(kind, entity, key, texts, is_unique, columns, topic));
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

CREATE OR REPLACE FUNCTION relay.capture_id(alias text, key text[], texts boolean) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN texts THEN format('relay.checked_id(%s)', i.id) ELSE i.id END
    FROM (SELECT string_agg(format(CASE WHEN texts AND cardinality(key) > 1
                                        THEN $f$replace(replace(%s.%I::text, E'\\', E'\\\\'), ':', E'\\:')$f$
                                        ELSE '%s.%I::text' END, alias, k.name), $f$ || ':' || $f$ ORDER BY k.n)
          FROM unnest(key) WITH ORDINALITY AS k (name, n)) AS i (id)
$$;

CREATE OR REPLACE FUNCTION relay.capture_body(kind text, entity text, key text[], texts boolean, is_unique boolean, columns text[],
                                   topic text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    same_key text := (SELECT string_agg(format('n.%1$I = o.%1$I', k), ' AND ') FROM unnest(key) AS k);
    is_new text := format('o.%I IS NULL', key[1]);
    is_gone text := format('n.%I IS NULL', key[1]);
    differs text := CASE WHEN columns IS NULL THEN 'o.* *<> n.*' ELSE
                         (SELECT format('record_image_ne(ROW(%s), ROW(%s))', string_agg(format('o.%I', c), ', '),
                                        string_agg(format('n.%I', c), ', ')) FROM unnest(columns) AS c) END;
    new_id text := relay.capture_id('n', key, texts);
    old_id text := relay.capture_id('o', key, texts);
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

DROP FUNCTION relay.capture_body(text, text, text[], boolean, boolean, text[], text, text[]),
    relay.capture_id(text, text[], boolean, text[]);
REVOKE ALL ON FUNCTION relay.capture_id(text, text[], boolean),
    relay.capture_body(text, text, text[], boolean, boolean, text[], text) FROM PUBLIC;

-- The functions of all triggers of capture, as step 2 writes them.
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
          AND NOT EXISTS (SELECT FROM pg_inherits AS i JOIN pg_trigger AS u ON u.tgrelid = i.inhparent
                          WHERE i.inhrelid = t.tgrelid AND u.tgfoid = t.tgfoid)
        ORDER BY t.tgrelid, p.proname
    LOOP
        BEGIN
            SELECT k.columns, k.texts, k.is_unique INTO made
            FROM relay.capture_key(found.relation, ARRAY(SELECT jsonb_array_elements_text(found.said -> 'key'))) AS k;
            EXECUTE format('CREATE OR REPLACE FUNCTION relay.%I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER '
                           'SET search_path = pg_catalog, pg_temp SET datestyle = ''ISO, YMD'' AS %L', found.proname,
                           relay.capture_body(found.kind, found.said ->> 'entity', made.columns, made.texts, made.is_unique,
                                              CASE WHEN found.said -> 'columns' <> 'null' THEN
                                                   ARRAY(SELECT jsonb_array_elements_text(found.said -> 'columns')) END,
                                              found.said ->> 'topic'));
        EXCEPTION WHEN SQLSTATE 'RL140' THEN
            RAISE NOTICE 'The triggers of % need relay.capture: %', found.relation, SQLERRM;
        END;
    END LOOP;
END $$;

DROP FUNCTION relay.park(smallint[], bigint[], text, boolean, text, text, integer), relay.forget_published(),
    relay.refuse_unpark(boolean), relay.is_readable(text), relay.wake(), relay.refuse_key(),
    relay.capture_foreign(regclass, text[]),
    relay.write_captured(regclass, text, text, text, text[], boolean, boolean, text[], text);
DROP TABLE relay.returned, relay.floor, relay.key_lock;
DROP FUNCTION relay.escalate(), relay.lock_by_row(bigint), relay.release_keys();
