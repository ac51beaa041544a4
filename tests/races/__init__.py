"""Ten of the races of docs/RACES.md, played step by step against the caches in use and against Relay.

`make races` plays all and writes the table of docs/COMPARISON-CACHES.md; the column of Relay is played by `make test`.
"""
