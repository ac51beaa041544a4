"""As `alembic init` writes it, with the URL from the environment."""

from __future__ import annotations

import os

from alembic import context
from models import Base
from sqlalchemy import create_engine, pool

target_metadata = Base.metadata


def run_migrations_offline() -> None:
    """Prints the SQL."""
    context.configure(
        url=os.environ["DATABASE_URL"],
        target_metadata=target_metadata,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
    )
    with context.begin_transaction():
        context.run_migrations()


def run_migrations_online() -> None:
    """Runs them."""
    engine = create_engine(os.environ["DATABASE_URL"], poolclass=pool.NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=target_metadata)
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
