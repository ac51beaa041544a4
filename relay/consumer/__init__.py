"""Following changes inside a service: keeping caches right, and own hooks."""

from relay.consumer.calls import HookSettings
from relay.consumer.consumer import Consumer
from relay.consumer.feed import Feed
from relay.consumer.health import Health, Problem
from relay.consumer.hooks import Key, Stamp
from relay.core.change import Change, Limits

__all__ = ["Change", "Consumer", "Feed", "Health", "HookSettings", "Key", "Limits", "Problem", "Stamp"]
