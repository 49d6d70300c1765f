"""Where a database is, as one sets it."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from maas_runtime.database.postgresql import PostgresqlDatabase
from maas_runtime.database.sqlite import SqliteFile


def parse_database_url(url: str) -> SqliteFile | PostgresqlDatabase:
    """Return what `sqlite:////folder/file` or `postgresql://user:password@host/database` names.

    Raises ValueError with what is wrong, without the URL: it may hold a password.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        path = Path(unquote(rest[1:]))
        if path.is_absolute():
            return SqliteFile(path)
        raise ValueError("names a file by a relative path; use sqlite:////folder/file, with four slashes")
    if scheme in ("postgresql", "postgres") and urlsplit(url).path.strip("/"):
        return PostgresqlDatabase(url)
    raise ValueError("is no database; use sqlite:////folder/file or postgresql://user:password@host:5432/database")
