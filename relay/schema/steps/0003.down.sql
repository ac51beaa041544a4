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

DROP FUNCTION relay.park(smallint[], bigint[], text, boolean, text, text, integer), relay.forget_published(),
    relay.refuse_unpark(boolean);
DROP TABLE relay.returned, relay.floor;
