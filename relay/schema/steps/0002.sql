-- Step 2: entity changes of many rows at once, for the ORM, and triggers that capture the changes of tables.

-- As relay.touch, for many changes in one call. Entities are locked in sorted order, so two calls with the same
-- entities cannot deadlock; events are written in the order of the arrays. An entity that occurs several times gets as
-- many versions. The headers are for all of them.
--
-- All locks are taken by the first statement, and no event's id is drawn before the second. The join is of one call's
-- changes, which the planner takes for a handful; a nested loop over 10,000 would take minutes.
CREATE FUNCTION relay.touch_many(entities text[], ids text[], actions text[], topics text[], payloads jsonb[],
                                 headers jsonb DEFAULT '{}') RETURNS bigint[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_nestloop = off AS $$
#variable_conflict use_column
DECLARE
    versions bigint[];
    locked_at timestamptz;
BEGIN
    PERFORM relay.check_changes(entities, ids, actions, topics, payloads);
    WITH given AS MATERIALIZED (
        SELECT u.entity, u.id, u.position,
               row_number() OVER (PARTITION BY u.entity COLLATE "C", u.id COLLATE "C" ORDER BY u.position) AS nth,
               count(*) OVER (PARTITION BY u.entity COLLATE "C", u.id COLLATE "C") AS times
        FROM unnest(entities, ids) WITH ORDINALITY AS u (entity, id, position)
    ), raised AS (
        INSERT INTO relay.entity_version AS v (entity, id, version)
        SELECT g.entity, g.id, g.times FROM given AS g WHERE g.nth = 1
        ORDER BY g.entity COLLATE "C", g.id COLLATE "C"
        ON CONFLICT ON CONSTRAINT entity_version_pkey DO UPDATE SET version = v.version + excluded.version
        RETURNING v.entity, v.id, v.version
    )
    SELECT array_agg(r.version - g.times + g.nth ORDER BY g.position), clock_timestamp() INTO versions, locked_at
    FROM given AS g JOIN raised AS r ON r.entity = g.entity AND r.id = g.id;
    PERFORM relay.append_changes(entities, ids, actions, topics, payloads, headers, versions, locked_at);
    RETURN coalesce(versions, '{}');
END $$;

-- Characters are matched in all texts at once: a pattern's every call costs more than all else here.
CREATE FUNCTION relay.check_changes(entities text[], ids text[], actions text[], topics text[], payloads jsonb[])
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

-- The events of entities whose versions are raised and locked: as relay.touch writes them, in the order of the arrays,
-- which is the order in which unnest gives its rows; a sort of finished events would not fit into work_mem. They share
-- one time, which is later than that of any event of these keys that is there already.
CREATE FUNCTION relay.append_changes(entities text[], ids text[], actions text[], topics text[], payloads jsonb[],
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

-- What the ORM's `track` calls: touch_many for the entities that no trigger of Relay captures. A capture trigger has
-- written its events by then, in the statement that changed the rows, so those entities' versions are NULL here. Asked
-- anew at every flush: a trigger may be added or removed beneath applications that run.
--
-- The changes come sorted by entity and id, each entity once. Versions that are there are found by one index scan,
-- whatever the statistics say: hence the settings, and ARRAY(...), whose length no plan depends on. They are locked in
-- the index' order, and then those that are new; touch_many locks all in one order. It is safe here, and takes a third
-- less: the flush has locked the rows of these entities before, so whoever waits for a version has waited for the row.
CREATE FUNCTION relay.touch_uncaptured(entities text[], ids text[], actions text[], topics text[], payloads jsonb[],
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

REVOKE ALL ON FUNCTION relay.touch_many(text[], text[], text[], text[], jsonb[], jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.check_changes(text[], text[], text[], text[], jsonb[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.append_changes(text[], text[], text[], text[], jsonb[], jsonb, bigint[], timestamptz)
    FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.touch_uncaptured(text[], text[], text[], text[], jsonb[], jsonb, text[], regclass[])
    FROM PUBLIC;

-- Capture: triggers that turn every INSERT, UPDATE, DELETE and TRUNCATE of a table into entity changes, whoever runs
-- it.
--
-- One pass per statement, not one call per row: statement triggers with transition tables. Their functions are written
-- for each table, because finding out per row what its key is and how to compare it would cost more than the row. What
-- they write is what relay.touch writes. They run as the owner of this schema, so those who write to the table need no
-- right here; nobody may call them, so nobody can hang them on a table of his own to forge events.
--
-- What is captured stands in the argument of the triggers and nowhere else: no book that could differ from what is
-- there. Dumps carry it along, a renamed table stays captured, a dropped one is forgotten.

-- All that lies below a table, without itself.
CREATE FUNCTION relay.capture_tree(relation regclass) RETURNS SETOF regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE below (part) AS (
        SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = relation
        UNION
        SELECT i.inhrelid FROM below AS b JOIN pg_inherits AS i ON i.inhparent = b.part)
    SELECT part::regclass FROM below
$$;

-- The tables that have triggers of capture. `is_complete`: none is missing or disabled. `is_part`: a table above has
-- them too. `missing`: partitions and children without any, which those made later are until relay.capture is called
-- again.
CREATE VIEW relay.captures AS
SELECT c.relation, c.definition ->> 'entity' AS entity, c.definition ->> 'topic' AS topic,
       ARRAY(SELECT jsonb_array_elements_text(c.definition -> 'key')) AS key,
       CASE WHEN c.definition -> 'columns' <> 'null'
            THEN ARRAY(SELECT jsonb_array_elements_text(c.definition -> 'columns')) END AS columns,
       c.is_complete,
       EXISTS (SELECT FROM pg_inherits AS i JOIN pg_trigger AS t ON t.tgrelid = i.inhparent
               WHERE i.inhrelid = c.relation AND t.tgfoid = ANY (c.functions)) AS is_part,
       ARRAY(SELECT b.relation FROM relay.capture_tree(c.relation) AS b (relation)
             WHERE NOT EXISTS (SELECT FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
                               WHERE t.tgrelid = b.relation AND p.pronamespace = 'relay'::regnamespace)
             ORDER BY b.relation::text) AS missing
FROM (SELECT t.tgrelid::regclass AS relation, d.definition, array_agg(t.tgfoid) AS functions,
             -- 60: for insert, delete, update and truncate.
             coalesce(bit_or(t.tgtype) FILTER (WHERE t.tgenabled IN ('O', 'A')), 0) & 60 = 60 AS is_complete
      FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
      -- The only argument, without the zero byte that ends it.
      CROSS JOIN LATERAL (SELECT convert_from(substr(t.tgargs, 1, octet_length(t.tgargs) - 1),
                                              getdatabaseencoding())::jsonb) AS d (definition)
      WHERE p.pronamespace = 'relay'::regnamespace AND t.tgnargs = 1
      GROUP BY t.tgrelid, d.definition) AS c;

-- Captures a table, with all partitions and children that it has: a statement that names one of those runs its triggers
-- alone. Called again, it covers those that have come since, and changes what is said anew.
--
--   entity    the table's name by default
--   key       the columns that make the id, the primary key by default; parts of a composite id are joined with ":",
--             and a ":" or backslash within a part gets a backslash before it
--   columns   an update counts only if one of these has changed; '{}', the default, means any
--   topic     relay.changes by default
--
-- Needs the rights of the table's owner and of this schema's. Locks the table as CREATE TRIGGER does, against writers
-- and not readers, until the transaction ends; tries again for half a minute, and between its tries lets writers go
-- first.
CREATE FUNCTION relay.capture(relation regclass, entity text DEFAULT NULL, key text[] DEFAULT NULL,
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

-- Ends it, for partitions and children as well. Events that are written stay, versions too. Locks the table against all
-- for a moment, as DROP TRIGGER does, and tries as relay.capture does.
CREATE FUNCTION relay.uncapture(relation regclass) RETURNS regclass[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $$
#variable_conflict use_variable
DECLARE
    found record;
    freed regclass[];
BEGIN
    IF NOT EXISTS (SELECT FROM relay.captures AS c WHERE c.relation = uncapture.relation) THEN
        RETURN '{}';
    END IF;
    PERFORM relay.lock_to_change(relation, 'ACCESS EXCLUSIVE');
    SELECT array_agg(DISTINCT t.tgrelid::regclass) INTO freed
    FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
    WHERE p.pronamespace = 'relay'::regnamespace
      AND (t.tgrelid = relation OR t.tgrelid IN (SELECT relay.capture_tree(relation)));
    FOR found IN SELECT t.tgname, t.tgrelid::regclass AS part FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
                 WHERE p.pronamespace = 'relay'::regnamespace AND t.tgrelid = ANY (freed) LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', found.tgname, found.part);
    END LOOP;
    PERFORM relay.drop_captured();
    RETURN freed;
END $$;

-- Waits for a lock so briefly that those who queue up behind it are not kept. From the eighth try on long enough for an
-- autovacuum of the table to be sent away, which the server does after deadlock_timeout, one second.
CREATE FUNCTION relay.lock_to_change(relation regclass, mode text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $$
BEGIN
    FOR attempt IN 1 .. 20 LOOP
        BEGIN
            PERFORM set_config('lock_timeout', CASE WHEN attempt < 8 THEN '200ms' ELSE '1500ms' END, true);
            EXECUTE format('LOCK TABLE %s IN %s MODE', relation, mode);
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF attempt < 20 THEN
                PERFORM pg_sleep(0.05 * attempt);
            END IF;
        END;
    END LOOP;
    RAISE EXCEPTION 'RLY-142: the table % could not be locked: somebody has changed it and not committed', relation
        USING ERRCODE = 'RL142', HINT = 'Run it again at a quieter time, or end the long transaction.';
END $$;

CREATE FUNCTION relay.refuse_capture(relation regclass) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found record;
    why text;
BEGIN
    SELECT c.relkind, n.nspname INTO found
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = relation;
    why := CASE WHEN relation IS NULL THEN 'there is no such table'
                WHEN found.nspname IN ('pg_catalog', 'information_schema') THEN 'it is the system''s'
                WHEN found.nspname = 'relay' THEN 'it is Relay''s own'
                WHEN found.relkind NOT IN ('r', 'p') THEN 'it is no table that has triggers for whole statements' END;
    IF why IS NOT NULL THEN
        RAISE EXCEPTION 'RLY-140: % cannot be captured: %', coalesce(relation::text, 'the table'), why
            USING ERRCODE = 'RL140', HINT = 'Name an ordinary or a partitioned table.';
    END IF;
END $$;

-- The key's columns, whether one of them is a text, and whether no two rows can have the same.
CREATE FUNCTION relay.capture_key(relation regclass, key text[], OUT columns text[], OUT texts boolean,
                                  OUT is_unique boolean)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    bad text;
    kind "char";
BEGIN
    columns := coalesce(key, (SELECT array_agg(a.attname::text ORDER BY k.n) FROM pg_index AS i
                              CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (number, n)
                              JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number
                              WHERE i.indrelid = relation AND i.indisprimary));
    IF coalesce(cardinality(columns), 0) = 0 THEN
        RAISE EXCEPTION 'RLY-140: % cannot be captured: it has no primary key', relation
            USING ERRCODE = 'RL140', HINT = 'Say which columns make the id of a row: key => ARRAY[''id''].';
    END IF;
    SELECT format('%I %s', k.name, CASE WHEN a.attnum IS NULL THEN 'is not there'
                                        WHEN NOT a.attnotnull THEN 'may be NULL'
                                        ELSE 'has a type whose text is not the same everywhere' END) INTO bad
    FROM unnest(columns) AS k (name)
    LEFT JOIN pg_attribute AS a ON a.attrelid = relation AND a.attname = k.name AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_type AS t ON t.oid = a.atttypid LEFT JOIN pg_type AS b ON b.oid = t.typbasetype
    WHERE (a.attnotnull AND (coalesce(b.typcategory, t.typcategory) IN ('S', 'E')
           OR coalesce(b.oid, t.oid) IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'numeric'::regtype,
                                         'uuid'::regtype, 'date'::regtype, 'bool'::regtype))) IS NOT TRUE
    LIMIT 1;
    IF bad IS NOT NULL THEN
        RAISE EXCEPTION 'RLY-140: % cannot be captured: the key column %', relation, bad
            USING ERRCODE = 'RL140', HINT = 'Name NOT NULL columns that are integers, texts, uuids, dates or enums.';
    END IF;
    SELECT bool_or(t.typcategory IN ('S', 'E') OR t.typtype = 'd') INTO texts
    FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
    WHERE a.attrelid = relation AND a.attname = ANY (columns) AND a.attnum > 0;
    SELECT EXISTS (
        SELECT FROM pg_index AS i WHERE i.indrelid = relation AND i.indisunique AND i.indimmediate AND i.indisvalid
           AND i.indpred IS NULL AND i.indexprs IS NULL
           AND (SELECT array_agg(a.attname::text) FROM pg_attribute AS a WHERE a.attrelid = relation
                AND a.attnum = ANY ((i.indkey::smallint[])[0 : i.indnkeyatts - 1])) <@ columns) INTO is_unique;
    SELECT c.relkind INTO kind FROM pg_class AS c WHERE c.oid = relation;
    -- The rows of all partitions together can only be unique by the columns that divide them; the application knows.
    IF NOT is_unique AND kind <> 'p' THEN
        RAISE EXCEPTION 'RLY-140: % cannot be captured: no unique index says that % is the key of one row',
            relation, (SELECT string_agg(quote_ident(k), ', ') FROM unnest(columns) AS k)
            USING ERRCODE = 'RL140', HINT = 'Name the columns of a unique index, or create one.';
    END IF;
    -- Children by inheritance have indexes of their own.
    is_unique := is_unique AND (kind = 'p' OR NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = relation));
END $$;

CREATE FUNCTION relay.refuse_columns(relation regclass, columns text[]) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    bad text;
BEGIN
    SELECT format('the column %I is not there', c.name) INTO bad FROM unnest(columns) AS c (name)
    WHERE NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = relation AND a.attname = c.name
                      AND a.attnum > 0 AND NOT a.attisdropped) LIMIT 1;
    IF bad IS NOT NULL THEN
        RAISE EXCEPTION 'RLY-140: % cannot be captured: %', relation, bad
            USING ERRCODE = 'RL140', HINT = 'Name columns of the table whose change matters, or none for any.';
    END IF;
END $$;

-- The functions of triggers that are gone, with their tables or by relay.uncapture.
CREATE FUNCTION relay.drop_captured() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    left_over regprocedure;
BEGIN
    FOR left_over IN SELECT p.oid FROM pg_proc AS p
                     WHERE p.pronamespace = 'relay'::regnamespace AND p.prorettype = 'trigger'::regtype
                       AND p.proname LIKE 'captured\_%'
                       AND NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgfoid = p.oid) LOOP
        EXECUTE format('DROP FUNCTION %s', left_over);
    END LOOP;
END $$;

-- Raises the versions of many entities and writes their events, for updates of many rows; ids may be NULL, which is
-- none, and one that occurs twice counts once. As relay.touch_many in what it writes; 100,000 take half the time, because
-- nothing is sorted or joined, and what all events share is put together once.
--
-- Versions that are there are found by one index scan, whatever the statistics say: hence the settings, and ARRAY(...),
-- whose length no plan depends on. They are locked in the index' order. That is safe beneath a trigger: its statement
-- has locked the rows of these entities before, so whoever waits for a version here has waited for the row.
CREATE FUNCTION relay.touch_set(entity text, ids text[], action text, topic text) RETURNS void
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

-- The body of one trigger function.
--
-- An update pairs old rows with new ones by their key. A row that is found on one side only has had its key changed:
-- the old one is deleted, the new one created. A FULL JOIN cannot become a nested loop, which a plan that was made for
-- a handful of rows would be, and a session keeps its plans: 100,000 rows by a nested loop would take hours. One row
-- alone, which most statements change, is joined cheaply and written here; more go to relay.touch_set.
--
-- Values are compared as they are stored: every type can be, NULL is a value, and 1.0 is another numeric than 1.00.
CREATE FUNCTION relay.capture_body(kind text, entity text, key text[], texts boolean, is_unique boolean, columns text[],
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

-- The text of a row's id; of a row that is not there, NULL.
CREATE FUNCTION relay.capture_id(alias text, key text[], texts boolean) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN texts THEN format('relay.checked_id(%s)', i.id) ELSE i.id END
    FROM (SELECT string_agg(format(CASE WHEN texts AND cardinality(key) > 1
                                        THEN $f$replace(replace(%s.%I::text, E'\\', E'\\\\'), ':', E'\\:')$f$
                                        ELSE '%s.%I::text' END, alias, k.name), $f$ || ':' || $f$ ORDER BY k.n)
          FROM unnest(key) WITH ORDINALITY AS k (name, n)) AS i (id)
$$;

-- What is inserted into the versions: entity, id and 1 for all rows of a transition table, in the order in which all
-- lock them. An id occurs once, or the upsert would refuse.
CREATE FUNCTION relay.capture_rows(entity text, id text, source text, is_unique boolean) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format($f$SELECT %L, c.id, 1 FROM (SELECT %s %s AS id FROM %s) AS c ORDER BY c.id COLLATE "C"$f$,
                  entity, CASE WHEN is_unique THEN '' ELSE 'DISTINCT' END, id, source)
$$;

-- The statement that raises versions and writes events, as relay.touch does. The row lock of each version is taken
-- before its event's id is drawn. None of these events is longer than 10,000 bytes.
CREATE FUNCTION relay.capture_statement(entity text, topic text, texts boolean, action text, rows text)
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

-- The id, or the error of relay.touch for one that cannot be an id.
CREATE FUNCTION relay.checked_id(id text) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF id = '' OR octet_length(id) > 1024 OR id ~ '[\x01-\x1f\x7f]' THEN
        PERFORM relay.refuse_entity('-', id, 'updated');
    END IF;
    RETURN id;
END $$;

REVOKE ALL ON relay.captures FROM PUBLIC;
REVOKE ALL ON FUNCTION relay.capture(regclass, text, text[], text[], text), relay.uncapture(regclass),
    relay.capture_tree(regclass), relay.lock_to_change(regclass, text), relay.refuse_capture(regclass),
    relay.capture_key(regclass, text[]), relay.refuse_columns(regclass, text[]), relay.drop_captured(),
    relay.touch_set(text, text[], text, text), relay.capture_id(text, text[], boolean),
    relay.capture_body(text, text, text[], boolean, boolean, text[], text), relay.checked_id(text),
    relay.capture_rows(text, text, text, boolean), relay.capture_statement(text, text, boolean, text, text)
    FROM PUBLIC;

-- The step notes itself, in its own transaction. Code for step 1 works with it: it only adds.
INSERT INTO relay.schema_version (version, oldest_code) VALUES (2, 1);
