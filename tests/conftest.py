"""What tests of several folders share."""

from collections.abc import Iterator

import pytest
from postgresql_server import PostgresqlServer, started_postgresql
from s3_server import S3Server, started_s3


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """One server for all tests of a run; each takes a database of its own."""
    with started_postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One server for all tests of a run."""
    with started_s3() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, with what one needs to be let in; whatever a test did to it is undone."""
    for name, value in (("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(name, value)
    yield s3_server
    s3_server.fault = None
    s3_server.stop()
    s3_server.start()
