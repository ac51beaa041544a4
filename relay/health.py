"""/livez, /readyz and /metrics on a small HTTP thread, on loopback unless told otherwise.

Alive: the loop turns; it never asks Kafka or the database, since restarting a relay brings neither back. Ready: it can
work. Neither says that events flow: that is `relay_oldest_event_age_seconds`.

The server is the standard library's; what is added here are its limits. A client that says nothing, or a byte now and
then, would otherwise keep a thread and a descriptor for as long as it likes, and a process without descriptors opens
no connection to the database or to Kafka either.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from relay.errors import ConfigError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

DEFAULT_PORT = 9464
CONNECTIONS_MAX = 16
"""The oldest connection makes room for the newest one: a probe is answered while others keep connections open."""
CONNECTION_SECONDS = 5.0
"""How long a connection may last, from its start to the end of the answer."""
SHORT_OF_DESCRIPTORS_SECONDS = 0.1


class Answer(NamedTuple):
    """What one path answers."""

    status: int
    kind: str
    body: bytes


class Health:
    """The HTTP thread. Stopping it twice, or before it started, is fine.

    Args:
        routes: path to WSGI application. HEAD reaches them as GET, and any other method does not.
    """

    def __init__(self, host: str, port: int, routes: Mapping[str, WSGIApplication]) -> None:
        self._server = _bind(host, port)
        self._server.set_app(_front(routes))
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return self._server.connections

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


def route(answer: Callable[[], Answer]) -> WSGIApplication:
    """Makes a WSGI application of a function that answers whatever the request says."""

    def application(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        found = answer()
        start_response(_status_line(found.status), [("Content-Type", found.kind)])
        return [found.body]

    return application


def _status_line(status: int) -> str:
    return f"{status} {WSGIRequestHandler.responses[status][0]}"


def _front(routes: Mapping[str, WSGIApplication]) -> WSGIApplication:
    not_found = route(lambda: Answer(404, "text/plain", b"not found"))

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        is_head = environ["REQUEST_METHOD"] == "HEAD"
        if not is_head and environ["REQUEST_METHOD"] != "GET":
            start_response(_status_line(405), [("Allow", "GET, HEAD"), ("Server", "relay")])
            return [b""]
        heads: list[tuple[str, list[tuple[str, str]]]] = []
        written: list[bytes] = []

        def start(status: str, headers: list[tuple[str, str]], _error: object = None) -> Callable[[bytes], object]:
            heads.append((status, headers))
            return written.append

        found = routes.get(environ["PATH_INFO"], not_found)
        body = b"".join([*found({**environ, "REQUEST_METHOD": "GET"}, start), *written])
        status, headers = heads[-1]
        start_response(status, [*headers, ("Content-Length", str(len(body))), ("Server", "relay")])
        return [] if is_head else [body]

    return application


def _bind(host: str, port: int) -> _Server:
    """Port 0 means the usual port, or any free one: several relays on one host need nothing configured."""
    wanted = [DEFAULT_PORT, 0] if port == 0 else [port]
    for candidate in wanted:
        try:
            return _Server((host, candidate), _Handler)
        except OSError as error:
            failure = error
    raise ConfigError(
        "RLY-203",
        f"http.host and http.port cannot be listened on: {failure.strerror}",
        "choose another http.port or http.host, or set http.enabled to false",
    )


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # Connections that this side closed keep the port for a minute, and a restart must not wait for that. On Linux a
    # second listener is refused all the same.
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._lock = threading.Lock()
        # In the order of their start. Whoever takes a connection out of these may close it.
        self._open: dict[socket.socket, float] = {}
        self._ending: set[socket.socket] = set()
        super().__init__(address, handler)

    @property
    def connections(self) -> int:
        """How many connections are open, with those that are being closed."""
        with self._lock:
            return len(self._open) + len(self._ending)

    def server_bind(self) -> None:
        """Binds without asking the name service who we are: that may take seconds, and nobody wants to know."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "relay", int(self.server_address[1])
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accepts a connection. A process without descriptors leaves it waiting, and must not spin over that."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(SHORT_OF_DESCRIPTORS_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers in a thread of its own, if there is room."""
        with self._lock:
            has_room = len(self._ending) < CONNECTIONS_MAX
            if has_room:
                self._open[request] = time.monotonic()
                if len(self._open) > CONNECTIONS_MAX:
                    self._cut(next(iter(self._open)))
        if has_room:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def service_actions(self) -> None:
        """Cuts connections that have lasted too long. The server calls this twice a second."""
        too_old = time.monotonic() - CONNECTION_SECONDS
        with self._lock:
            for request in [request for request, since in self._open.items() if since < too_old]:
                self._cut(request)

    def _cut(self, request: socket.socket) -> None:
        """Ends a connection under the lock: its thread, which waits for the client, goes on and closes it."""
        del self._open[request]
        self._ending.add(request)
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection."""
        with self._lock:
            self._open.pop(request, None)
            self._ending.discard(request)
        super().shutdown_request(request)

    def handle_error(self, *_args: object) -> None:
        """A client that went away in the middle of an answer is no event, and no traceback on stderr."""


class _Handler(WSGIRequestHandler):
    def log_message(self, *_args: object) -> None:
        """Requests are no events of ours."""
