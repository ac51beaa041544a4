"""The relay's own tables and functions, as numbered steps of plain SQL. Each door (command, Alembic, file) runs these."""
