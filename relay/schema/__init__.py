"""The relay's own tables and functions, as numbered steps of plain SQL. Command, Alembic and file all run these."""
