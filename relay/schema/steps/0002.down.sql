-- Back to step 1. No event and no version is lost: only functions and triggers go.
-- Triggers of capture go first: their functions need those below.
DO $$
DECLARE
    captured regclass;
BEGIN
    FOR captured IN SELECT c.relation FROM relay.captures AS c WHERE NOT c.is_part LOOP
        PERFORM relay.uncapture(captured);
    END LOOP;
END $$;
DROP VIEW relay.captures;
DROP FUNCTION relay.capture(regclass, text, text[], text[], text), relay.uncapture(regclass),
    relay.capture_tree(regclass), relay.lock_to_change(regclass, text), relay.refuse_capture(regclass),
    relay.capture_key(regclass, text[]), relay.refuse_columns(regclass, text[]), relay.drop_captured(),
    relay.touch_set(text, text[], text, text), relay.capture_id(text, text[], boolean),
    relay.capture_body(text, text, text[], boolean, boolean, text[], text), relay.checked_id(text),
    relay.capture_rows(text, text, text, boolean), relay.capture_statement(text, text, boolean, text, text);
DROP FUNCTION relay.touch_uncaptured(text[], text[], text[], text[], jsonb[], jsonb, text[], regclass[]);
DROP FUNCTION relay.touch_many(text[], text[], text[], text[], jsonb[], jsonb);
DROP FUNCTION relay.append_changes(text[], text[], text[], text[], jsonb[], jsonb, bigint[], timestamptz);
DROP FUNCTION relay.check_changes(text[], text[], text[], text[], jsonb[]);
