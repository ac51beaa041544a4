"""Versions that this session has written, for reading one's own writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session, SessionTransaction

KEY = "relay.versions"


@dataclass(slots=True)
class Entry:
    """The versions of one flush, and the transaction or savepoint that they live and die with."""

    transaction: SessionTransaction
    entities: Sequence[str]
    ids: Sequence[str]
    versions: Sequence[int | None]
    by_name: dict[tuple[str, str], int | None] | None = None
    """Made by the first question: most flushes are never asked, and 10,000 keys cost as much as the flush's call."""

    def find(self, name: tuple[str, str]) -> tuple[bool, int | None]:
        """Whether the flush has changed this entity, and its version."""
        if self.by_name is None:
            self.by_name = dict(zip(zip(self.entities, self.ids, strict=True), self.versions, strict=True))
        return name in self.by_name, self.by_name.get(name)


def note(session: Session, entities: Sequence[str], ids: Sequence[str], versions: Sequence[int | None]) -> None:
    """Keeps what a flush has raised. What an earlier transaction has left is dropped by the next one that writes."""
    transaction = session.get_nested_transaction() or session.get_transaction()
    if transaction is None:
        return
    journal = session.info.setdefault(KEY, [])
    if journal and _root(journal[0].transaction) is not _root(transaction):
        journal.clear()
    journal.append(Entry(transaction, entities, ids, versions))


def rolled_back(session: Session, transaction: SessionTransaction) -> None:
    """Drops what went with a transaction or a savepoint."""
    journal = session.info.get(KEY)
    if journal:
        journal[:] = [entry for entry in journal if not is_within(entry.transaction, transaction)]


def find(session: Session, name: tuple[str, str]) -> int | None:
    """The last version of the entity in the transaction of this session that wrote last."""
    for entry in reversed(session.info.get(KEY, ())):
        is_there, version = entry.find(name)
        if is_there:
            found: int | None = version
            return found
    return None


def written(session: Session) -> Iterator[tuple[str, str, int]]:
    """All versions that the session has written in the transaction that it is in."""
    transaction = session.get_transaction()
    for entry in session.info.get(KEY, ()):
        if transaction is not None and _root(entry.transaction) is _root(transaction):
            for entity, id_, version in zip(entry.entities, entry.ids, entry.versions, strict=True):
                if version is not None:
                    yield entity, id_, version


def _root(transaction: SessionTransaction) -> SessionTransaction:
    while transaction.parent is not None:
        transaction = transaction.parent
    return transaction


def is_within(inner: Any, outer: SessionTransaction) -> bool:
    """Whether one transaction is the other, or a savepoint in it."""
    while inner is not None:
        if inner is outer:
            return True
        inner = inner.parent
    return False
