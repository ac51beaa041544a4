"""Services that exist adopt Relay: what that costs them in lines, and what they announce from then on."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.commands import relay
from tests.support.examples import Example
from tests.support.hosts import EXAMPLES, Host, changed_lines
from tests.support.postgres import bare_database, drop_database
from tests.support.topic import read_topic

TOPICS = ("orders", "payments", "relay.changes")

WAITING = """\
SELECT event_id::text, topic, key, convert_from(payload, 'UTF8')::json FROM relay.outbox ORDER BY id"""


@pytest.fixture
def bare(pg):
    dsn = bare_database(pg)
    yield dsn
    drop_database(pg, dsn)


@pytest.fixture(scope="module")
def broker(kafka):
    """A Kafka with the topics of the services."""
    for topic in TOPICS:
        kafka.create_topic(topic)
    yield kafka.bootstrap
    for topic in TOPICS:
        kafka.delete_topic(topic)


def waiting(dsn: str) -> list[tuple]:
    """The events in the outbox: id, topic, key, value."""
    with psycopg.connect(dsn) as connection:
        return connection.execute(WAITING).fetchall()


def said(events: list[tuple]) -> list[tuple]:
    """The entity changes among them in an order of their own, since one flush or statement owes none across keys."""
    values = [value for _, topic, _, value in events if topic == "relay.changes"]
    assert all(set(value) == {"entity", "id", "action", "version", "ts"} for value in values)
    return sorted((value["entity"], value["id"], value["version"], value["action"]) for value in values)


def adopt(service: Example) -> None:
    """As docs/ADOPTING.md says: the revision, then the edits; counted, and compared with what the repository shows."""
    assert service.changed_lines() == 0
    service.revision()
    service.done(["upgrade", "head"], ["check"])
    assert service.changed_lines() == 0
    service.adopt()
    assert 0 < service.changed_lines() <= 10
    assert changed_lines(EXAMPLES / service.name, service.root) == 0


def published(events: list[tuple], dsn: str, broker: str) -> None:
    """One relay empties the outbox, and Kafka has each of its events, per key in the order of the outbox."""
    done = relay("run", "--drain", settings={"RELAY_DATABASE_URL": dsn, "RELAY_KAFKA_BOOTSTRAP_SERVERS": broker})
    assert done.returncode == 0, done.stderr
    assert waiting(dsn) == []
    ids = {event_id for event_id, *_ in events}
    records = [record for topic in TOPICS for record in read_topic(broker, topic) if record.event_id in ids]
    assert len(records) == len(events)
    for topic, key in {(topic, key) for _, topic, key, _ in events}:
        written = [event_id for event_id, *place, _ in events if place == [topic, key]]
        assert [r.event_id for r in records if (r.topic, r.key.decode()) == (topic, key)] == written


@pytest.mark.parametrize("name", ["fastapi_async", "sync_service"])
def test_the_services_are_no_relay_s_beforehand(tmp_path, name):
    """The state before knows nothing of Relay, and the adopted one needs no further revision."""
    service = Example(name, tmp_path, "")
    assert not [path for path in service.files() if "relay" in (service.root / path).read_text()]
    adopted = Host(name, tmp_path / "adopted", "", of=EXAMPLES)
    assert adopted.revision()["revision"] is None


def test_the_catalogue_announces_its_products_and_orders(bare, broker, tmp_path):
    """At most 10 changed lines; objects and bulk updates are told, what does not matter and what failed is not."""
    service = Example("fastapi_async", tmp_path, bare)
    service.done(["upgrade", "head"])
    answers = service.use(
        ("POST", "/products", {"sku": "t-1", "name": "Teapot", "price": "20", "stock": 3}),
        ("POST", "/products", {"sku": "c-1", "name": "Cup", "price": "5", "stock": 9}),
        ("POST", "/orders", {"product_id": 1, "quantity": 1}),
    )
    assert [status for status, _ in answers] == [201, 201, 201]

    adopt(service)
    answers = service.use(
        ("POST", "/products", {"sku": "s-1", "name": "Saucer", "price": "4", "stock": 9}),
        ("PATCH", "/products/1", {"name": "Tea pot"}),
        ("GET", "/products/1", None),
        ("POST", "/sales", {"percent": 10}),
        ("POST", "/orders", {"product_id": 1, "quantity": 2}),
        ("POST", "/orders", {"product_id": 1, "quantity": 2}),
        ("DELETE", "/products/2", None),
    )
    assert [status for status, _ in answers] == [201, 200, 200, 200, 201, 409, 204]
    assert answers[2][1] == {"id": 1, "sku": "t-1", "name": "Tea pot", "price": "20.00"}
    assert answers[4][1]["total"] == "36.00"

    events = waiting(bare)
    assert said(events) == [
        ("product", "1", 1, "updated"),
        ("product", "1", 2, "updated"),
        ("product", "1", 3, "updated"),
        ("product", "2", 1, "updated"),
        ("product", "2", 2, "deleted"),
        ("product", "3", 1, "created"),
        ("product", "3", 2, "updated"),
    ]
    orders = [event[2:] for event in events if event[1] == "orders"]
    assert orders == [(answers[4][1]["id"], {"product": 1, "total": "36.00"})]
    published(events, bare, broker)


def test_billing_announces_accounts_payments_and_what_plain_sql_changes(bare, broker, tmp_path):
    """At most 10 changed lines; a trigger tells of what statements in plain SQL do to all rows at once."""
    service = Example("sync_service", tmp_path, bare)
    service.done(["upgrade", "head"])
    done = service.use(
        ("sign-up", "ada@example.org", "pro"), ("sign-up", "bob@example.org", "basic"), ("bill", "2030-01-31")
    )
    assert done == ["account 1", "account 2", "2 invoices"]

    adopt(service)
    captured = relay("capture", "add", "invoice", "--column", "state", settings={"RELAY_DATABASE_URL": bare})
    assert captured.returncode == 0, captured.stderr
    done = service.use(
        ("change-plan", "1", "basic"),
        ("sign-up", "cyd@example.org", "pro"),
        ("bill", "2030-02-28"),
        ("remind", "2030-02-01"),
        ("remind", "2030-02-01"),
        ("pay", "1"),
        ("pay", "1"),
    )
    assert done == [
        "plan basic", "account 3", "3 invoices", "2 overdue", "0 overdue", "invoice paid", "invoice paid",
    ]  # fmt: skip

    events = waiting(bare)
    with psycopg.connect(bare) as connection:
        rows = connection.execute("SELECT id::text, due_on > '2030-02-01' FROM invoice").fetchall()
    new = sorted(invoice for invoice, is_new in rows if is_new)
    assert len(new) == 3
    assert said(events) == sorted(
        [
            ("account", "1", 1, "updated"),
            ("account", "3", 1, "created"),
            *(("invoice", invoice, 1, "created") for invoice in new),
            ("invoice", "1", 1, "updated"),
            ("invoice", "2", 1, "updated"),
            ("invoice", "1", 2, "updated"),
        ]
    )
    assert [event[1:] for event in events if event[1] == "payments"] == [("payments", "1", {"invoice": 1})]
    published(events, bare, broker)
