"""TLS as Postgres speaks it, before a server that was built without: the binaries of the wheel are.

The client asks in eight bytes, the server says yes in one, and all that follows is encrypted. What is behind is the
real server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from relay.demo.server import free_port

CHUNK_BYTES = 65_536
REQUEST = bytes.fromhex("0000000804d2162f")

#: For `localhost`, signed by itself, valid until 2120. The key protects nothing.
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgrbUq8bd4BBY0VdOf
7TQtnhwwIPFKR/TxfkEzyet80YGhRANCAATZryDd1simqiQBAbi91PcSIFUqhzYr
I7GGXs9v2LPMNJNRUVYNy9rsnU6N62Pzb3TKtBPS0R8+R13h9SfrSAnN
-----END PRIVATE KEY-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBcDCCARegAwIBAgIURFrfo44azEGskhDCeq2sttalw6gwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAx
MDAwMDAwWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATZryDd1simqiQBAbi91PcSIFUqhzYrI7GGXs9v2LPMNJNRUVYNy9rs
nU6N62Pzb3TKtBPS0R8+R13h9SfrSAnNo0UwQzAUBgNVHREEDTALgglsb2NhbGhv
c3QwDAYDVR0TBAUwAwEB/zAdBgNVHQ4EFgQU27HnYnHfXFkZ9EIgcNxx7Fy57OEw
CgYIKoZIzj0EAwIDRwAwRAIgMb2XN/xhKx9yTxT351lc/Z6FusuF9MslB+/NCotp
6xoCIGYLEnuQG8z3evnjVw392TY+UtRN738IQzWyo4/g7dzx
-----END CERTIFICATE-----
"""


@contextmanager
def encrypted(dsn: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """The DSN of the same database through TLS, as `localhost`, and the file of the certificate."""
    certificate, key = folder / "server.crt", folder / "server.key"
    certificate.write_text(CERTIFICATE)
    key.write_text(KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    target, port = urlsplit(dsn), free_port()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await reader.readexactly(len(REQUEST)) != REQUEST:
                return
            writer.write(b"S")
            await writer.start_tls(context)
            server_reader, server_writer = await asyncio.open_connection(target.hostname, target.port)
            await asyncio.gather(_forward(reader, server_writer), _forward(server_reader, writer))
        except (OSError, EOFError):
            # A client that does not like the certificate hangs up.
            return
        finally:
            writer.close()

    async def end() -> None:
        listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    listener = asyncio.run_coroutine_threadsafe(asyncio.start_server(serve, "localhost", port), loop).result(10)
    try:
        yield dsn.replace(f"{target.hostname}:{target.port}/", f"localhost:{port}/"), certificate
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until either side ends."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()
