"""Entity changes from SQLAlchemy's unit of work. Imported by the first `track`, since it needs SQLAlchemy itself."""
