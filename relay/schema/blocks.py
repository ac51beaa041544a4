"""Steps as one statement, for whoever runs them through a driver and in a transaction that are not ours.

Alembic runs revisions on the host's connection: psycopg, asyncpg, pg8000, or none at all with `--sql`. Not every driver
takes several statements at once, and without a connection nobody can ask what is there. A DO block is one statement
everywhere, asks while it runs, tries again by itself when a lock is not to be had, and leaves the settings that it
needs as it found them: the search path may be how the host's next migration finds its tables.

Each block knows the Alembic history that it runs for by its version table. Two applications, or the tenants of one, may
share a database and with it the schema `relay`. The second to arrive finds it there; the last to leave takes it away.
"""

from __future__ import annotations

from relay.schema.steps import BASE, LOCK_ID, VERSION, step, step_back

ATTEMPTS = 20
"""With waits of 1 s for a lock and pauses of 0.1 to 2 s between: about 40 s at most."""

HEAD = """\
DO $relay$
DECLARE
    path_before constant text := current_setting('search_path');
    wait_before constant text := current_setting('lock_timeout');
    checks_before constant text := current_setting('plpgsql.extra_errors');
    version_table constant regclass := to_regclass({history});
    history text;
    found integer;
    target integer;
BEGIN
    PERFORM set_config('search_path', 'pg_catalog, pg_temp', true), set_config('lock_timeout', '1s', true),
            set_config('plpgsql.extra_errors', 'none', true);
    history := coalesce(version_table::text, {history});
    FOR attempt IN 1 .. {attempts} LOOP
        BEGIN
            PERFORM pg_advisory_xact_lock({lock});
            found := 0;
            IF to_regclass('relay.schema_version') IS NOT NULL THEN
                SELECT coalesce(max(version), 0) INTO found FROM relay.schema_version;
            END IF;
"""

# Waiting longer in one go would queue every later statement of the application behind this one.
TAIL = """\
            EXIT;
        EXCEPTION
            WHEN lock_not_available THEN
                IF attempt = {attempts} THEN
                    RAISE EXCEPTION 'RLY-404: the schema could not be changed: a lock was not to be had'
                        USING ERRCODE = 'lock_not_available', HINT = 'Run it again at a quieter time.';
                END IF;
                PERFORM pg_sleep(0.1 * attempt);
            WHEN duplicate_table OR duplicate_function THEN
                RAISE EXCEPTION 'RLY-404: the schema relay holds something else already: %', SQLERRM
                    USING HINT = 'Rename or drop it; Relay needs the schema relay for itself.';
        END;
    END LOOP;
    PERFORM set_config('search_path', path_before, true), set_config('lock_timeout', wait_before, true),
            set_config('plpgsql.extra_errors', checks_before, true);
END $relay$"""

GAP = """\
            IF found < {after} THEN
                RAISE EXCEPTION 'RLY-402: the schema relay has version %, this revision begins at {after}', found
                    USING HINT = 'Run `relay db upgrade`, then this again.';
            END IF;
"""

NOTE = """\
            INSERT INTO relay.alembic_history AS h (version_table, version) VALUES (history, {upto})
            ON CONFLICT ON CONSTRAINT alembic_history_pkey DO UPDATE SET version = greatest(h.version, {upto});
"""

STAYS = """\
            target := {to};
            IF found > 0 THEN
                DELETE FROM relay.alembic_history AS h WHERE h.version_table = history;
                SELECT greatest(target, max(h.version)) INTO target FROM relay.alembic_history AS h;
                IF target > {to} THEN
                    RAISE NOTICE 'The schema relay stays at version %: other Alembic histories use it.', target;
                END IF;
            END IF;
"""

# The locks keep events from being written between the question and the end. Another isolation level than READ COMMITTED
# would not show what was written before the locks were there. CASCADE takes triggers of `capture` along.
DROP = """\
            IF found > 0 AND target = 0 THEN
                IF current_setting('transaction_isolation') <> 'read committed' THEN
                    RAISE EXCEPTION 'RLY-404: this transaction, which is %, cannot see whether events would be lost',
                        current_setting('transaction_isolation')
                        USING HINT = 'Run it with isolation_level="READ COMMITTED" in create_engine of env.py.';
                END IF;
                LOCK TABLE relay.outbox, relay.parked IN ACCESS EXCLUSIVE MODE;
                IF EXISTS (SELECT FROM relay.outbox) OR EXISTS (SELECT FROM relay.parked) THEN
                    RAISE EXCEPTION 'RLY-404: the outbox or the parked events are not empty, and would be lost'
                        USING HINT = 'Run `relay run --drain` and treat what `relay parked list` shows.';
                END IF;
                DROP SCHEMA relay CASCADE;
            END IF;
"""

NO_WAY_BACK = """\
                RAISE EXCEPTION 'RLY-404: step {version} of the schema relay has no way back'
                    USING HINT = 'Restore a backup, or keep it: older code says itself whether it works with it.';
"""

FORGET = """\
                DELETE FROM relay.schema_version AS v WHERE v.version = {version};
"""


def upgrade_block(after: int, upto: int, history: str) -> str:
    """Takes the schema from version `after` to `upto`; does nothing where a step is there already.

    Args:
        history: the version table of the Alembic history, quoted as in SQL where it needs it.
    """
    steps = [GAP.format(after=after)] if after else [_when("found = 0", _execute("base", BASE))]
    steps += [_when(f"found < {n}", _execute(f"step_{n:04d}", step(n))) for n in range(after + 1, upto + 1)]
    return _block(history, [*steps, NOTE.format(upto=upto)])


def downgrade_block(to: int, history: str) -> str:
    """Takes the schema back to version `to`; away, if that is 0. Refused where events would be lost."""
    if to == 0:
        return _block(history, [STAYS.format(to=to), DROP])
    back = [_when(f"found >= {n} AND target < {n}", _back(n)) for n in range(VERSION, to, -1)]
    return _block(history, [STAYS.format(to=to), _when("found > 0", NOTE.format(upto=to)), *back])


def _block(history: str, body: list[str]) -> str:
    head = HEAD.format(history=_literal(history), attempts=ATTEMPTS, lock=LOCK_ID)
    return "".join([head, *body, TAIL.format(attempts=ATTEMPTS)])


def _when(condition: str, then: str) -> str:
    return f"            IF {condition} THEN\n{then}            END IF;\n"


def _back(version: int) -> str:
    statements = step_back(version)
    if statements is None:
        return NO_WAY_BACK.format(version=version)
    return _execute(f"back_{version:04d}", statements) + FORGET.format(version=version)


def _execute(tag: str, statements: str) -> str:
    """EXECUTE takes many statements and reads each only when those before it have run."""
    return f"                EXECUTE ${tag}$\n{statements}${tag}$;\n"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
