"""Sessions: what was written and seen, by whichever thread, task or request, is never asked for in an older version."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from http.cookies import SimpleCookie
from math import inf

import pytest

from relay.cache.asgi import SessionMiddleware
from relay.cache.eviction import Entry
from relay.cache.local import Local
from relay.cache.numbers import SESSION_TOKENS, Numbers
from relay.cache.session_store import AsyncStoredSessions, Kept, StoredSessions
from relay.cache.sessions import CURRENT, FLOORS_IN_MEMORY_MAX, PRIMARY, OpenSession, Sessions
from relay.core.record import VERSION_MAX
from relay.core.token import NOTHING, Floor, merged
from relay.errors import CacheError

KEYS = [b"k" * 32]


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def numbers() -> Numbers:
    return Numbers()


@pytest.fixture
def sessions(clock, numbers) -> Sessions:
    return Sessions(KEYS, namespace="shop", lag_seconds=30, margin_seconds=10, recorder=numbers, clock=clock)


# What a session asks for


def test_a_session_asks_for_what_it_wrote_and_saw(sessions):
    """The greatest of them, per entity, and nothing of what it does not know."""
    session = sessions.open()
    assert session.least("user", 42) == 0
    session.wrote("user", 42, 7)
    session.observe("user", "42", 5)
    session.observe("order", 42, 3)
    assert (session.least("user", "42"), session.least("order", 42), session.least("user", 43)) == (7, 3, 0)
    session.observe("user", 42, 9)
    assert session.least("user", 42) == 9


def test_a_floor_ends_with_the_worst_lag(sessions, clock):
    """And is not made longer by seeing the same again: the version was committed when it was seen first."""
    session = sessions.open()
    session.wrote("user", 1, 7)
    clock.now += 39
    session.observe("user", 1, 7)
    assert session.least("user", 1) == 7
    clock.now += 1
    assert session.least("user", 1) == 0


@pytest.mark.parametrize("version", [0, -1, VERSION_MAX + 1])
def test_what_is_no_version_is_no_floor(sessions, version):
    """An entity that nobody ever touched has 0."""
    session = sessions.open()
    session.observe("user", 1, version)
    assert (session.least("user", 1), session.is_changed) == (0, False)


def test_the_next_request_asks_for_the_same(sessions):
    """Also in another process: what counts is in the token."""
    first = sessions.open()
    first.wrote("user", 42, 7)
    second = sessions.open(first.token())
    assert second.least("user", 42) == 7
    assert not second.is_changed


def test_a_session_that_forgets_reads_what_it_does_not_know_from_the_primary(sessions, clock):
    """Beyond 32 entities in a token. What it has read there, it knows again; and all that ends with the lag."""
    first = sessions.open()
    for number in range(40):
        first.wrote("user", number, 2)
        clock.now += 0.1
    second = sessions.open(first.token())
    asked = [second.least("user", number) for number in range(41)]
    assert sorted(set(asked)) == [PRIMARY, 2]
    assert asked.count(2) == 32
    assert asked[39] == 2
    assert asked[40] == PRIMARY
    second.observe("user", 40, 5)
    assert second.least("user", 40) == 5
    clock.now += 41
    assert {second.least("user", number) for number in range(41)} == {0}


def test_a_session_does_not_grow_without_end(sessions):
    """A job that reads a million rows in one session forgets in memory too, and keeps the promise by the primary."""
    session = sessions.open()
    for number in range(FLOORS_IN_MEMORY_MAX + 100):
        session.observe("user", number, 1)
    assert len(session.floors().by_entity) <= FLOORS_IN_MEMORY_MAX
    assert {session.least("user", number) for number in range(FLOORS_IN_MEMORY_MAX + 100)} == {1, PRIMARY}


def test_a_write_is_told_to_the_process_tier_and_a_read_is_not(sessions):
    """Whoever else reads in this process is given nothing older either; what is no version is told to nobody."""
    local = Local()
    space = local.space("user")
    entry = Entry("42", "old", 6, as_of=0.0, fresh_until=inf, soft_until=inf, hard_until=inf)
    assert local.put(space, entry, local.mark()) is None
    sessions.tell(local.apply)
    session = sessions.open()
    session.observe("user", 42, 8)
    session.wrote("user", 42, 0)
    assert space.entries
    session.wrote("user", 42, 7)
    assert not space.entries
    assert space.floor("42") == 7


# Tokens that are no good


@pytest.mark.parametrize(
    ("token", "reason"), [("x" * 3000, "oversized"), ("?", "malformed"), ("A" * 200, "forged"), ("", None)]
)
def test_a_bad_token_is_an_empty_session_and_counted(sessions, numbers, token, reason):
    """The request goes on."""
    session = sessions.open(token)
    assert session.floors() == NOTHING
    assert (session.refusal.value if session.refusal else None) == reason
    assert numbers.snapshot().total(SESSION_TOKENS) == (reason is not None)
    if reason:
        assert numbers.snapshot().value(SESSION_TOKENS, reason) == 1


def test_an_expired_token_is_an_empty_session(sessions, clock):
    """Everything that it knew has long arrived."""
    session = sessions.open()
    session.wrote("user", 1, 7)
    token = session.token()
    clock.now += 40
    assert sessions.open(token).refusal.value == "expired"


def test_whoever_asks_for_it_gets_an_error(clock):
    """With RLY-952, which does not repeat the token."""
    sessions = Sessions(KEYS, must_be_good=True, clock=clock)
    with pytest.raises(CacheError, match="RLY-952") as refused:
        sessions.open("forged-token" * 9)
    assert "forged-token" not in str(refused.value)


def test_without_a_key_there_is_no_token_and_a_session_all_the_same():
    """In one process nothing has to be signed; what anybody could sign is never taken."""
    sessions = Sessions()
    session = sessions.open()
    session.wrote("user", 1, 7)
    assert session.least("user", 1) == 7
    with pytest.raises(CacheError, match="RLY-951"):
        session.token()
    assert sessions.open(Sessions(KEYS).open().token()).refusal.value == "forged"
    with pytest.raises(CacheError, match="RLY-951"):
        Sessions([b"short"])


# Threads and tasks


def test_a_session_is_that_of_its_tasks_and_of_no_other(sessions):
    """Tasks and threads that asyncio starts inherit it; two requests at once have two."""

    async def request(number: int) -> list[OpenSession | None]:
        async with sessions.open() as session:
            session.wrote("user", 1, number)
            await asyncio.sleep(0)
            inherited = await asyncio.gather(asyncio.to_thread(CURRENT.get), asyncio.create_task(_current()))
            assert CURRENT.get().least("user", 1) == number
        return [session, *inherited]

    async def both() -> list[list[OpenSession | None]]:
        return await asyncio.gather(request(1), request(2))

    one, other = asyncio.run(both())
    assert one == [one[0]] * 3
    assert other == [other[0]] * 3
    assert one[0] is not other[0]
    assert CURRENT.get() is None


async def _current() -> OpenSession | None:
    return CURRENT.get()


def test_threads_enter_one_session_at_the_same_time_and_leave_in_any_order(sessions):
    """And sessions within sessions end where they began."""
    session, inner = sessions.open(), sessions.open()
    barrier = threading.Barrier(2, timeout=10)

    def work(first_out: threading.Event, wait_for: threading.Event | None) -> list[OpenSession | None]:
        seen = []
        with session:
            barrier.wait()
            with inner, session:
                seen.append(CURRENT.get())
            seen.append(CURRENT.get())
            if wait_for:
                assert wait_for.wait(10)
        first_out.set()
        return [*seen, CURRENT.get()]

    a, b = threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(work, a, b), pool.submit(work, b, None)]
        assert [one.result() for one in running] == [[session, session, None]] * 2


def test_no_version_is_lost_between_threads(sessions):
    """Eight of them raise the same entities."""
    session = sessions.open()

    def raise_all(start: int) -> None:
        for version in range(start, 400, 8):
            session.wrote("user", version % 3, version)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(raise_all, range(1, 9)))
    assert sorted(session.least("user", number) for number in range(3)) == [397, 398, 399]


# Sessions in a store


class Store:
    """A store in memory that can lose things and fail; the real one passes the same tests in tests/integration."""

    def __init__(self) -> None:
        self.kept: dict[bytes, Kept] = {}
        self.is_down = False

    def load(self, name: bytes) -> Kept:
        if self.is_down:
            raise ConnectionError
        return self.kept.get(name, Kept(NOTHING, set()))

    def add(self, name, addition, floors, now, seconds) -> None:
        if self.is_down:
            raise ConnectionError
        known = self.kept.get(name, Kept(NOTHING, set()))
        self.kept[name] = Kept(merged(known.floors, floors), known.additions | {addition})


def test_requests_that_overlap_lose_nothing(sessions):
    """Both begin with the same ticket; the client keeps that of either."""
    stored = StoredSessions(Store(), sessions)
    begin = stored.open()
    begin.wrote("user", 0, 1)
    ticket = stored.token(begin)
    one, other = stored.open(ticket), stored.open(ticket)
    one.wrote("user", 1, 5)
    other.wrote("user", 2, 6)
    for last in (stored.token(one), stored.token(other)):
        later = stored.open(last)
        assert [later.least("user", number) for number in range(4)] == [1, 5, 6, 0]


def test_a_store_that_lost_the_session_or_its_last_addition_sends_it_to_the_primary(sessions, numbers, clock):
    """A flush, or a failover that lost a second, even if others have added since: until the ticket ends."""
    store = Store()
    stored = StoredSessions(store, sessions)
    first = stored.open()
    first.wrote("user", 1, 5)
    old = stored.token(first)
    before = dict(store.kept)
    second = stored.open(old)
    second.wrote("user", 2, 6)
    ticket = stored.token(second)

    store.kept = before
    other = stored.open(old)
    other.wrote("user", 3, 7)
    stored.token(other)
    later = stored.open(ticket)
    assert [later.least("user", number) for number in (1, 2, 3)] == [5, PRIMARY, 7]

    store.kept.clear()
    assert stored.open(ticket).least("user", 1) == PRIMARY
    assert numbers.snapshot().value(SESSION_TOKENS, "lost") == 2
    clock.now += 40
    assert stored.open(ticket).least("user", 1) == 0


def test_a_store_that_fails_is_no_error_and_no_lost_promise(sessions):
    """Neither at the beginning of a request nor at its end."""
    store = Store()
    stored = StoredSessions(store, sessions)
    store.is_down = True
    session = stored.open()
    session.wrote("user", 1, 5)
    ticket = stored.token(session)
    assert stored.open(ticket).least("user", 1) == PRIMARY
    store.is_down = False
    assert stored.open(ticket).least("user", 1) == PRIMARY


def test_a_ticket_is_no_token_and_cannot_be_made_up(sessions):
    """Nor can another session's name be put into it."""
    stored = StoredSessions(Store(), sessions)
    session = stored.open()
    session.wrote("user", 1, 5)
    ticket, token = stored.token(session), session.token()
    assert sessions.open(ticket).refusal.value == "malformed"
    assert stored.open(token).refusal.value == "malformed"
    for place in range(len(ticket)):
        changed = ticket[:place] + ("A" if ticket[place] != "A" else "B") + ticket[place + 1 :]
        assert stored.open(changed).refusal.value in ("forged", "malformed")


# Cookies and headers


async def exchange(app, *headers: tuple[bytes, bytes], kind: str = "http") -> list[tuple[bytes, bytes]]:
    """One request; the headers of its response."""
    sent: list[dict] = []

    async def send(message) -> None:
        sent.append(message)

    await app({"type": kind, "headers": list(headers)}, None, send)
    return [header for message in sent for header in message.get("headers", ())]


def writing(version: int):
    """An application that writes this version of an entity and says which it would have been given."""

    async def app(scope, receive, send) -> None:
        least = CURRENT.get().least("user", 1)
        if version:
            CURRENT.get().wrote("user", 1, version)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"least", str(least).encode())]})
        await send({"type": "http.response.body", "body": b""})

    return app


@pytest.mark.parametrize("stores", [False, True])
def test_a_browser_carries_its_session_from_request_to_request(sessions, stores):
    """In a cookie that scripts cannot read, sent only when there is something new."""
    carried = AsyncStoredSessions(AsyncStore(), sessions) if stores else sessions

    async def scene() -> None:
        first = dict(await exchange(SessionMiddleware(writing(7), carried)))
        cookie = SimpleCookie(first[b"set-cookie"].decode())["relay_session"]
        assert (cookie["httponly"], cookie["secure"], cookie["samesite"]) == (True, True, "lax")
        assert (cookie["max-age"], cookie["path"]) == ("40", "/")
        header = (b"cookie", f"other=1; relay_session={cookie.value}; more=2".encode())
        second = dict(await exchange(SessionMiddleware(writing(0), carried), header))
        assert second == {b"least": b"7"}

    asyncio.run(scene())


class AsyncStore(Store):
    async def load(self, name):
        return super().load(name)

    async def add(self, *arguments):
        super().add(*arguments)


def test_a_client_without_cookies_carries_it_in_a_header(sessions):
    """Under the name that it is given."""

    async def scene() -> None:
        first = dict(await exchange(SessionMiddleware(writing(7), sessions, header="Relay-Session")))
        token = first[b"relay-session"]
        second = await exchange(
            SessionMiddleware(writing(0), sessions, header="Relay-Session"), (b"relay-session", token)
        )
        assert dict(second)[b"least"] == b"7"

    asyncio.run(scene())


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"relay_session=\xff", b"relay_session", b"=;;=", b"x" * 9000])
def test_a_broken_cookie_is_an_empty_session(sessions, raw):
    """Whatever a client sends."""
    headers = asyncio.run(exchange(SessionMiddleware(writing(0), sessions), (b"cookie", raw)))
    assert dict(headers) == {b"least": b"0"}


def test_a_lifespan_has_no_session_and_a_websocket_one_without_a_response(sessions):
    """Both go through."""
    seen = []

    async def app(scope, receive, send) -> None:
        seen.append(CURRENT.get() is not None)

    asyncio.run(exchange(SessionMiddleware(app, sessions), kind="lifespan"))
    asyncio.run(exchange(SessionMiddleware(app, sessions), kind="websocket"))
    assert seen == [False, True]


def test_a_floor_is_a_value(sessions):
    """Merging two sessions asks for the greater of each."""
    session = sessions.open()
    session.wrote("user", 1, 5)
    other = sessions.open()
    other.wrote("user", 1, 6)
    session.merge(other.floors())
    assert session.least("user", 1) == 6
    assert next(iter(session.floors().by_entity.values())) == Floor(6, 1_800_000_040, True)
