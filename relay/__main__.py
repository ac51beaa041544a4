"""`relay` and `python -m relay`: the command line, or one line that says what is missing for it."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line."""
    try:
        from relay.cli.main import cli
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("relay"):
            raise
        line = f"RLY-208: the command line needs the package {error.name}. Fix: pip install 'relay[daemon]'\n"
        sys.stderr.write(line)
        sys.exit(6)
    cli()


if __name__ == "__main__":
    main()
