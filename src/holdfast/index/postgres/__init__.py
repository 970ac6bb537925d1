"""The index in PostgreSQL: for managed clouds, and for whoever runs it with a standby."""

from holdfast.index.postgres.index import PostgresIndex, PostgresOptions, open_postgres

__all__ = ["PostgresIndex", "PostgresOptions", "open_postgres"]
