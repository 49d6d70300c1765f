"""A process's own database: one SQLite file, or a database of a PostgreSQL server."""
