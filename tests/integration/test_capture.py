"""Capture: every committed change of a captured table is an event, whoever makes it and however many rows it has."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from relay.outbox import track, untrack
from relay.schema import capture as captures
from tests.support.commands import relay
from tests.support.postgres import ONE_MAJOR
from tests.support.relay_process import eventually

one_major = pytest.mark.parametrize("any_database", ONE_MAJOR, indirect=True)

USERS = "CREATE TABLE users (id bigint PRIMARY KEY, email text, last_seen int NOT NULL DEFAULT 0, doc json)"


@pytest.fixture
def db(any_database):
    with psycopg.connect(any_database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def users(db):
    """The captured table; its email and document matter."""
    db.execute(USERS)
    db.execute("SELECT relay.capture('users', entity => 'user', columns => '{email,doc}')")
    return db


@pytest.fixture
def app(any_database, db):
    """Opens a connection as a role without any right in the schema relay."""
    name = f"app-{any_database.rpartition('/')[2]}"
    role = sql.Identifier(name)
    db.execute(sql.SQL("CREATE ROLE {} LOGIN; GRANT CREATE ON DATABASE {} TO {}").format(role, database(db), role))
    with psycopg.connect(any_database.replace("postgres@", f"{name}@"), autocommit=True) as connection:
        yield connection
    db.execute(sql.SQL("DROP OWNED BY {} CASCADE; DROP ROLE {}").format(role, role))


def database(connection) -> sql.Identifier:
    return sql.Identifier(connection.info.dbname)


def told(connection) -> list[tuple[str, str, int]]:
    """Id, action and version of the events that were written since the last call, in their order."""
    rows = connection.execute("DELETE FROM relay.outbox RETURNING id, payload").fetchall()
    events = [json.loads(bytes(payload)) for _, payload in sorted(rows)]
    return [(event["id"], event["action"], event["version"]) for event in events]


def written(connection) -> list[dict[str, str]]:
    """As `told`, with all that an event has; headers and payload say the same of it."""
    rows = connection.execute(
        "DELETE FROM relay.outbox RETURNING id, event_id::text, topic, key, headers, payload"
    ).fetchall()
    events = []
    for _, event_id, topic, key, headers, payload in sorted(rows):
        parts = headers.removesuffix("\x1f").split("\x1f")
        named = dict(zip(parts[::2], parts[1::2], strict=True))
        told = {name: str(value) for name, value in json.loads(bytes(payload)).items()}
        assert list(told) == ["entity", "id", "action", "version", "ts"]
        assert list(named.items()) == [*told.items(), ("content-type", "application/json")]
        events.append({"event_id": event_id, "topic": topic, "key": key, **told})
    return events


def refused(connection, statement: str) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as error:
        connection.execute(statement)
    return error.value


# What is told


def test_an_event_of_a_trigger_is_like_one_of_touch(users):
    """Key, topic, headers and payload; of one row, of many and of a key that changes."""
    users.execute("INSERT INTO users VALUES (1, 'a'), (2, 'b')")
    users.execute("UPDATE users SET email = 'c' WHERE id = 1")
    users.execute("UPDATE users SET email = 'd'")
    users.execute("UPDATE users SET id = 3 WHERE id = 1")
    users.execute("DELETE FROM users WHERE id = 2")
    ours = written(users)
    assert len(ours) == len({event["event_id"] for event in ours}) == 8
    for event in ours:
        users.execute("SELECT relay.touch('user', %s, %s)", (event["id"], event["action"]))
    for event, touched in zip(ours, written(users), strict=True):
        assert UUID(event["event_id"]).version in (4, 8)
        assert list(event) == list(touched)
        assert {name for name in event if event[name] != touched[name]} == {"event_id", "version", "ts"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event["ts"])


def test_each_row_of_a_statement_is_told_once_with_its_action(users):
    users.execute("INSERT INTO users SELECT n, 'x' FROM generate_series(1, 3) AS n")
    assert told(users) == [("1", "created", 1), ("2", "created", 1), ("3", "created", 1)]
    users.execute("UPDATE users SET email = 'y' WHERE id = 2")
    assert told(users) == [("2", "updated", 2)]
    users.execute("UPDATE users SET email = 'z'")
    assert sorted(told(users)) == [("1", "updated", 2), ("2", "updated", 3), ("3", "updated", 2)]
    users.execute("DELETE FROM users WHERE id < 3")
    assert told(users) == [("1", "deleted", 3), ("2", "deleted", 4)]
    users.execute("INSERT INTO users VALUES (1)")
    assert told(users) == [("1", "created", 4)]
    users.execute("DELETE FROM users WHERE id = 77; UPDATE users SET email = 'q' WHERE id = 77")
    users.execute("INSERT INTO users SELECT 5 WHERE false")
    assert told(users) == []


def test_only_changes_of_the_named_columns_are_told(users):
    """Of any type, JSON included; NULL is a value; the same value written again is no change."""
    users.execute("""INSERT INTO users VALUES (1, 'a', 0, '{"a": 1}'), (2, NULL, 0, NULL)""")
    told(users)
    users.execute("UPDATE users SET last_seen = 9")
    users.execute("UPDATE users SET last_seen = 10 WHERE id = 1")
    users.execute("UPDATE users SET email = email, doc = doc, last_seen = 11")
    assert told(users) == []
    users.execute("UPDATE users SET last_seen = id, email = 'a'")
    assert told(users) == [("2", "updated", 2)]
    users.execute("""UPDATE users SET doc = '{"a": 2}' WHERE id = 1""")
    users.execute("UPDATE users SET email = NULL")
    assert sorted(told(users)) == [("1", "updated", 2), ("1", "updated", 3), ("2", "updated", 3)]


def test_without_named_columns_any_change_is_told(users):
    """And naming none leaves what was said before."""
    users.execute("INSERT INTO users VALUES (1)")
    users.execute("SELECT relay.capture('users')")
    users.execute("UPDATE users SET last_seen = 1")
    assert told(users) == [("1", "created", 1)]
    users.execute("SELECT relay.capture('users', columns => '{}')")
    users.execute("UPDATE users SET last_seen = 2")
    users.execute("UPDATE users SET last_seen = 2")
    users.execute("ALTER TABLE users ADD COLUMN late int")
    users.execute("UPDATE users SET late = 1")
    assert told(users) == [("1", "updated", 2), ("1", "updated", 3)]


def test_a_row_with_another_key_is_deleted_and_created(users):
    """Alone, among others, and when keys are swapped, which changes the rows behind them."""
    users.execute("INSERT INTO users VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    told(users)
    users.execute("UPDATE users SET id = 4 WHERE id = 1")
    assert sorted(told(users)) == [("1", "deleted", 2), ("4", "created", 1)]
    users.execute("UPDATE users SET id = id + 10, email = 'd' || id WHERE id IN (3, 4)")
    assert sorted(told(users)) == [
        ("13", "created", 1),
        ("14", "created", 1),
        ("3", "deleted", 2),
        ("4", "deleted", 2),
    ]
    users.execute("ALTER TABLE users DROP CONSTRAINT users_pkey, ADD PRIMARY KEY (id) DEFERRABLE")
    users.execute("UPDATE users SET id = 27 - id WHERE id > 12")
    assert sorted(told(users)) == [("13", "updated", 2), ("14", "updated", 2)]
    users.execute("UPDATE users SET id = CASE id WHEN 13 THEN 15 ELSE id END, email = 'g'")
    assert sorted(told(users)) == [
        ("13", "deleted", 3),
        ("14", "updated", 3),
        ("15", "created", 1),
        ("2", "updated", 2),
    ]
    users.execute("UPDATE users SET id = 99, email = 'e' WHERE id = 2; UPDATE users SET email = 'f' WHERE id = 99")
    assert told(users)[-1] == ("99", "updated", 2)


def test_copy_conflicts_and_merge_are_told_row_by_row(users):
    with users.cursor().copy("COPY users (id, email) FROM STDIN") as copy:
        copy.write("1\ta\n2\tb\n")
    assert told(users) == [("1", "created", 1), ("2", "created", 1)]
    users.execute(
        "INSERT INTO users VALUES (2, 'c'), (3, 'd'), (1, 'a') ON CONFLICT (id) DO UPDATE SET email = excluded.email"
    )
    assert sorted(told(users)) == [("2", "updated", 2), ("3", "created", 1)]
    users.execute("INSERT INTO users VALUES (1, 'x') ON CONFLICT DO NOTHING")
    users.execute(
        "MERGE INTO users AS u USING (VALUES (1, 'm'), (2, NULL), (4, 'n')) AS s (id, email) ON u.id = s.id"
        " WHEN MATCHED AND s.email IS NULL THEN DELETE WHEN MATCHED THEN UPDATE SET email = s.email"
        " WHEN NOT MATCHED THEN INSERT (id, email) VALUES (s.id, s.email)"
    )
    assert sorted(told(users)) == [("1", "updated", 2), ("2", "deleted", 3), ("4", "created", 1)]
    users.execute(
        "MERGE INTO users AS u USING (VALUES ('x', 3), ('d', 0)) AS s (email, id) ON u.email = s.email"
        " WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT (id, email) VALUES (s.id, s.email)"
    )
    assert told(users) == [("3", "deleted", 2), ("3", "created", 3)]
    users.execute("WITH gone AS (DELETE FROM users WHERE id = 1 RETURNING id) INSERT INTO users SELECT id FROM gone")
    assert told(users) == [("1", "deleted", 3), ("1", "created", 4)]


def test_truncate_says_that_all_of_an_entity_are_gone(users):
    """In one event, as many as there were; also where another table's TRUNCATE cascades."""
    users.execute("INSERT INTO users VALUES (1), (2); CREATE TABLE region (id int PRIMARY KEY)")
    told(users)
    users.execute("TRUNCATE users")
    assert told(users) == [("*", "truncated", 1)]
    users.execute("ALTER TABLE users ADD COLUMN region int REFERENCES region")
    users.execute("TRUNCATE region CASCADE")
    assert told(users) == [("*", "truncated", 2)]


def test_rows_that_a_foreign_key_takes_along_are_told(users):
    users.execute(
        "CREATE TABLE orders (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), n int GENERATED ALWAYS AS IDENTITY,"
        " user_id bigint REFERENCES users ON DELETE CASCADE ON UPDATE CASCADE, twice bigint GENERATED ALWAYS AS"
        " (user_id * 2) STORED); SELECT relay.capture('orders')"
    )
    users.execute("INSERT INTO users VALUES (1), (2); INSERT INTO orders (user_id) VALUES (1), (1), (2)")
    told(users)
    users.execute("UPDATE users SET id = 5 WHERE id = 2")
    assert [action for _, action, _ in told(users)].count("updated") == 1
    users.execute("DELETE FROM users WHERE id = 1")
    assert sorted(action for _, action, _ in told(users)) == ["deleted"] * 3


def test_what_is_rolled_back_was_never_told(users):
    with users.transaction(force_rollback=True):
        users.execute("INSERT INTO users VALUES (1)")
    with users.transaction():
        users.execute("INSERT INTO users VALUES (2)")
        with users.transaction(force_rollback=True):
            users.execute("UPDATE users SET email = 'x'")
    assert told(users) == [("2", "created", 1)]


def test_a_plan_made_for_few_rows_is_none_for_many(users):
    """Sessions keep their plans, and a nested loop over 20,000 rows would take minutes."""
    users.execute("SET statement_timeout = '30s'")
    users.execute("INSERT INTO users VALUES (0)")
    for _ in range(8):
        users.execute("UPDATE users SET email = coalesce(email, '') || 'x'")
    users.execute("INSERT INTO users SELECT n FROM generate_series(1, 20000) AS n")
    for email in ("a", "b"):
        users.execute("UPDATE users SET email = %s", (email,))
    users.execute("UPDATE users SET id = -id")
    actions = users.execute(
        "SELECT convert_from(payload, 'UTF8')::json ->> 'action' AS a, count(*) FROM relay.outbox GROUP BY 1 ORDER BY 1"
    )
    assert actions.fetchall() == [("created", 20001 + 20000), ("deleted", 20000), ("updated", 8 + 2 * 20001)]
    assert users.execute("SELECT count(DISTINCT event_id) = count(*) FROM relay.outbox").fetchone() == (True,)


def test_concurrent_writers_of_one_row_get_versions_in_the_order_of_their_commits(users, any_database):
    users.execute("INSERT INTO users VALUES (1, ''), (2, '')")
    told(users)

    def write(name: str) -> None:
        with psycopg.connect(any_database, autocommit=True) as connection:
            left = 40
            while left:
                rows = "id IN (1, 2)" if left % 2 else "id = 1"
                # In which order a statement finds two rows is not ours to say: it may meet another one half way.
                with contextlib.suppress(psycopg.errors.DeadlockDetected):
                    connection.execute(f"UPDATE users SET email = %s WHERE {rows}", (f"{name}{left}",))
                    left -= 1

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = told(users)
    assert [version for id_, _, version in events if id_ == "1"] == list(range(2, 162))
    assert [version for id_, _, version in events if id_ == "2"] == list(range(2, 82))


def test_what_is_tracked_and_captured_is_told_once(users, any_database):
    """By the trigger, while there is one of that entity, and otherwise by the unit of work."""

    class Base(DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str | None]
        last_seen: Mapped[int] = mapped_column(default=0)

    engine = create_engine(any_database.replace("postgresql://", "postgresql+psycopg://"))
    track(User, entity="user")
    try:
        with Session(engine) as session:
            session.add_all([user := User(id=1, email="a"), User(id=2, email="b")])
            session.commit()
            assert told(users) == [("1", "created", 1), ("2", "created", 1)]
            user.email = "c"
            session.commit()
            session.execute(text("UPDATE users SET email = 'd' WHERE id = 2"))
            session.commit()
            assert told(users) == [("1", "updated", 2), ("2", "updated", 2)]
            users.execute("SELECT relay.capture('users', entity => 'person')")
            user.email = "f"
            session.commit()
            assert told(users) == [("1", "updated", 1), ("1", "updated", 3)]
            users.execute("SELECT relay.uncapture('users')")
            user.email = "e"
            session.commit()
            assert told(users) == [("1", "updated", 4)]
    finally:
        untrack(User)
        engine.dispose()


# Keys, names and tables of every kind


def test_quotes_schemas_and_searching_are_no_matter(db):
    db.execute("""CREATE SCHEMA "We ird"; CREATE TABLE "We ird"."O'r""der" ("I d" text PRIMARY KEY, "ü%" int)""")
    db.execute("""SELECT relay.capture('"We ird"."O''r""der"', entity => 'order', columns => '{ü%}')""")
    for id_ in ("a", 'b"\\/', "ключ", "x" * 1024):
        db.execute("""INSERT INTO "We ird"."O'r""der" VALUES (%s, 1)""", (id_,))
        db.execute("""UPDATE "We ird"."O'r""der" SET "ü%%" = 2 WHERE "I d" = %s""", (id_,))
        assert told(db) == [(id_, "created", 1), (id_, "updated", 2)]
    for id_ in ("", "x" * 1025, "a\nb"):
        with pytest.raises(psycopg.Error, match="RLY-103"):
            db.execute("""INSERT INTO "We ird"."O'r""der" VALUES (%s, 1)""", (id_,))
    assert db.execute("SELECT entity, key, columns FROM relay.captures").fetchall() == [("order", ["I d"], ["ü%"])]


def test_a_composite_key_is_one_id_that_no_other_key_has(db):
    db.execute("CREATE TABLE seat (hall text, row int, PRIMARY KEY (hall, row)); SELECT relay.capture('seat')")
    db.execute(r"""INSERT INTO seat VALUES ('a', 1), ('a:1', 1), (E'a\\', -1), (E'a\\:', 1)""")
    assert sorted(id_ for id_, *_ in told(db)) == sorted(["a:1", "a\\:1:1", "a\\\\:-1", "a\\\\\\::1"])


def test_an_id_does_not_hang_on_the_settings_of_the_session(db):
    db.execute("CREATE TABLE day (d date, e bool, n numeric, PRIMARY KEY (d, e, n)); SELECT relay.capture('day')")
    db.execute("SET datestyle = 'German'; SET standard_conforming_strings = off; SET timezone = 'Asia/Tokyo'")
    db.execute("INSERT INTO day VALUES ('2026-11-05', true, 1.50)")
    assert told(db) == [("2026-11-05:true:1.50", "created", 1)]


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("SELECT relay.capture(NULL)", "no such table"),
        ("SELECT relay.capture('relay.outbox')", "Relay's own"),
        ("SELECT relay.capture('pg_class')", "the system's"),
        ("CREATE VIEW v AS SELECT 1 AS id; SELECT relay.capture('v')", "no table that has triggers"),
        ("CREATE TABLE t (id int); SELECT relay.capture('t')", "no primary key"),
        ("CREATE TABLE t (id int); SELECT relay.capture('t', key => '{id}')", "id may be NULL"),
        ("CREATE TABLE t (id int NOT NULL); SELECT relay.capture('t', key => '{id}')", "no unique index"),
        ("CREATE TABLE t (id int PRIMARY KEY); SELECT relay.capture('t', key => '{ID}')", '"ID" is not there'),
        ("CREATE TABLE t (id int PRIMARY KEY); SELECT relay.capture('t', columns => '{x}')", "x is not there"),
        ("CREATE TABLE t (id timestamptz PRIMARY KEY); SELECT relay.capture('t')", "text is not the same everywhere"),
        ("CREATE TABLE t (id int PRIMARY KEY); SELECT relay.capture('t', entity => 'a b')", "RLY-102"),
        ("CREATE TABLE t (id int PRIMARY KEY); SELECT relay.capture('t', topic => 'a b')", "RLY-101"),
    ],
)
def test_what_cannot_be_captured_is_refused_and_left_alone(db, statement, fault):
    error = refused(db, statement)
    assert fault in str(error)
    assert error.diag.message_hint
    assert db.execute("SELECT count(*) FROM relay.captures").fetchone() == (0,)


def test_partitions_are_covered_through_their_table_and_directly(db):
    """Rows that move between partitions are updated, and only deleted and created if their key says so."""
    db.execute(
        "CREATE TABLE part (id int, place text, v int, PRIMARY KEY (id, place)) PARTITION BY LIST (place);"
        "CREATE TABLE part_a PARTITION OF part FOR VALUES IN ('a');"
        "CREATE TABLE part_b (v int, place text NOT NULL, id int NOT NULL);"
        "ALTER TABLE part ATTACH PARTITION part_b FOR VALUES IN ('b')"
    )
    db.execute("SELECT relay.capture('part', key => '{id}')")
    db.execute("INSERT INTO part VALUES (1, 'a', 0), (2, 'b', 0); INSERT INTO part_b VALUES (0, 'b', 3)")
    assert told(db) == [("1", "created", 1), ("2", "created", 1), ("3", "created", 1)]
    db.execute("UPDATE part SET place = 'b' WHERE id = 1")
    db.execute("UPDATE part_b SET v = 1 WHERE id = 3")
    db.execute("UPDATE part SET v = 2, place = 'a'")
    assert sorted(told(db)) == [
        (id_, "updated", version) for id_, version in [("1", 2), ("1", 3), ("2", 2), ("3", 2), ("3", 3)]
    ]
    db.execute("DELETE FROM part_a WHERE id = 1")
    assert told(db) == [("1", "deleted", 4)]


def test_a_later_partition_is_missing_until_its_table_is_captured_again(db):
    db.execute(
        "CREATE TABLE part (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);"
        "CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (0) TO (10);"
        "SELECT relay.capture('part', entity => 'thing', columns => '{v}');"
        "CREATE TABLE part_b PARTITION OF part FOR VALUES FROM (10) TO (20)"
    )
    missing = "SELECT relation::text, is_part, missing::text[] FROM relay.captures ORDER BY 1"
    assert db.execute(missing).fetchall() == [("part", False, ["part_b"]), ("part_a", True, [])]
    db.execute("INSERT INTO part VALUES (10, 1); INSERT INTO part_b VALUES (11, 1)")
    assert told(db) == [("10", "created", 1)]
    db.execute("SELECT relay.capture('part')")
    assert [row[2] for row in db.execute(missing)] == [[], [], []]
    db.execute("UPDATE part_b SET v = 2")
    assert sorted(told(db)) == [("10", "updated", 2), ("11", "updated", 1)]
    assert db.execute("SELECT DISTINCT entity, columns FROM relay.captures").fetchall() == [("thing", ["v"])]


def test_children_by_inheritance_are_covered(db):
    db.execute("CREATE TABLE animal (id int PRIMARY KEY, v int); CREATE TABLE dog (bark text) INHERITS (animal)")
    db.execute("SELECT relay.capture('animal')")
    db.execute("INSERT INTO dog VALUES (1, 0, 'w'), (1, 0, 'w'); INSERT INTO animal VALUES (2, 0)")
    assert told(db) == [("1", "created", 1), ("2", "created", 1)]
    db.execute("UPDATE animal SET v = 1")
    db.execute("DELETE FROM animal")
    assert sorted(told(db)) == [("1", "deleted", 3), ("1", "updated", 2), ("2", "deleted", 3), ("2", "updated", 2)]


def test_what_is_captured_survives_a_rename_and_goes_with_the_table(db):
    db.execute("CREATE TABLE old (id int PRIMARY KEY); SELECT relay.capture('old', entity => 'thing')")
    db.execute("ALTER TABLE old RENAME TO kept; CREATE TABLE old (id int PRIMARY KEY); SELECT relay.capture('old')")
    db.execute("INSERT INTO kept VALUES (1); INSERT INTO old VALUES (1)")
    assert [row[0] for row in db.execute("SELECT key FROM relay.outbox ORDER BY id")] == ["thing:1", "old:1"]
    functions = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'captured%'"
    assert db.execute(functions).fetchone() == (8,)
    db.execute("DROP TABLE kept; SELECT relay.uncapture('old')")
    assert db.execute(functions).fetchone() == (0,)
    assert db.execute("SELECT count(*) FROM relay.captures").fetchone() == (0,)


# Rights


def test_a_role_without_rights_changes_captured_tables_and_nothing_of_relay(users, app):
    """It sees no event and no function; it neither uncaptures nor forges, not even on tables of its own."""
    role = sql.Identifier(app.info.user)
    users.execute(sql.SQL("GRANT ALL ON users TO {}; GRANT CREATE ON SCHEMA public TO {}").format(role, role))
    app.execute("INSERT INTO users VALUES (1, 'a'), (2, 'b')")
    app.execute("UPDATE users SET email = 'c' WHERE id = 1; UPDATE users SET email = 'd'")
    app.execute("DELETE FROM users WHERE id = 1")
    app.execute("TRUNCATE users")
    assert len(told(users)) == 7
    app.execute("CREATE TABLE own (id bigint PRIMARY KEY, email text, last_seen int, doc json)")
    name = users.execute(
        "SELECT tgfoid::regproc::text FROM pg_trigger WHERE tgname = 'relay_capture_insert'"
    ).fetchone()[0]
    for statement in (
        "SELECT relay.uncapture('users')",
        "SELECT relay.capture('own')",
        "SELECT relay.touch_set('user', '{1}', 'updated', 't')",
        "SELECT relay.touch('user', '1')",
        "DROP TRIGGER relay_capture_insert ON users",
        "ALTER TABLE users DISABLE TRIGGER ALL",
        f"CREATE TRIGGER forged AFTER INSERT ON own REFERENCING NEW TABLE AS new_rows EXECUTE FUNCTION {name}()",
        f"SELECT {name}()",
        "SELECT * FROM relay.captures",
        "DELETE FROM relay.outbox",
        "SET session_replication_role = replica",
    ):
        assert refused(app, statement).sqlstate in ("42501", "42704"), statement
    assert told(users) == []


def test_nothing_in_a_search_path_stands_in_for_what_a_trigger_calls(users, app):
    """Operators, functions, types and tables of the writer's own, before those that are meant."""
    role = sql.Identifier(app.info.user)
    users.execute(sql.SQL("GRANT ALL ON users TO {}").format(role))
    app.execute(
        "CREATE SCHEMA evil;"
        "CREATE FUNCTION evil.steal() RETURNS text LANGUAGE plpgsql AS $$ BEGIN"
        "   RAISE EXCEPTION 'stolen as %', current_user; END $$;"
        "CREATE FUNCTION evil.eq(bigint, bigint) RETURNS bool LANGUAGE sql AS 'SELECT evil.steal() IS NULL';"
        "CREATE OPERATOR evil.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = evil.eq);"
        "CREATE FUNCTION evil.cat(text, text) RETURNS text LANGUAGE sql AS 'SELECT evil.steal()';"
        "CREATE OPERATOR evil.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.cat);"
        "CREATE FUNCTION evil.md5(text) RETURNS text LANGUAGE sql AS 'SELECT evil.steal()';"
        "CREATE FUNCTION evil.gen_random_uuid() RETURNS uuid LANGUAGE sql AS 'SELECT evil.steal()::uuid';"
        "CREATE FUNCTION evil.record_image_ne(anyelement, anyelement) RETURNS bool LANGUAGE sql"
        " AS 'SELECT evil.steal() IS NULL';"
        "CREATE TABLE evil.new_rows (id bigint); CREATE TABLE evil.old_rows (id bigint);"
        "SET search_path = evil, pg_catalog, public; CREATE TEMP TABLE new_rows (id bigint);"
        "CREATE TEMP TABLE old_rows (id bigint)"
    )
    app.execute("INSERT INTO users VALUES (1, 'a'), (2, 'b')")
    app.execute("UPDATE users SET email = 'c'")
    app.execute("UPDATE users SET email = 'd' WHERE id OPERATOR(pg_catalog.=) 1")
    app.execute("DELETE FROM users")
    assert len(told(users)) == 7


def test_the_triggers_belong_to_the_owner_of_the_schema(users):
    """Whoever installed them, so that they may do what the schema's owner may and no more."""
    owners = users.execute(
        "SELECT DISTINCT proowner = (SELECT relowner FROM pg_class WHERE oid = 'relay.outbox'::regclass), prosecdef,"
        " proconfig[1] LIKE 'search_path=pg_catalog, pg_temp' FROM pg_proc WHERE proname LIKE 'captured%'"
    )
    assert owners.fetchall() == [(True, True, True)]


# Installing


def test_installing_and_removing_under_load_fails_no_write_and_loses_none(users, any_database):
    """Writers come and go, one transaction stays open: between its tries the lock lets the writers on."""
    users.execute("SELECT relay.uncapture('users')")
    users.execute("INSERT INTO users SELECT n FROM generate_series(0, 7) AS n")
    stop, failed, written = threading.Event(), [], [0] * 4

    def write(number: int) -> None:
        with psycopg.connect(any_database, autocommit=True) as connection:
            connection.execute("SET lock_timeout = '5s'")
            while not stop.is_set():
                try:
                    connection.execute("UPDATE users SET email = coalesce(email, '') || 'x' WHERE id = %s", (number,))
                except psycopg.Error as error:
                    failed.append(error)
                    return
                written[number] += 1

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        with psycopg.connect(any_database) as idle:
            idle.execute("UPDATE users SET email = 'held' WHERE id = 7")
            done = threading.Thread(target=users.execute, args=("SELECT relay.capture('users', columns => '{}')",))
            done.start()
            before = sum(written)
            eventually(lambda: sum(written) > before + 200)
            assert done.is_alive()
        done.join(40)
        assert not done.is_alive()
        for _ in range(3):
            users.execute("SELECT relay.uncapture('users'); SELECT relay.capture('users')")
        told(users)
        since = list(written)
        eventually(lambda: all(now > then + 5 for now, then in zip(written, since, strict=True)))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    lengths = dict(users.execute("SELECT id::text, length(email) FROM users WHERE id < 4").fetchall())
    assert {id_: lengths[id_] for id_ in lengths} == {str(n): written[n] for n in range(4)}
    versions = dict(users.execute("SELECT id, version FROM relay.entity_version WHERE entity = 'users'").fetchall())
    assert all(0 < versions[str(n)] <= written[n] for n in range(4))


def test_a_lock_that_is_not_to_be_had_is_one_clear_error(db, any_database, monkeypatch):
    db.execute(USERS)
    body = db.execute("SELECT pg_get_functiondef('relay.lock_to_change(regclass,text)'::regprocedure)").fetchone()[0]
    assert "1 .. 20" in body
    db.execute(body.replace("1 .. 20", "1 .. 2").replace("< 20", "< 2"))
    with psycopg.connect(any_database) as holder:
        holder.execute("INSERT INTO users VALUES (1)")
        started = time.monotonic()
        said = relay("capture", "add", "users", settings={"RELAY_DATABASE_URL": any_database})
        assert time.monotonic() - started < 30
    assert said.returncode == 1
    assert said.stderr.startswith("RLY-142: the table public.users could not be locked")
    assert db.execute("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'users'::regclass").fetchone() == (0,)


# The command line


@one_major
def test_the_commands_add_list_and_remove(db, any_database):
    settings = {"RELAY_DATABASE_URL": any_database}
    db.execute(USERS)
    assert relay("capture", "list", settings=settings).stdout == "nothing is captured\n"
    added = relay("capture", "add", "users", "--entity", "user", "--column", "email", settings=settings)
    assert (added.returncode, added.stdout) == (0, "captured users as user, to relay.changes\n"), added.stderr
    listed = relay("capture", "list", settings=settings)
    assert listed.stdout.splitlines()[1].split() == ["users", "user", "id", "email", "complete"]
    assert listed.stdout.splitlines()[0].split("  ")[0] == "table"
    assert json.loads(relay("capture", "list", "--json", settings=settings).stdout) == [
        {
            "table": "users",
            "entity": "user",
            "topic": "relay.changes",
            "key": ["id"],
            "columns": ["email"],
            "is_complete": True,
            "is_part": False,
            "missing": [],
        }
    ]
    db.execute("ALTER TABLE users DISABLE TRIGGER relay_capture_update")
    assert relay("capture", "list", settings=settings).stdout.splitlines()[1].endswith("disabled")
    again = relay("capture", "add", "users", "--any-column", "--json", settings=settings)
    assert json.loads(again.stdout)[0]["columns"] is None
    removed = relay("capture", "remove", "users", settings=settings)
    assert (removed.returncode, removed.stdout) == (0, "users is captured no more\n")
    twice = relay("capture", "remove", "users", settings=settings)
    assert (twice.returncode, twice.stderr.split(":")[0]) == (1, "RLY-141")
    unknown = relay("capture", "add", "nobody", settings=settings)
    assert (unknown.returncode, unknown.stderr) == (
        1,
        "RLY-140: there is no table nobody. Fix: name it as in SQL: schema.table, quoted if need be\n",
    )


def test_the_printed_sql_does_the_same(db):
    db.execute("""CREATE TABLE "O'r der" (id int PRIMARY KEY, "a,b" int)""")
    printed = relay("capture", "add", '''"O'r der"''', "--entity", "order", "--column", "a,b", "--sql")
    assert printed.returncode == 0, printed.stderr
    db.execute(printed.stdout)
    with_columns = "SELECT entity, columns FROM relay.captures"
    assert db.execute(with_columns).fetchall() == [("order", ["a,b"])]
    db.execute(relay("capture", "remove", '''"O'r der"''', "--sql").stdout)
    assert db.execute(with_columns).fetchall() == []


def test_a_table_is_named_by_one_who_may_not_and_that_is_said(users, any_database, app):
    said = relay(
        "capture", "list", settings={"RELAY_DATABASE_URL": any_database.replace("postgres@", f"{app.info.user}@")}
    )
    assert said.returncode != 0
    assert said.stderr.startswith("RLY-501")
    assert captures.capture_statement("a", captures.Rules()).as_string(None) == "SELECT relay.capture('a'::regclass)"


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_capture_that_ended_after_a_snapshot_was_taken_leaves_the_event_to_the_orm(database, isolation):
    """The snapshot still shows the triggers, and the change fires none."""
    flush = (
        "SELECT relay.touch_uncaptured(ARRAY['item'], ARRAY['1'], ARRAY['updated'], NULL, NULL, '{}', ARRAY['item'],"
        " ARRAY['item'::regclass])"
    )
    with psycopg.connect(database, autocommit=True) as owner, psycopg.connect(database, autocommit=True) as writer:
        owner.execute("CREATE TABLE item (id int PRIMARY KEY, n int); INSERT INTO item VALUES (1, 1)")
        owner.execute("SELECT relay.capture('item')")
        writer.execute(f"BEGIN ISOLATION LEVEL {isolation}")
        writer.execute("SELECT 1")
        owner.execute("SELECT relay.uncapture('item')")
        writer.execute("UPDATE item SET n = 2")
        assert writer.execute(flush).fetchone() == ([1],)
        writer.execute("COMMIT")
        assert owner.execute("SELECT key FROM relay.outbox").fetchall() == [("item:1",)]
