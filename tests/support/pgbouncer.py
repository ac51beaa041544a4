"""A real PgBouncer in transaction mode, before a real server, as a child of this process."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from relay.demo.server import Lifeline, free_port
from tests.support.relay_process import eventually

CONFIG = """\
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
admin_users = postgres
pool_mode = transaction
default_pool_size = {pool_size}
ignore_startup_parameters =
"""


def program() -> str | None:
    """Where PgBouncer is, if it is installed. Debian keeps it out of the PATH of ordinary users."""
    return shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


@contextmanager
def pooled(dsn: str, *, pool_size: int = 6, users: tuple[str, ...] = ("postgres",)) -> Iterator[str]:
    """The DSN of the same database through a pooler of its own."""
    found = program()
    assert found, "PgBouncer is not installed"
    target = urlsplit(dsn)
    own_port = free_port()
    with tempfile.TemporaryDirectory(prefix="relay-pgbouncer-") as place:
        folder = Path(place)
        folder.chmod(0o755)
        user_list = folder / "users.txt"
        user_list.write_text("".join(f'"{user}" ""\n' for user in users))
        config = folder / "pgbouncer.ini"
        config.write_text(
            CONFIG.format(
                host=target.hostname, port=target.port, own_port=own_port, users=user_list, pool_size=pool_size
            )
        )
        # It refuses to run as root, as Postgres does.
        account = ["-u", "nobody"] if os.geteuid() == 0 else []
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([found, *account, str(config)], stdout=log, stderr=log, start_new_session=True)
        lifeline = Lifeline(process.pid, stop_signal="KILL", folder=None)
        try:
            eventually(lambda: _listens(own_port), 30, f"PgBouncer: {(folder / 'log').read_text()}")
            yield dsn.replace(f":{target.port}/", f":{own_port}/")
        finally:
            process.kill()
            process.wait()
            lifeline.release()


@contextmanager
def paused(dsn: str) -> Iterator[None]:
    """Lets open transactions end, closes the pooler's own connections and holds statements back until the end."""
    console = urlsplit(dsn)._replace(path="/pgbouncer").geturl()
    with psycopg.connect(console, autocommit=True) as operator:
        operator.execute("PAUSE")
        yield
        operator.execute("RESUME")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
