"""`make races`: plays all races with all caches and writes the table of docs/COMPARISON-CACHES.md."""

from __future__ import annotations

from tests.races import in_use
from tests.races.ours import Relay
from tests.races.races import RACES, play
from tests.races.table import DOCUMENT, write
from tests.support.redis import fresh_namespace, private_server


def main() -> None:
    """Plays and writes."""
    with private_server() as server:
        columns = {
            in_use.title(kind): [play(place.race, lambda source, kind=kind: kind(source, server)) for place in RACES]
            for kind in in_use.ALL
        }
        relay = [play(place.race, lambda source: Relay(source, server, fresh_namespace())) for place in RACES]
    write(columns | {Relay.name: relay})
    print(DOCUMENT.read_text())


if __name__ == "__main__":
    main()
