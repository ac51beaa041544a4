"""Every error that a user can cause, with a stable code, one line that says what is wrong, and the fix.

RelayError
├── EventError         RLY-1xx  the event was refused; the caller's transaction fails and nothing else does
├── ConfigError        RLY-2xx  a setting is wrong: fix it and start again                            exit 6
├── UnreachableError   RLY-3xx  a dependency does not answer                                          exit 3
├── SchemaError        RLY-4xx  the schema `relay` is missing, too old or too new                     exit 4
├── GrantError         RLY-5xx  the database role may not do what it has to do                        exit 1
├── OperatorError      RLY-6xx  a command cannot do what was asked                                    exit 1
└── CacheError         RLY-9xx  the cache or a consumer was asked for what it cannot do               exit 1

RLY-7xx are no exceptions: they say in logs, in `relay status` and beside parked events why something waits. RLY-8xx are
what `relay doctor` finds.
docs/ERRORS.md has a section for each code, and a test compares the two.
"""

from __future__ import annotations

from typing import Any, ClassVar

CODES: dict[str, str] = {
    "RLY-101": "the topic name is invalid",
    "RLY-102": "the entity name is invalid",
    "RLY-103": "the entity id is invalid",
    "RLY-104": "the event is too large",
    "RLY-105": "the action is invalid",
    "RLY-106": "a header name is invalid or reserved",
    "RLY-107": "a header value is invalid",
    "RLY-108": "one transaction locks too many keys (before schema version 3)",
    "RLY-109": "the key has the wrong type",
    "RLY-110": "the payload has the wrong type",
    "RLY-111": "the session is of an unknown kind",
    "RLY-112": "the session has no transaction",
    "RLY-130": "a class cannot be tracked like this",
    "RLY-131": "a statement would change tracked rows unseen",
    "RLY-132": "the database would change tracked rows unseen",
    "RLY-140": "a table cannot be captured",
    "RLY-141": "a table is not captured",
    "RLY-142": "a table could not be locked",
    "RLY-201": "a required setting is missing",
    "RLY-202": "a setting has an unknown name",
    "RLY-203": "a setting has a wrong value",
    "RLY-204": "two settings contradict each other",
    "RLY-205": "the settings file cannot be read",
    "RLY-206": "librdkafka refuses a property",
    "RLY-207": "a Kafka property would break a guarantee",
    "RLY-208": "a part that this command needs is not installed",
    "RLY-301": "the database cannot be reached",
    "RLY-302": "the database refuses the login",
    "RLY-303": "the database is read-only",
    "RLY-304": "the Kafka brokers cannot be reached",
    "RLY-305": "Redis cannot be reached",
    "RLY-401": "the schema relay is missing",
    "RLY-402": "the schema relay is too old",
    "RLY-403": "the schema relay is too new",
    "RLY-404": "the schema relay could not be upgraded",
    "RLY-501": "the database role lacks a grant",
    "RLY-601": "there is no such parked event",
    "RLY-602": "the parked event has been overtaken",
    "RLY-603": "the parked event waits for an earlier one",
    "RLY-604": "the embedded part could not be started",
    "RLY-605": "the parked event is in use",
    "RLY-606": "the shared tier is closed",
    "RLY-607": "a parked event cannot be treated in this transaction",
    "RLY-611": "there is no Alembic project",
    "RLY-612": "the Alembic history has several heads",
    "RLY-613": "Alembic refuses",
    "RLY-701": "Kafka is not available",
    "RLY-702": "a topic cannot be written",
    "RLY-703": "Kafka refuses an event",
    "RLY-704": "an event waits for an earlier event of its key",
    "RLY-705": "published events cannot be settled",
    "RLY-801": "the connection to the database is not encrypted",
    "RLY-802": "lanes are missing",
    "RLY-803": "a pooler stands before the database",
    "RLY-804": "the clocks differ",
    "RLY-805": "a time-out of the server is short",
    "RLY-806": "the database may lose commits",
    "RLY-807": "something old holds back vacuum",
    "RLY-808": "the outbox is not vacuumed",
    "RLY-809": "a check could not be made",
    "RLY-810": "there is little room for locks",
    "RLY-811": "a broker is not where it says it is",
    "RLY-812": "a topic takes less than the outbox",
    "RLY-813": "a topic has too few replicas to be written",
    "RLY-814": "a topic keeps too few copies",
    "RLY-815": "the database has another encoding than UTF-8",
    "RLY-816": "the ids of events do not count up",
    "RLY-901": "a value cannot be written by its codec",
    "RLY-902": "a class has no codec",
    "RLY-903": "the shared tier is set up in a way that cannot work",
    "RLY-911": "a loader reads what it is loading",
    "RLY-912": "a loader returned no versioned value",
    "RLY-913": "a loader returned an old version",
    "RLY-914": "too many loads are under way",
    "RLY-915": "a cache has a wrong setting",
    "RLY-916": "a derived value has an argument without identity",
    "RLY-930": "the consumer is used in a way that cannot work",
    "RLY-931": "the consumer cannot go on",
    "RLY-932": "the shared tier takes no events",
    "RLY-933": "a topic cannot be read",
    "RLY-934": "an event is malformed",
    "RLY-935": "a hook fails",
    "RLY-936": "a hook does not end",
    "RLY-937": "a hook returns something else than keys and stamps",
    "RLY-938": "an event cannot be set aside",
    "RLY-939": "the process tier has no feed",
    "RLY-951": "there is no key for session tokens",
    "RLY-952": "a session token is refused",
    "RLY-953": "the Redis client of a session store decodes responses",
}
"""Code to meaning, in one place: `docs/ERRORS.md` explains each."""


class RelayError(Exception):
    """Base of all errors that Relay raises on purpose. Its text is one line and ends with the fix."""

    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, message: str, fix: str = "") -> None:
        self.code = code
        self.meaning = CODES[code]
        self.message = message
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" + (f". Fix: {self.fix}" if self.fix else "")


class EventError(RelayError):
    """The event was refused; the transaction that wanted to write it fails, and nothing else does."""


class ConfigError(RelayError):
    """A setting is wrong. Nothing was started."""

    exit_code = 6


class UnreachableError(RelayError):
    """A dependency does not answer. Nothing was claimed or published."""

    exit_code = 3


class SchemaError(RelayError):
    """The schema `relay` of the database does not fit this code."""

    exit_code = 4


class GrantError(RelayError):
    """The database role lacks a right. Nothing was changed."""


class OperatorError(RelayError):
    """A command cannot do what was asked, and did nothing."""


class CacheError(RelayError):
    """The cache or a consumer was asked for what it cannot do. No copy was changed."""


def words_of(raised: Any) -> tuple[str, str]:
    """Message and hint of a driver's error. psycopg and psycopg2 have them in `diag`, SQLAlchemy's asyncpg as cause."""
    diag = getattr(raised, "diag", None)
    if diag is not None:
        return diag.message_primary or "", diag.message_hint or ""
    cause = raised.__cause__
    return getattr(cause, "message", None) or "", getattr(cause, "hint", None) or ""
