"""As `alembic init` writes it, with the URL from the environment."""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import create_engine, pool

from billing.models import Base

URL = os.environ.get("MIGRATIONS_URL") or os.environ["DATABASE_URL"]

if context.is_offline_mode():
    context.configure(url=URL, target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    with create_engine(URL, poolclass=pool.NullPool).connect() as connection:
        context.configure(connection=connection, target_metadata=Base.metadata)
        with context.begin_transaction():
            context.run_migrations()
