"""What the schema `relay` of a database is made of, as comparable text: for "identical by whichever door"."""

from __future__ import annotations

import psycopg

COLUMNS = """\
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
       a.attstorage, pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum), a.attacl::text
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'relay'::regnamespace ORDER BY c.relname, a.attnum"""

RELATIONS = """\
SELECT c.relname, c.relkind, c.relpersistence, c.reloptions, c.relacl::text, obj_description(c.oid, 'pg_class'),
       CASE WHEN c.relkind = 'i' THEN pg_get_indexdef(c.oid) END
FROM pg_class AS c WHERE c.relnamespace = 'relay'::regnamespace ORDER BY c.relname"""

CONSTRAINTS = """\
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = 'relay'::regnamespace ORDER BY 1, 2"""

FUNCTIONS = """\
SELECT oid::regprocedure::text, pg_get_functiondef(oid), prosrc, proacl::text, obj_description(oid, 'pg_proc')
FROM pg_proc WHERE pronamespace = 'relay'::regnamespace ORDER BY 1"""

SEQUENCES = """\
SELECT seqrelid::regclass::text, seqstart, seqincrement, seqcache, seqcycle FROM pg_sequence
WHERE seqrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'relay'::regnamespace)"""

CONTENT = """\
SELECT (SELECT array_agg(version ORDER BY version) FROM relay.schema_version),
       (SELECT array_agg(lane ORDER BY lane) FROM relay.lane)"""

SCHEMA = "SELECT nspacl::text, obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = 'relay'"

PARTS = {
    "schema": SCHEMA,
    "relations": RELATIONS,
    "columns": COLUMNS,
    "constraints": CONSTRAINTS,
    "functions": FUNCTIONS,
    "sequences": SEQUENCES,
    "content": CONTENT,
}


def catalog(dsn: str) -> dict[str, list[tuple]]:
    """Tables, columns, functions' source, grants, comments, and the rows that an installation writes."""
    with psycopg.connect(dsn) as connection:
        return {part: connection.execute(query).fetchall() for part, query in PARTS.items()}
