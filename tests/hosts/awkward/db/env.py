"""An async engine, a schema of the application's own, and another team's that its filter leaves alone."""

from __future__ import annotations

import asyncio
import os

from alembic import context
from models import Base
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

URL = os.environ["DATABASE_URL"]


def ours(name, type_, parent_names):
    """The schema `legacy` belongs to another team."""
    return not (type_ == "schema" and name == "legacy")


SHARED = {
    "target_metadata": Base.metadata,
    "version_table": "revisions",
    "version_table_schema": "shop",
    "include_schemas": True,
    "include_name": ours,
    "transaction_per_migration": True,
}


def run_migrations(connection: Connection) -> None:
    """Runs them; the version table needs the schema before the first revision could create it."""
    connection.execute(text("CREATE SCHEMA IF NOT EXISTS shop"))
    connection.commit()
    context.configure(connection=connection, **SHARED)
    with context.begin_transaction():
        context.run_migrations()


async def run_migrations_online() -> None:
    """Connects with asyncpg."""
    engine = create_async_engine(URL, poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run_migrations)
    await engine.dispose()


if context.is_offline_mode():
    context.configure(url=URL, literal_binds=True, **SHARED)
    with context.begin_transaction():
        context.execute("CREATE SCHEMA IF NOT EXISTS shop")
        context.run_migrations()
else:
    asyncio.run(run_migrations_online())
