"""The names under which a shared tier keeps things. It puts its namespace before them; nobody else composes keys."""

from __future__ import annotations


def record_name(entity: str, id: str) -> str:  # noqa: A002
    """The record of an entity. An entity name holds no colon, so no two entities share a name."""
    return f"r:{entity}:{id}"


def versioned_prefix(entity: str) -> str:
    """Before `{id}:v{version}`, where each version of an entity has a key of its own: no two of those are the same."""
    return f"v:{entity}:"


def derived_name(cache: str, digest: str) -> str:
    """A record that was computed from several entities."""
    return f"d:{cache}:{digest}"


def stamp_name(stamp: str) -> str:
    """A stamp: it changes whenever something that derived records depend on has changed."""
    return f"s:{stamp}"
