"""Sessions that are kept on the server: the client carries a ticket of 84 characters, and requests may overlap.

A cookie holds what the last response said: of two that overlap, one is lost. A store adds up what both wrote. It may
lose everything, or the last second, as Redis may: the ticket names the last addition that it knows of, and of a store
that does not know that one nothing is believed: until the ticket ends, that session reads from the primary.

    stored = StoredSessions(RedisSessions(redis, "shop"), cache.sessions)
    with stored.open(ticket) as session: ...
    ticket = stored.token(session)
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Set
from typing import Any, Final, NamedTuple, Protocol

from relay.cache.numbers import SESSION_TOKENS
from relay.cache.sessions import OpenSession, Sessions
from relay.core.token import Floor, Floors, Refusal, Ticket
from relay.errors import CacheError

FORGOTTEN: Final = b"forgotten_until"
ADDITION: Final = b"+"

# KEYS[1] the session. ARGV: how long to keep it (seconds), now, forgotten_until, the field of this addition, then name,
# version, until, is_write of each floor. The greater version stays, for the longer time; what has ended goes. Names
# have 8 bytes, additions 9, so that none is the other, or the field of forgotten_until.
ADD: Final = """
local key, now, ends = KEYS[1], tonumber(ARGV[2]), ARGV[2] + ARGV[1]
for i = 5, #ARGV, 4 do
  local version, until_, written = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), ARGV[i + 3]
  local old = redis.call('HGET', key, ARGV[i])
  if old then
    local v, u, w = old:match('^(%d+) (%d+) (%d)$')
    v, u = tonumber(v), tonumber(u)
    if v > version then version, written = v, w elseif v == version and w == '1' then written = '1' end
    if u > until_ then until_ = u end
  end
  redis.call('HSET', key, ARGV[i], string.format('%.0f %.0f %s', version, until_, written))
end
local fields = redis.call('HGETALL', key)
for i = 1, #fields, 2 do
  local name, text = fields[i], fields[i + 1]
  if name ~= 'forgotten_until' and tonumber(text:match('^%d+ (%d+)')) <= now then redis.call('HDEL', key, name) end
end
local forgotten = tonumber(redis.call('HGET', key, 'forgotten_until') or '0')
if tonumber(ARGV[3]) > forgotten then redis.call('HSET', key, 'forgotten_until', ARGV[3]) end
redis.call('HSET', key, ARGV[4], string.format('0 %.0f 0', ends))
redis.call('EXPIRE', key, ARGV[1])
return 1
"""


class Kept(NamedTuple):
    """What a store remembers of a session."""

    floors: Floors
    additions: Set[bytes]
    """Of those whose time has not ended."""


class SessionStore(Protocol):
    """Where sessions are kept. The asynchronous one has the same methods, awaitable. They may raise anything."""

    def load(self, name: bytes) -> Kept:
        """What there is of it: nothing in it, if there is nothing."""
        ...

    def add(self, name: bytes, addition: bytes, floors: Floors, now: int, seconds: int) -> None:
        """Adds these floors to what is there, greater versions winning, and the name of this addition; all or nothing.

        What is there is kept for `seconds` from `now`, which is in seconds of Unix time.
        """
        ...


def fit(client: Any) -> Any:
    """The client, unless it makes texts of bytes.

    Raises:
        CacheError: RLY-953.
    """
    if client.connection_pool.connection_kwargs.get("decode_responses"):
        raise CacheError(
            "RLY-953", "the Redis client decodes responses", "give sessions a client without decode_responses"
        )
    return client


class RedisSessions:
    """A store in Redis or Valkey, through a client of redis-py: one hash for each session, with a TTL.

    The client's time-outs are those of a request: keep them short.

    Raises:
        CacheError: RLY-953: the client decodes responses.
    """

    def __init__(self, client: Any, namespace: str) -> None:
        self._client = fit(client)
        self._prefix = f"relay:{{{namespace}}}:session:"
        self._add = client.register_script(ADD)

    def load(self, name: bytes) -> Kept:
        """One round trip."""
        return kept(self._client.hgetall(self._prefix + name.hex()))

    def add(self, name: bytes, addition: bytes, floors: Floors, now: int, seconds: int) -> None:
        """One round trip."""
        self._add(keys=[self._prefix + name.hex()], args=arguments(addition, floors, now, seconds))


class AsyncRedisSessions:
    """The same through a client of redis.asyncio."""

    def __init__(self, client: Any, namespace: str) -> None:
        self._client = fit(client)
        self._prefix = f"relay:{{{namespace}}}:session:"
        self._add = client.register_script(ADD)

    async def load(self, name: bytes) -> Kept:
        """One round trip."""
        return kept(await self._client.hgetall(self._prefix + name.hex()))

    async def add(self, name: bytes, addition: bytes, floors: Floors, now: int, seconds: int) -> None:
        """One round trip."""
        await self._add(keys=[self._prefix + name.hex()], args=arguments(addition, floors, now, seconds))


def kept(fields: Mapping[bytes, bytes]) -> Kept:
    """What the hash of a session says."""
    floors, additions = {}, set()
    for name, text in fields.items():
        if name.startswith(ADDITION) and len(name) == 9:
            additions.add(name[1:])
        elif name != FORGOTTEN:
            version, until, is_write = text.split()
            floors[name] = Floor(int(version), int(until), is_write == b"1")
    return Kept(Floors(floors, int(fields.get(FORGOTTEN, 0))), additions)


def arguments(addition: bytes, floors: Floors, now: int, seconds: int) -> list[bytes | int]:
    """Of the script ADD."""
    arguments: list[bytes | int] = [seconds, now, floors.forgotten_until, ADDITION + addition]
    for name, floor in floors.by_entity.items():
        arguments += [name, floor.version, floor.until, int(floor.is_write)]
    return arguments


class StoredSession(OpenSession):
    """A session that is kept in a store."""

    def __init__(self, sessions: Sessions, ticket: Ticket, refusal: Refusal | None = None) -> None:
        super().__init__(sessions, refusal=refusal)
        self.ticket = ticket


class _Tickets:
    """What both faces of a store decide in the same way."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self.lifetime_seconds = sessions.lifetime_seconds

    def _begin(self, text: str | None) -> tuple[StoredSession, bool]:
        """The session of a ticket, and whether there is anything to be loaded of it."""
        found = self._sessions.verify_ticket(text)
        if isinstance(found, Ticket):
            return StoredSession(self._sessions, found), True
        return StoredSession(self._sessions, Ticket(secrets.token_bytes(16), bytes(8), 0), found), False

    def _loaded(self, session: StoredSession, kept: Kept | None) -> StoredSession:
        """None: the store did not answer."""
        if kept is None or session.ticket.addition not in kept.additions:
            self._sessions.count(SESSION_TOKENS, "lost")
            session.merge(Floors({}, session.ticket.until))
        if kept is not None:
            session.merge(kept.floors)
        return session

    def _addition(self, session: StoredSession) -> tuple[bytes, bytes, Floors, int, int]:
        """What the store is to add. The ticket names it already: a store that fails will be found to lack it."""
        now, seconds = self._sessions.now(), self._sessions.lifetime_seconds
        session.ticket = Ticket(session.ticket.name, secrets.token_bytes(8), now + seconds)
        return session.ticket.name, session.ticket.addition, session.floors(), now, seconds


class StoredSessions(_Tickets):
    """Opens sessions that a `SessionStore` keeps. `sessions` has the keys and the lifetime."""

    def __init__(self, store: SessionStore, sessions: Sessions) -> None:
        super().__init__(sessions)
        self._store = store

    def open(self, ticket: str | None = None) -> StoredSession:
        """The session of a ticket, or a new one. A store that fails is one that has lost the session.

        Raises:
            CacheError: as `Sessions.open`.
        """
        session, is_known = self._begin(ticket)
        if not is_known:
            return session
        try:
            kept = self._store.load(session.ticket.name)
        except Exception:  # Whatever it was: counted as lost, and the session reads from the primary.
            kept = None
        return self._loaded(session, kept)

    def token(self, session: StoredSession) -> str:
        """Keeps what the session has learned and gives the ticket for the next request.

        Raises:
            CacheError: RLY-951: there is no key to sign with.
        """
        if session.is_changed:
            try:
                self._store.add(*self._addition(session))
            except Exception:  # The ticket names what the store has not: it will be found out.
                self._sessions.count(SESSION_TOKENS, "not_kept")
        return self._sessions.sign_ticket(session.ticket)


class AsyncStoredSessions(_Tickets):
    """The same for a store whose methods are awaited."""

    def __init__(self, store: Any, sessions: Sessions) -> None:
        super().__init__(sessions)
        self._store = store

    async def open(self, ticket: str | None = None) -> StoredSession:
        """As `StoredSessions.open`."""
        session, is_known = self._begin(ticket)
        if not is_known:
            return session
        try:
            kept = await self._store.load(session.ticket.name)
        except Exception:
            kept = None
        return self._loaded(session, kept)

    async def token(self, session: StoredSession) -> str:
        """As `StoredSessions.token`."""
        if session.is_changed:
            try:
                await self._store.add(*self._addition(session))
            except Exception:
                self._sessions.count(SESSION_TOKENS, "not_kept")
        return self._sessions.sign_ticket(session.ticket)
