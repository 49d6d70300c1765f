"""What tests of several folders share."""

from collections.abc import Iterator

import pytest
from postgresql_server import PostgresqlServer, started_postgresql


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """One server for all tests of a run; each takes a database of its own."""
    with started_postgresql() as server:
        yield server
