"""A database of a PostgreSQL server: waits are bounded, and a server that is away is a failure to be retried."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from sqlalchemy import Row, Select, event, exc
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from maas_runtime.database.failures import DatabaseCorrupt, DatabaseUnavailable, database_busy
from maas_runtime.failures import Failure
from maas_runtime.storage import StorageFailed, StorageFull, StorageReadOnly

_READERS = 8
_CONNECT_SECONDS = 5.0
_STATEMENT_MILLISECONDS = 10_000
# The server ends a statement long before; this is for a server that went away without a word.
_LONGEST_SECONDS = 30.0
# Any number will do, as long as all who write to one database take the same.
_WRITERS_LOCK = 0x6D616173
_SERVER_SETTINGS = {
    "application_name": "maas",
    "jit": "off",  # compiles what runs for a millisecond
    "lock_timeout": str(_STATEMENT_MILLISECONDS),
}


@dataclass(frozen=True, slots=True)
class PostgresqlDatabase:
    """Where the database is: a libpq URL, password and all. What is shown of it is the host and the database."""

    url: str = field(repr=False)

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        return f"postgresql://{host}{parts.path}"

    @property
    def readers(self) -> int:
        """How many transactions read at once."""
        return _READERS

    @property
    def longest_seconds(self) -> float:
        """When a transaction is given up."""
        return _LONGEST_SECONDS

    async def check(self) -> None:
        """Do nothing: the first connection tells what the server has against it, and leaves nothing behind."""

    def migrating(self) -> AsyncEngine:
        """Return one connection that writes alone, for as long as it takes."""
        return _alone(self._engine(1, statement_milliseconds=0))

    def writing(self) -> AsyncEngine:
        """Return the one connection of this process that writes.

        Each transaction waits until nobody else writes, in other processes either. So transactions become visible in
        the order in which they began, and what one has looked up still holds when it writes.
        """
        return _alone(self._engine(1))

    def reading(self) -> AsyncEngine:
        """Return connections whose transactions see one state of the whole database."""
        return self._engine(
            _READERS, isolation_level="REPEATABLE READ", execution_options={"postgresql_readonly": True}
        )

    def querying(self, reading: AsyncEngine) -> "_Queries":
        """Return what answers a single query: without a transaction, it is one message and one answer."""
        return _Queries(reading.execution_options(isolation_level="AUTOCOMMIT"))

    def failure_of(self, error: BaseException) -> Failure | None:
        """Return the failure that an error stands for; None when it is a bug of ours."""
        origin = error.orig if isinstance(error, exc.DBAPIError) else error
        # A broken connection is an OSError, as is a TimeoutError; what SQLAlchemy saw break, it says so.
        if isinstance(origin, OSError) or (isinstance(error, exc.DBAPIError) and error.connection_invalidated):
            return self._away()
        code = getattr(origin, "sqlstate", None) or ""
        match code:
            case "53100":
                return StorageFull(f"the disk of {self} is full: free space there", retry_after_seconds=30.0)
            case "25006":
                return StorageReadOnly(
                    f"{self} takes no writes: use the primary, not a standby", retry_after_seconds=30.0
                )
            case "58030":
                return StorageFailed(f"the disk of {self} failed ({origin}): check it, then try again")
            case "XX001" | "XX002":
                return DatabaseCorrupt(f"{self} is damaged ({origin}): restore it from a backup", name=str(self))
            case "57014" | "55P03" | "53200" | "53300" | "40001" | "40P01":
                return database_busy()
            case "42501" | "3D000" | "28000" | "28P01":
                return DatabaseUnavailable(f"{self} does not let this process in: {origin}")
        return self._away() if code.startswith(("08", "57P")) else None

    def _away(self) -> Failure:
        return DatabaseUnavailable(f"{self} does not answer: is it up? Then try again")

    def _engine(
        self, connections: int, statement_milliseconds: int = _STATEMENT_MILLISECONDS, **options: Any
    ) -> AsyncEngine:
        async def connect() -> asyncpg.Connection:
            settings = _SERVER_SETTINGS | {
                "statement_timeout": str(statement_milliseconds),
                "idle_in_transaction_session_timeout": str(3 * statement_milliseconds),
            }
            return await asyncpg.connect(self.url, timeout=_CONNECT_SECONDS, server_settings=settings)

        engine = create_async_engine(
            "postgresql+asyncpg://", async_creator=connect, pool_size=connections, max_overflow=0, **options
        )

        @event.listens_for(engine.sync_engine, "checkout")
        def check(connection: Any, *_: Any) -> None:
            # A server that was started again has said so to the socket; it costs nothing to look.
            if connection.driver_connection.is_closed():
                raise exc.DisconnectionError

        return engine


class _Queries:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        async with self._engine.connect() as connection:
            found: Sequence[Row[Any]] = (await connection.execute(query)).all()
            return found

    async def close(self) -> None:
        """Close nothing: the connections are those of the transactions."""


def _alone(engine: AsyncEngine) -> AsyncEngine:
    @event.listens_for(engine.sync_engine, "begin")
    def wait_for_turn(connection: Any) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS_LOCK})")

    return engine
