-- Step 3: parked events keep their ids and their order, every event can be parked, and floors outlive a restart.

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
-- relay of schema 2 parks under the new id and leaves the row, which still says where the event belongs.
CREATE FUNCTION relay.forget_published() RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM relay.returned AS r USING (
        SELECT o.id FROM (SELECT b.id, b.lane FROM relay.returned AS b ORDER BY b.id LIMIT 100 FOR UPDATE SKIP LOCKED) AS o
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
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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

-- A parked event goes back to the outbox, or away for good, under the locks of its key and lane. Returns how many events
-- of its key entered the outbox again, NULL if there is no such event. For operators; the daemon's role does not need it.
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
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $$
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
        SELECT coalesce(n.first_id, e.id) AS first_id, e.event_id, e.created_at, e.topic, e.key, e.headers, e.payload
        FROM (SELECT k.id, k.event_id, k.created_at, k.topic, k.key, k.headers, k.payload FROM kept AS k
              UNION ALL
              SELECT l.id, l.event_id, l.created_at, l.topic, l.key, l.headers, l.payload FROM later AS l) AS e
        LEFT JOIN known AS n ON n.id = e.id
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
    PERFORM pg_notify('relay_wake', '');
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
-- everything that was published under an old snapshot, or that waits for a missing topic. Slot 0 is about all rows, slot
-- 1 about the rows of all topics but those in `paused`. Hints only: a relay believes them if `origin` names the sequence
-- that it draws from and `proven` is not above its last id. Without a row, or without the table, it proves everything
-- again.
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

-- The step notes itself, in its own transaction. Code for step 1 works with it.
INSERT INTO relay.schema_version (version, oldest_code) VALUES (3, 1);
