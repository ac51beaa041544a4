"""Relay keeps copies of Postgres rows correct.

`relay.outbox` runs in your service and writes events in your transaction, `relay.daemon` moves them to Kafka,
`relay.cli` is the operator's desk. This module imports nothing, so a service that writes events loads nothing else.
"""

__version__ = "0.1.0"
