"""`python -m relay.demo`: what `relay demo` becomes."""

from __future__ import annotations

import sys

from relay.errors import RelayError


def _main() -> int:
    try:
        from relay.demo.run import main
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("relay"):
            raise
        sys.stderr.write(f"RLY-208: the demo needs the package {error.name}. Fix: pip install 'relay[demo]'\n")
        return 6
    try:
        return main(sys.argv[1:])
    except RelayError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(_main())
