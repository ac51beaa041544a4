"""The services under examples/: as they were before Relay, and as they are with it.

The repository keeps the adopted state. What made it so is a patch beside it; taking that back gives the state before.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from relay.migrations.revision import IMPORT
from tests.support.hosts import EXAMPLES, Host

#: The service as its clients and cron see it: requests, or command lines, one after the other.
PROGRAMS = {
    "fastapi_async": """\
import json, sys
from fastapi.testclient import TestClient
from catalogue.app import app

with TestClient(app) as client:
    for method, path, body in json.loads(sys.argv[1]):
        answer = client.request(method, path, json=body)
        print(json.dumps([answer.status_code, answer.json() if answer.content else None]))
""",
    "sync_service": """\
import json, sys
from billing.__main__ import main

for argv in json.loads(sys.argv[1]):
    main(argv)
""",
}


class Example(Host):
    """A copy of one service in the state before, on a database of its own."""

    def __init__(self, name: str, where: Path, dsn: str) -> None:
        super().__init__(name, where, dsn, of=EXAMPLES)
        for path in self.files():
            if IMPORT in (self.root / path).read_text():
                (self.root / path).unlink()
        self.abandon()
        self.original = where / "before" / name
        shutil.copytree(self.root, self.original)

    def adopt(self) -> None:
        """Makes the edits that its owner makes by hand."""
        self._apply()

    def abandon(self) -> None:
        """Takes them back."""
        self._apply("--reverse")

    def use(self, *given: object, dsn: str | None = None) -> list:
        """What the service answers: a status and a body for each request, or the line that a command prints."""
        ended = self.python(PROGRAMS[self.name], given, dsn=dsn)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        lines = ended.stdout.splitlines()
        return [json.loads(line) for line in lines] if self.name == "fastapi_async" else lines

    def _apply(self, *options: str) -> None:
        patch = EXAMPLES / f"{self.name}.patch"
        subprocess.run(["git", "apply", *options, str(patch)], cwd=self.root, check=True)
