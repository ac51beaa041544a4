"""The unit of work writes the events: whatever changes a row of a tracked class tells of it, or is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy import event, func
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from relay.errors import CODES, EventError
from relay.outbox import Change, touch, touch_many, track, untrack, version_of
from relay.schema.grants import grants
from tests.integration.test_outbox import async_engine, engine, execute, outbox, query, settled
from tests.support import postgres

KINDS = ["Session", "AsyncSession-asyncpg", "AsyncSession-psycopg_async"]


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str | None]
    seen: Mapped[int] = mapped_column(default=0)
    gone_at: Mapped[datetime | None]
    orders: Mapped[list[Order]] = relationship(back_populates="user", cascade="all, delete-orphan")


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(sa.ForeignKey("users.id", ondelete="CASCADE"))
    user: Mapped[User | None] = relationship(back_populates="orders")


class Line(Base):
    __tablename__ = "lines"
    order: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int] = mapped_column(default=1)


class Token(Base):
    __tablename__ = "tokens"
    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    is_void: Mapped[bool] = mapped_column(server_default=sa.false())
    note: Mapped[str | None]


class Employee(Base):
    __tablename__ = "employees"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__: ClassVar = {"polymorphic_on": "kind", "polymorphic_identity": "employee"}


class Clerk(Employee):
    __mapper_args__: ClassVar = {"polymorphic_identity": "clerk"}


class Manager(Employee):
    __tablename__ = "managers"
    id: Mapped[int] = mapped_column(sa.ForeignKey("employees.id"), primary_key=True)
    bonus: Mapped[int]
    __mapper_args__: ClassVar = {"polymorphic_identity": "manager"}


class Visitor(Employee):
    __tablename__ = "visitors"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__: ClassVar = {"concrete": True, "polymorphic_identity": "visitor"}


class Node(Base):
    __tablename__ = "nodes"
    id: Mapped[int] = mapped_column(primary_key=True)
    favorite_id: Mapped[int | None] = mapped_column(sa.ForeignKey("nodes.id"))
    favorite: Mapped[Node | None] = relationship(remote_side="Node.id", post_update=True)


class Country(Base):
    __tablename__ = "countries"
    code: Mapped[str] = mapped_column(primary_key=True)


class City(Base):
    __tablename__ = "cities"
    id: Mapped[int] = mapped_column(primary_key=True)
    country: Mapped[str | None] = mapped_column(
        sa.ForeignKey("countries.code", ondelete="SET NULL", onupdate="CASCADE")
    )


class Namesake(Base):
    __tablename__ = "namesakes"
    id: Mapped[int] = mapped_column(primary_key=True)


Namesake.__name__ = "Order"
CLASSES = (User, Order, Line, Token, Employee, Clerk, Manager, Visitor, Node, Country, City, Namesake)


@pytest.fixture(autouse=True)
def _untracked() -> Iterator[None]:
    yield
    untrack(*CLASSES)


@contextmanager
def tables(dsn: str) -> Iterator[sa.Engine]:
    with engine(dsn) as on:
        Base.metadata.create_all(on)
        yield on


@pytest.fixture(scope="module")
def shared(pg) -> Iterator[sa.Engine]:
    dsn = postgres.fresh_database(pg)
    with tables(dsn) as made:
        yield made
    postgres.drop_database(pg, dsn)


@pytest.fixture
def on(shared) -> sa.Engine:
    """An engine on a database with the tables of this module, which are empty."""
    names = ", ".join(["relay.outbox", "relay.entity_version", *Base.metadata.tables])
    with shared.begin() as connection:
        connection.execute(sa.text(f"TRUNCATE {names} RESTART IDENTITY"))
    return shared


@pytest.fixture
def own(database) -> Iterator[sa.Engine]:
    """As `on`, for tests that change the schema."""
    with tables(database) as made:
        yield made


def dsn_of(on: sa.Engine) -> str:
    return on.url.set(drivername="postgresql").render_as_string(hide_password=False)


def events(on: sa.Engine) -> list[tuple[str, str, int]]:
    """Key, action and version of each event, in the order of their ids."""
    return [(e["key"], e["headers"]["action"], int(e["headers"]["version"])) for e in outbox(dsn_of(on))]


def changes(on: sa.Engine) -> set[tuple[str, str]]:
    """Key and action of each event since the last look, none of them twice."""
    found = [(key, action) for key, action, _ in events(on)]
    with on.begin() as connection:
        connection.execute(sa.text("DELETE FROM relay.outbox"))
    assert len(found) == len(set(found))
    return set(found)


@contextmanager
def statements(on: sa.Engine) -> Iterator[list[str]]:
    """What the engine sends."""
    sent: list[str] = []

    def listen(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(on, "before_cursor_execute", listen)
    yield sent
    event.remove(on, "before_cursor_execute", listen)


def play(dsn: str, kind: str, *scenes: Callable[[Session], None]) -> None:
    """Each scene in a transaction of its own, through this kind of session."""
    name, _, driver = kind.partition("-")
    if name == "Session":
        with engine(dsn) as on:
            for scene in scenes:
                with Session(on) as session, session.begin():
                    scene(session)
        return

    async def play_async() -> None:
        async with async_engine(dsn, driver) as on:
            for scene in scenes:
                async with AsyncSession(on) as session, session.begin():
                    await session.run_sync(scene)

    asyncio.run(play_async())


# The unit of work


@pytest.mark.parametrize("kind", KINDS)
def test_every_insert_update_and_delete_has_its_event(any_database, kind):
    """In the same transaction, through any session: what is committed has its events, with versions that count on."""
    track(User, Line)

    def create(session: Session) -> None:
        ann = User(name="Ann")
        session.add_all([ann, User(name="Bob"), Line(order="a", number=1)])
        session.flush()
        assert version_of(session, ann) == 1

    def change(session: Session) -> None:
        ann, bob = session.scalars(sa.select(User).order_by(User.id))
        ann.name = "Anna"
        session.delete(bob)

    with tables(any_database) as on:
        play(any_database, kind, create, change)
        assert sorted(events(on)) == [
            ("line:a:1", "created", 1),
            ("user:1", "created", 1),
            ("user:1", "updated", 2),
            ("user:2", "created", 1),
            ("user:2", "deleted", 2),
        ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_rolled_back_leaves_nothing(any_database, kind):
    """Neither a transaction, nor a savepoint, nor a flush that failed; and versions are those that are left."""
    track(User)

    def scene(session: Session) -> None:
        ann = User(id=1, name="Ann")
        session.add(ann)
        session.flush()
        inner = session.begin_nested()
        ann.name = "inner"
        session.flush()
        assert version_of(session, ann) == 2
        inner.rollback()
        assert version_of(session, ann) == 1
        with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
            session.add_all([User(id=2, name="Bob"), User(id=3, name=None)])
        with session.begin_nested():
            ann.name = "outer"
        assert version_of(session, ann) == 2

    def gone(session: Session) -> None:
        session.add(User(id=9, name="Eve"))
        session.flush()
        raise LookupError

    with tables(any_database) as on:
        with pytest.raises(LookupError):
            play(any_database, kind, scene, gone)
        assert events(on) == [("user:1", "created", 1), ("user:1", "updated", 2)]


def test_a_flush_sends_one_statement_more_and_sends_it_last(on):
    """However many objects of however many classes it changes; a flush that changes none sends nothing more."""

    def flush(count: int) -> list[str]:
        with Session(on) as session, session.begin():
            session.add_all([each for n in range(count) for each in (User(name=f"u{n}"), Line(order="o", number=n))])
            with statements(on) as sent:
                session.flush()
            session.rollback()
        return sent

    alone = flush(300)
    track(User, Line, topic="t")
    tracked = flush(300)
    assert len(tracked) == len(alone) + 1
    assert "touch_uncaptured" in tracked[-1]
    with Session(on) as session, session.begin():
        session.add(Country(code="at"))
        with statements(on) as sent:
            session.flush()
    assert len(sent) == 1


def test_events_follow_the_order_of_commits(on):
    """A second writer of a row has no version and no event before the first one has committed."""
    track(User)
    with Session(on) as session, session.begin():
        session.add(User(id=1, name="Ann"))

    def second_writes() -> None:
        with Session(on) as session, session.begin():
            session.get_one(User, 1).name = "second"

    with ThreadPoolExecutor(1) as thread, Session(on) as first:
        ann = first.get_one(User, 1)
        ann.name = "first"
        first.flush()
        writing = thread.submit(second_writes)
        settled(dsn_of(on), writing)
        ann.name = "first again"
        first.commit()
        writing.result(60)
    with on.begin() as connection:
        assert connection.scalar(sa.text("SELECT name FROM users")) == "second"
    assert events(on) == [
        ("user:1", "created", 1),
        ("user:1", "updated", 2),
        ("user:1", "updated", 3),
        ("user:1", "updated", 4),
    ]


def test_two_flushes_of_a_transaction_are_two_versions(on):
    """The version that `version_of` gave after the first was true then, and is not taken back."""
    track(User)
    with Session(on) as session:
        ann = User(name="Ann")
        session.add(ann)
        session.flush()
        ann.name = "Anna"
        session.flush()
        assert version_of(session, ann) == 2
        session.commit()
        assert ann.name == "Anna"
        assert version_of(session, ann) == 2
        session.add(bob := User(name="Bob"))
        session.commit()
        assert (version_of(session, ann), version_of(session, bob)) == (None, 1)
    assert [version for key, _, version in events(on) if key == "user:1"] == [1, 2]


def test_a_session_without_a_transaction_is_refused_before_anything_is_flushed(on):
    """In autocommit the change would stay when its event is refused."""
    track(User)
    with Session(on.execution_options(isolation_level="AUTOCOMMIT")) as session:
        session.add(User(name="Ann"))
        with pytest.raises(EventError, match="RLY-112"):
            session.flush()
        session.rollback()
        with pytest.raises(EventError, match="RLY-112"):
            session.execute(sa.insert(User).values(name="Bob"))
    with on.begin() as connection:
        assert connection.scalar(sa.select(func.count()).select_from(User)) == 0


def test_another_database_is_refused():
    """A model that is tracked and written elsewhere has no outbox there."""
    track(Country)
    other = sa.create_engine("sqlite://")
    Base.metadata.create_all(other, tables=[Country.__table__])
    with Session(other) as session:
        session.add(Country(code="at"))
        with pytest.raises(EventError, match="RLY-111"):
            session.flush()
    with Session(other.execution_options(relay="skip")) as session:
        session.add(Country(code="at"))
        session.commit()
    other.dispose()


# What is a change


def test_columns_that_do_not_matter_make_no_event(on):
    """Nor does a value that is set to what it was, nor a relationship that writes no row of the object."""
    track(User, ignore=[User.seen])
    track(Line, columns=["amount"])
    with Session(on) as session:
        session.add_all([User(id=1, name="Ann"), Line(order="o", number=1)])
        session.commit()
        changes(on)
        user, line = session.get_one(User, 1), session.get_one(Line, ("o", 1))
        user.seen = 7
        user.name = "Ann"
        user.orders.append(Order(id=1))
        line.amount = 1
        session.commit()
        assert changes(on) == set()
        user.seen, user.email = 8, "a@b"
        line.amount = 2
        session.commit()
        assert changes(on) == {("user:1", "updated"), ("line:o:1", "updated")}
        user.seen = User.seen + 1
        line.amount = Line.amount + 1
        session.commit()
        assert changes(on) == {("line:o:1", "updated")}


def test_what_a_hook_of_the_application_changes_at_the_last_moment_counts(on):
    """The application's own before_update may run after ours."""
    track(User, columns=[User.email])

    def late(mapper: Any, connection: Any, user: User) -> None:
        user.email = "late@b"

    event.listen(User, "before_update", late)
    try:
        with Session(on) as session:
            session.add(User(id=1, name="Ann"))
            session.commit()
            session.get_one(User, 1).name = "Anna"
            session.commit()
    finally:
        event.remove(User, "before_update", late)
    assert changes(on) == {("user:1", "created"), ("user:1", "updated")}


def test_rows_that_relationships_change_have_their_events(on):
    """Foreign keys that the unit of work sets, orphans that it deletes, and updates that it sends apart."""
    track(User, Order, Node)
    with Session(on) as session:
        user = User(id=1, name="Ann", orders=[Order(id=1), Order(id=2), Order(id=3)])
        session.add_all([user, node := Node(id=1), Node(id=2)])
        session.commit()
        changes(on)
        user.orders.pop(0)
        user.orders[0].user = other = User(id=2, name="Bob")
        session.commit()
        assert changes(on) == {("order:1", "deleted"), ("user:2", "created"), ("order:2", "updated")}
        node.favorite = session.get_one(Node, 2)
        session.commit()
        assert changes(on) == {("node:1", "updated")}
        session.delete(other)
        session.commit()
        assert changes(on) == {("user:2", "deleted"), ("order:2", "deleted")}


def test_payloads_are_made_of_the_objects(on):
    """After the flush, so that what the database has filled in is there; a deletion has none."""
    track(User, payload=lambda user: {"id": user.id, "name": user.name})
    with Session(on) as session, session.begin():
        session.add(User(name="Änn"))
        session.flush()
        session.execute(sa.update(User).values(name="Anna"))
        session.delete(session.get_one(User, 1))
    found = [json.loads(e["payload"]).get("payload") for e in outbox(dsn_of(on))]
    assert found == [{"id": 1, "name": "Änn"}, {"id": 1, "name": "Anna"}, None]


# Keys


def test_keys_of_all_kinds_become_ids(on):
    """Composite ones without two of them becoming one, and those that the database makes."""
    track(Line, Token)
    with Session(on) as session:
        session.add_all([Line(order="a:1", number=2), Line(order="a", number=1), Line(order="\\", number=1)])
        session.add(token := Token())
        session.commit()
        assert changes(on) == {
            ("line:a\\:1:2", "created"),
            ("line:a:1", "created"),
            ("line:\\\\:1", "created"),
            (f"token:{token.id}", "created"),
        }


def test_a_changed_key_is_a_deletion_and_a_change(on):
    """And an object that takes the place of a deleted one in the same flush is there."""
    track(Line, Country)
    with Session(on) as session:
        session.add_all([Line(order="a", number=1), Country(code="at")])
        session.commit()
        changes(on)
        session.get_one(Line, ("a", 1)).number = 2
        session.commit()
        assert changes(on) == {("line:a:1", "deleted"), ("line:a:2", "updated")}
        session.delete(session.get_one(Line, ("a", 2)))
        session.add(Line(order="a", number=2, amount=5))
        session.commit()
        assert changes(on) == {("line:a:2", "created")}


# Inheritance


def test_subclasses_are_tracked_with_their_base(on):
    """Single and joined tables share the entity; a concrete class has keys, and so a name, of its own."""
    track(Employee)
    with Session(on) as session:
        session.add_all([Employee(id=1, name="e"), Clerk(id=2, name="c"), Manager(id=3, name="m", bonus=1)])
        session.add(Visitor(id=1, kind="visitor", name="v"))
        session.commit()
        assert changes(on) == {
            *((f"employee:{n}", "created") for n in (1, 2, 3)),
            ("visitor:1", "created"),
        }
        session.get_one(Manager, 3).bonus = 2
        session.commit()
        assert changes(on) == {("employee:3", "updated")}
        session.delete(session.get_one(Manager, 3))
        session.commit()
        assert changes(on) == {("employee:3", "deleted")}


def test_the_nearest_tracked_class_has_the_say(on):
    """And a base that is not tracked itself is left alone."""
    track(Employee, ignore=["name"])
    track(Manager, entity="employee", columns=["name"])
    with Session(on) as session:
        session.add_all([Clerk(id=1, name="c"), Manager(id=2, name="m", bonus=1)])
        session.commit()
        changes(on)
        session.get_one(Clerk, 1).name = "cc"
        session.get_one(Manager, 2).name = "mm"
        session.commit()
        assert changes(on) == {("employee:2", "updated")}
    untrack(Employee)
    with Session(on) as session:
        session.get_one(Clerk, 1).name = "ccc"
        session.get_one(Manager, 2).name = "mmm"
        session.commit()
    assert changes(on) == {("employee:2", "updated")}


# Soft deletions


def test_a_soft_deletion_is_a_deletion(on):
    """By a column, whether it is loaded or not, set by us, by the database, or by a statement; and back again."""
    track(User, deleted=User.gone_at)
    track(Token, deleted="is_void")
    now = datetime.now(UTC).replace(tzinfo=None)
    with Session(on) as session:
        session.add_all([user := User(id=1, name="Ann"), User(id=2, name="Bob"), token := Token()])
        session.commit()
        key = f"token:{token.id}"
        assert changes(on) == {("user:1", "created"), ("user:2", "created"), (key, "created")}
        user.gone_at = now
        session.commit()
        assert changes(on) == {("user:1", "deleted")}
        user.name = "Anna"  # what has expired with the commit is not loaded for this
        token.note = "n"
        session.commit()
        assert changes(on) == {("user:1", "deleted"), (key, "updated")}
        user.gone_at = None
        session.commit()
        assert changes(on) == {("user:1", "updated")}
        user.gone_at = func.now()
        session.commit()
        assert changes(on) == {("user:1", "deleted")}
        session.execute(sa.update(User).values(name="x"))
        session.commit()
        assert changes(on) == {("user:1", "deleted"), ("user:2", "updated")}


def test_a_rule_may_be_a_function_of_the_object(on):
    """For states that a column alone does not tell."""
    track(User, deleted=lambda user: user.name == "gone")
    with Session(on) as session:
        session.add_all([user := User(id=1, name="Ann"), User(id=2, name="Bob")])
        session.commit()
        changes(on)
        user.name = "gone"
        session.commit()
        assert changes(on) == {("user:1", "deleted")}
        session.execute(sa.update(User).where(User.id == 2).values(name="gone"))
        session.commit()
        assert changes(on) == {("user:2", "deleted")}


# Statements


def by_key(session: Session) -> None:
    session.execute(sa.update(User), [{"id": 1, "name": "x"}, {"id": 2, "seen": 5}])


def with_rowcount(session: Session) -> None:
    assert session.execute(sa.update(User).where(User.id < 3).values(name="x")).rowcount == 2


def with_returning(session: Session) -> None:
    result = session.execute(sa.update(User).where(User.id < 3).values(name="x").returning(User.name, User.seen))
    assert result.all() == [("x", 0), ("x", 0)]


def deleting_with_returning(session: Session) -> None:
    assert session.scalars(sa.delete(User).where(User.id < 3).returning(User.name)).all() == ["u1", "u2"]


def inserting_objects(session: Session) -> None:
    rows = [{"id": 11, "name": "a"}, {"id": 12, "name": "b"}]
    assert [user.name for user in session.scalars(sa.insert(User).returning(User), rows)] == ["a", "b"]


def inserting_columns(session: Session) -> None:
    result = session.execute(sa.insert(User).values(id=11, name="a").returning(User.name, User.id))
    assert result.all() == [("a", 11)]


def upserting(session: Session) -> None:
    statement = upsert(User).values([{"id": 1, "name": "x"}, {"id": 11, "name": "y"}])
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"name": statement.excluded.name}))


def inserting_what_is_new(session: Session) -> None:
    session.execute(upsert(User).values([{"id": 1, "name": "x"}, {"id": 11, "name": "y"}]).on_conflict_do_nothing())


def inserting_from_a_query(session: Session) -> None:
    query = sa.select(User.id + 10, User.name, sa.literal(0)).where(User.id < 3)
    session.execute(sa.insert(User).from_select(["id", "name", "seen"], query))


CAPTURED: dict[str, tuple[Callable[[Session], Any], set[tuple[str, str]]]] = {
    "update": (with_rowcount, {("user:1", "updated"), ("user:2", "updated")}),
    "update returning": (with_returning, {("user:1", "updated"), ("user:2", "updated")}),
    "update by key": (by_key, {("user:1", "updated")}),
    "update of what does not matter": (lambda s: s.execute(sa.update(User).values(seen=1)), set()),
    "update of nothing": (lambda s: s.execute(sa.update(User).where(User.id > 99).values(name="x")), set()),
    "update with parameters": (
        lambda s: s.execute(sa.update(User).where(User.id == sa.bindparam("u")), {"u": 3, "name": "x"}),
        {("user:3", "updated")},
    ),
    "update unsynchronized": (
        lambda s: s.execute(
            sa.update(User).where(User.id == 1).values(name="x"), execution_options={"synchronize_session": False}
        ),
        {("user:1", "updated")},
    ),
    "update of a query": (lambda s: s.query(User).filter_by(id=3).update({"name": "x"}), {("user:3", "updated")}),
    "delete": (lambda s: s.execute(sa.delete(User).where(User.id == 3)), {("user:3", "deleted")}),
    "delete returning": (deleting_with_returning, {("user:1", "deleted"), ("user:2", "deleted")}),
    "delete of a query": (lambda s: s.query(User).filter_by(id=3).delete(), {("user:3", "deleted")}),
    "insert": (lambda s: s.execute(sa.insert(User).values(id=11, name="a")), {("user:11", "created")}),
    "insert of one": (lambda s: s.execute(sa.insert(User), {"id": 11, "name": "a"}), {("user:11", "created")}),
    "insert of many": (
        lambda s: s.execute(sa.insert(User), [{"id": n, "name": "a"} for n in (11, 12)]),
        {("user:11", "created"), ("user:12", "created")},
    ),
    "insert of values": (
        lambda s: s.execute(sa.insert(User).values([{"id": n, "name": "a"} for n in (11, 12)])),
        {("user:11", "created"), ("user:12", "created")},
    ),
    "insert returning objects": (inserting_objects, {("user:11", "created"), ("user:12", "created")}),
    "insert returning columns": (inserting_columns, {("user:11", "created")}),
    "insert from a query": (inserting_from_a_query, {("user:11", "created"), ("user:12", "created")}),
    "upsert": (upserting, {("user:1", "updated"), ("user:11", "updated")}),
    "insert of what is new": (inserting_what_is_new, {("user:11", "created")}),
}


@pytest.fixture
def three(on) -> sa.Engine:
    """Three users, who are tracked. Nobody has orders."""
    with on.begin() as connection:
        connection.execute(sa.insert(User.__table__), [{"id": n, "name": f"u{n}"} for n in (1, 2, 3)])
    track(User, ignore=["seen"])
    return on


@pytest.mark.parametrize("name", CAPTURED)
def test_statements_of_the_orm_are_captured(three, name):
    """With their results as they would be untracked, their objects synchronized, and one statement more."""
    run, expected = CAPTURED[name]
    with Session(three) as session:
        run(session)
        session.commit()
    assert changes(three) == expected


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
def test_statements_of_asynchronous_sessions_are_captured(three, driver):
    def scene(session: Session) -> None:
        for name in ("update", "insert of many", "delete"):
            CAPTURED[name][0](session)

    play(dsn_of(three), f"AsyncSession-{driver}", scene)
    assert changes(three) == set().union(*(CAPTURED[name][1] for name in ("update", "insert of many", "delete")))


def test_a_captured_statement_flushes_first_and_costs_one_more(three):
    """So the events of objects come before those of the statement that sees their rows."""
    with Session(three) as session:
        session.add(User(id=4, name="u4"))
        session.flush()
        with statements(three) as sent:
            session.execute(sa.update(User).values(name="x"))
        session.commit()
    assert len(sent) == 2
    assert [e for e in events(three) if e[0] == "user:4"] == [("user:4", "created", 1), ("user:4", "updated", 2)]


def from_a_listener(session: Session) -> None:
    def listen(mapper: Any, connection: Any, user: User) -> None:
        connection.execute(sa.update(User.__table__).values(seen=1))

    event.listen(User, "after_insert", listen)
    try:
        session.add(User(id=9, name="x"))
        session.flush()
    finally:
        event.remove(User, "after_insert", listen)


TABLE = User.__table__
REFUSED: dict[str, Callable[[Session], Any]] = {
    "bulk_save_objects": lambda s: s.bulk_save_objects([User(id=9, name="x")]),
    "bulk_insert_mappings": lambda s: s.bulk_insert_mappings(User, [{"id": 9, "name": "x"}]),
    "bulk_update_mappings": lambda s: s.bulk_update_mappings(User, [{"id": 1, "name": "x"}]),
    "core update": lambda s: s.execute(sa.update(TABLE).values(name="x")),
    "core update with an orm condition": lambda s: s.execute(sa.update(TABLE).where(User.id == 1).values(name="x")),
    "core insert": lambda s: s.execute(sa.insert(TABLE), [{"id": 9, "name": "x"}]),
    "core delete": lambda s: s.connection().execute(sa.delete(TABLE)),
    "within a CTE": lambda s: s.execute(
        sa.select(sa.update(TABLE).values(name="x").returning(TABLE.c.id).cte("changed").c.id)
    ),
    "update of the key": lambda s: s.execute(sa.update(User).where(User.id == 1).values(id=9)),
    "update by key with a condition": lambda s: s.execute(
        sa.update(User).where(User.name == "u1"),
        [{"id": 1, "name": "x"}],
        execution_options={"synchronize_session": None},
    ),
    "upsert of the key": lambda s: s.execute(
        upsert(User).values(id=1, name="x").on_conflict_do_update(index_elements=["id"], set_={"id": 9})
    ),
    "from a listener within a flush": from_a_listener,
}


FAILING = {"bulk_save_objects", "bulk_insert_mappings", "bulk_update_mappings", "from a listener within a flush"}
"""What is a flush to SQLAlchemy, so that its failure ends the transaction."""


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_refused_and_not_sent(three, name):
    """With the class and what to do instead."""
    with Session(three) as session:
        with pytest.raises(EventError, match=r"RLY-131.*class User.*Fix: ") as caught:
            REFUSED[name](session)
        assert caught.value.meaning == CODES["RLY-131"]
        session.rollback() if name in FAILING else session.commit()
    with three.begin() as connection:
        rows = connection.execute(sa.text("SELECT id, name, seen FROM users ORDER BY id")).all()
    assert rows == [(n, f"u{n}", 0) for n in (1, 2, 3)]
    assert changes(three) == set()


def test_a_statement_on_a_class_above_the_tracked_one_is_refused(on):
    """Its rows may be those of the tracked class."""
    track(Manager)
    with Session(on) as session:
        with pytest.raises(EventError, match=r"RLY-131.*class Manager"):
            session.execute(sa.update(Employee).values(name="x"))
        with pytest.raises(EventError, match=r"RLY-131.*other tables"):
            session.execute(sa.delete(Manager))


@pytest.mark.parametrize(
    "name", sorted(REFUSED.keys() - {"update by key with a condition", "from a listener within a flush"})
)
def test_who_takes_care_himself_says_so(three, name):
    """relay="skip" on the connection of the session lets everything through, without events; a typo is refused."""
    with Session(three) as session:
        session.connection(execution_options={"relay": "skip"})
        REFUSED[name](session)
        session.add(User(id=20, name="quiet"))
        session.execute(sa.update(User).where(User.id == 3).values(name="quiet"))
        session.commit()
        with pytest.raises(EventError, match=r"RLY-131.*skip"):
            session.execute(sa.update(User).values(name="x"), execution_options={"relay": "slip"})
        session.rollback()
        session.execute(sa.update(User).values(name="x"), execution_options={"relay": "skip"})
        session.execute(sa.update(TABLE).values(name="y").execution_options(relay="skip"))
        session.commit()
    assert changes(three) == set()


# What the database does by itself


def test_rows_that_the_database_would_delete_unseen_are_not(on):
    """A cascade of the database is refused where the unit of work does not come before it; nothing is deleted then."""
    track(City)
    with Session(on) as session:
        session.add(Country(code="at"))
        session.flush()
        session.add(City(id=1, country="at"))
        session.commit()
        session.delete(session.get_one(Country, "at"))
        with pytest.raises(EventError, match=r"RLY-132.*Country.*City"):
            session.flush()
        session.rollback()
        session.get_one(Country, "at").code = "de"
        with pytest.raises(EventError, match=r"RLY-132.*Country.*City"):
            session.flush()
        session.rollback()
        with pytest.raises(EventError, match="RLY-132"):
            session.execute(sa.delete(Country))
        untrack(City)
        session.execute(sa.delete(Country))
        session.commit()
        track(Order)
        with pytest.raises(EventError, match=r"RLY-132.*User.*Order"):
            session.execute(sa.delete(User))
        session.add(user := User(id=1, name="Ann", orders=[Order(id=1)]))
        session.commit()
        session.delete(user)
        session.commit()
    assert changes(on) == {("city:1", "created"), ("order:1", "created"), ("order:1", "deleted")}


SEEN = "CREATE FUNCTION relay.seen() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
SEEING = """EXECUTE FUNCTION relay.seen('{"entity":"user"}')"""


def test_a_capture_trigger_has_the_say(own):
    """Where one of Relay's triggers covers a table, tracking is silent; without a restart, and until it is gone."""
    track(User, Line)
    with own.begin() as connection:
        connection.execute(
            sa.text("CREATE FUNCTION relay.seen() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        )

    def write(number: int) -> tuple[int | None, int | None]:
        with Session(own) as session:
            session.add_all([user := User(id=number, name="x"), line := Line(order="o", number=number)])
            session.commit()
            return version_of(session, user), version_of(session, line)

    def trigger(when: str) -> None:
        with own.begin() as connection:
            connection.execute(sa.text(f"CREATE OR REPLACE TRIGGER seen {when} ON users {SEEING}"))

    trigger("AFTER UPDATE")
    assert write(1) == (1, 1)
    assert changes(own) == {("user:1", "created"), ("line:o:1", "created")}
    trigger("AFTER INSERT OR UPDATE OR DELETE")
    assert write(2) == (None, 1)
    assert changes(own) == {("line:o:2", "created")}
    with own.begin() as connection:
        connection.execute(sa.text("DROP TRIGGER seen ON users"))
    assert write(3) == (1, 1)


def test_names_of_tables_that_are_translated_are_found(own):
    """A trigger counts in the schema that the connection writes to."""
    with own.begin() as connection:
        connection.execute(sa.text('CREATE SCHEMA "Tenant 1"'))
    tenant = own.execution_options(schema_translate_map={None: "Tenant 1"})
    Base.metadata.create_all(tenant)
    track(User)
    with own.begin() as connection:
        connection.execute(
            sa.text("CREATE FUNCTION relay.seen() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        )
        connection.execute(
            sa.text(f'CREATE TRIGGER seen AFTER INSERT OR UPDATE OR DELETE ON "Tenant 1".users {SEEING}')
        )
    for engine_ in (own, tenant):
        with Session(engine_) as session:
            session.add(User(id=1, name="x"))
            session.commit()
    assert events(own) == [("user:1", "created", 1)]


# touch_many


@pytest.mark.parametrize("kind", KINDS)
def test_many_changes_are_what_as_many_touches_would_be(any_database, kind):
    """Byte for byte but for the time, in the order given, with a version for each occurrence of an entity."""
    given = [
        Change("user", 2, payload={"a": ["ä", None]}),
        Change("user", "b:'\"\\", "created", "other"),
        Change("user", 2, "deleted"),
        Change("order", UUID(int=7)),
        Change("user", "2"),
    ]

    def one_by_one(session: Session) -> None:
        touch(session, "user", 2)
        for one in given:
            touch(session, one.entity, one.id, one.action, topic=one.topic, payload=one.payload, headers={"h": "ü"})
        session.execute(sa.text("UPDATE relay.outbox SET topic = 'apart.' || topic"))
        session.execute(sa.text("DELETE FROM relay.entity_version"))

    def at_once(session: Session) -> None:
        touch(session, "user", 2)
        assert touch_many(session, given, headers={"h": "ü"}) == [2, 1, 3, 1, 4]
        assert touch_many(session, []) == []

    play(any_database, kind, one_by_one, at_once)

    def plain(row: dict[str, Any]) -> tuple[Any, ...]:
        payload = row["payload"].replace(row["headers"]["ts"].encode(), b"TS")
        return row["topic"].removeprefix("apart."), row["key"], payload, {**row["headers"], "ts": ""}

    rows = [plain(row) for row in outbox(any_database)]
    assert len(rows) == 12
    assert rows[:6] == rows[6:]


def test_an_asynchronous_session_awaits_touch_many(database):
    async def scenario() -> list[int]:
        async with async_engine(database) as on, AsyncSession(on) as session, session.begin():
            return await touch_many(session, [Change("user", 1), Change("user", 2)])

    assert asyncio.run(scenario()) == [1, 1]


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("RLY-101", {"topic": "a b"}),
        ("RLY-101", {"topic": ""}),
        ("RLY-102", {"entity": "a b"}),
        ("RLY-102", {"entity": "a\x1fb"}),
        ("RLY-103", {"id": ""}),
        ("RLY-103", {"id": "a\x1fb"}),
        ("RLY-103", {"id": "a\x00b"}),
        ("RLY-103", {"id": "x" * 1025}),
        ("RLY-104", {"payload": "x" * 1_000_000}),
        ("RLY-105", {"action": ""}),
        ("RLY-110", {"payload": {"a": object()}}),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_one_change_that_is_refused_refuses_all(database, code, change, alone):
    """Wherever it stands among the others."""
    bad = Change(**{"entity": "user", "id": 1, **change})
    with engine(database) as on, Session(on) as session:
        with pytest.raises(EventError, match=code):
            touch_many(session, [bad] if alone else [Change("user", 2), bad, Change("user", 3)])
        session.rollback()
    assert outbox(database) == []


def test_entities_are_locked_in_sorted_order(database):
    """Whatever the order of the changes: while it waits for b, it holds a and not yet c."""
    with engine(database) as on, Session(on) as first, Session(on) as third:
        touch(first, "user", "b")

        def second_writes() -> None:
            with Session(on) as second, second.begin():
                touch_many(second, [Change("user", "c"), Change("user", "b"), Change("user", "a")])

        with ThreadPoolExecutor(1) as thread:
            writing = thread.submit(second_writes)
            settled(database, writing)
            assert not writing.done()
            third.execute(sa.text("SET LOCAL lock_timeout = '200ms'"))
            assert touch(third, "user", "c") == 1
            third.rollback()
            third.execute(sa.text("SET LOCAL lock_timeout = '200ms'"))
            with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
                touch(third, "user", "a")
            third.rollback()
            first.commit()
            writing.result(60)
    assert query(database, "SELECT id FROM relay.entity_version ORDER BY id") == [("a",), ("b",), ("c",)]


def test_a_writer_may_track(own, database):
    """The grants of a writer are enough, and no other right on the schema is needed."""
    role = "tracker_" + database.rpartition("/")[2]
    execute(database, f"CREATE ROLE {role} LOGIN")
    execute(database, grants([("writer", role)]))
    execute(database, f"GRANT ALL ON users TO {role}; GRANT ALL ON users_id_seq TO {role}")
    track(User)
    try:
        with engine(database.replace("postgres@", f"{role}@")) as theirs, Session(theirs) as session, session.begin():
            session.add(User(name="Ann"))
    finally:
        execute(database, f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert changes(own) == {("user:1", "created")}


# How it is called


def test_tracking_twice_the_same_is_once_and_otherwise_an_error(on):
    """Modules are imported in any order, and some of them twice."""
    track(User, Order)
    track(User)
    with pytest.raises(EventError, match=r"RLY-130.*User.*other options"):
        track(User, topic="other")
    with Session(on) as session:
        session.add(User(id=1, name="Ann"))
        session.commit()
    assert changes(on) == {("user:1", "created")}


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        ((int,), {}, "no mapped class"),
        ((Base,), {}, "no mapped class"),
        ((User,), {"columns": ["nmae"]}, "no mapped column nmae"),
        ((User,), {"columns": ["orders"]}, "no mapped column orders"),
        ((User,), {"ignore": [Order.id, 7]}, "is no attribute"),
        ((User,), {"deleted": "gone"}, "no mapped column gone"),
        ((User,), {"columns": ["name"], "ignore": ["seen"]}, "both columns and ignore"),
        ((User, Order), {"entity": "thing"}, "several classes"),
        ((Employee, Manager), {}, "shares rows with Employee"),
        ((Order, Namesake), {}, "would be the entity order, as Order is"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(classes, options, message):
    with pytest.raises(EventError, match=f"RLY-130.*{message}"):
        track(*classes, **options)


def test_an_entity_name_that_is_invalid_is_refused_at_the_call():
    with pytest.raises(EventError, match="RLY-102"):
        track(User, entity=7)


def test_a_concrete_subclass_cannot_be_the_entity_of_its_base(on):
    """Their keys are two counts that both begin with 1."""
    track(Employee, entity="person")
    with Session(on) as session:
        session.add(Visitor(id=1, kind="visitor", name="v"))
        with pytest.raises(EventError, match=r"RLY-130.*Visitor.*person"):
            session.flush()


def test_the_version_of_what_is_not_tracked_is_an_error():
    with pytest.raises(EventError, match=r"RLY-130.*Country is not tracked"):
        version_of(Session(), Country(code="at"))
