"""The session of each request, from a cookie or header and back: for any ASGI application, without a dependency.

    app.add_middleware(SessionMiddleware, sessions=cache.sessions)                       # FastAPI, Starlette
    app = SessionMiddleware(app, sessions=cache.sessions, header="relay-session")        # any other

Whatever the request does runs in its session: endpoints, dependencies and their threads. What it writes after its
response has begun, as background tasks do, is in no token any more.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Literal

from relay.cache.session_store import AsyncStoredSessions
from relay.cache.sessions import OpenSession, Sessions

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class SessionMiddleware:
    """Requests of one client read what the client wrote, whichever process answers.

    Args:
        sessions: `cache.sessions`, which puts the session into the token itself, or `AsyncStoredSessions`.
        cookie: its name. HttpOnly; sent again only when the session has learned something.
        header: a header of requests and responses to use instead, for clients that are no browsers.
        secure: False for development without TLS only.
    """

    def __init__(
        self,
        app: App,
        sessions: Sessions | AsyncStoredSessions,
        *,
        cookie: str = "relay_session",
        header: str | None = None,
        secure: bool = True,
        same_site: Literal["lax", "strict", "none"] = "lax",
        path: str = "/",
    ) -> None:
        self._app = app
        self._sessions = sessions
        self._token_of: Callable[[Any], Any] = sessions.token
        self._cookie = cookie.encode("ascii")
        self._header = None if header is None else header.lower().encode("ascii")
        age = f"; Max-Age={sessions.lifetime_seconds}"
        self._attributes = f"{age}; Path={path}; HttpOnly; SameSite={same_site}{'; Secure' * secure}".encode("ascii")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request. A WebSocket reads in its session, and has no response to carry what it writes."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        session: OpenSession = await _settled(self._sessions.open(self._token(scope["headers"])))

        async def send_with_token(message: Message) -> None:
            if message["type"] == "http.response.start" and session.is_changed:
                token = (await _settled(self._token_of(session))).encode("ascii")
                message["headers"] = [*message.get("headers", ()), self._carried(token)]
            await send(message)

        with session:
            await self._app(scope, receive, send_with_token if scope["type"] == "http" else send)

    def _token(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        for name, value in headers:
            if self._header is not None:
                if name.lower() == self._header:
                    return value.decode("latin-1")
            elif name.lower() == b"cookie":
                for pair in value.split(b";"):
                    key, _, content = pair.strip().partition(b"=")
                    if key == self._cookie:
                        return content.decode("latin-1")
        return None

    def _carried(self, token: bytes) -> tuple[bytes, bytes]:
        if self._header is not None:
            return self._header, token
        return b"set-cookie", self._cookie + b"=" + token + self._attributes


async def _settled(value: Any) -> Any:
    """The value, awaited if it is to be: a store on the network is, a signature is not."""
    return await value if inspect.isawaitable(value) else value
