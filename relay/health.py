"""/livez, /readyz and /metrics on a small HTTP thread, on loopback unless told otherwise.

Alive: the loop turns; it never asks Kafka or the database, since restarting a relay brings neither back. Ready: it can
work. Neither says that events flow: that is `relay_oldest_event_age_seconds`.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import NamedTuple

from relay.errors import ConfigError

DEFAULT_PORT = 9464


class Answer(NamedTuple):
    """What one path answers."""

    status: int
    kind: str
    body: bytes


class Health:
    """The HTTP thread. Stopping it twice, or before it started, is fine."""

    def __init__(self, host: str, port: int, routes: dict[str, Callable[[], Answer]]) -> None:
        self._server = _bind(host, port, _handler(routes))
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stops answering."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


def answer_json(ok: bool, content: dict[str, object]) -> Answer:
    """200 or 503 with a small JSON object."""
    return Answer(200 if ok else 503, "application/json", json.dumps(content).encode())


def _bind(host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    """Port 0 means the usual port, or any free one: several relays on one host need nothing configured."""
    wanted = [DEFAULT_PORT, 0] if port == 0 else [port]
    for candidate in wanted:
        try:
            return _Server((host, candidate), handler)
        except OSError as error:
            failure = error
    raise ConfigError(
        "RLY-203",
        f"http.host and http.port cannot be listened on: {failure.strerror}",
        "choose another http.port or http.host, or set http.enabled to false",
    )


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Binds without asking the name service who we are: that may take seconds, and nobody wants to know."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "relay", int(self.server_address[1])

    def handle_error(self, *_args: object) -> None:
        """A client that went away in the middle of an answer is no event, and no traceback on stderr."""


def _handler(routes: dict[str, Callable[[], Answer]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version = "relay"
        sys_version = ""
        timeout = 5

        def do_GET(self) -> None:
            route = routes.get(self.path.partition("?")[0])
            answer = route() if route else Answer(404, "text/plain", b"not found")
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_args: object) -> None:
            """Requests are no events of ours."""

    return Handler
