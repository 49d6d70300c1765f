"""The options that commands share, and the connection that they lead to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maas.cli.errors import ClusterUnreachable, is_unreachable
from maas.errors import UnavailableError

if TYPE_CHECKING:
    from maas.client import Client

DEFAULT_HOME = Path("~/.maas")
DEFAULT_PORT = 8080

_RETRY_SECONDS = 2.0
"""A person rather hears soon that nothing answers than waits for it."""

Home = Annotated[
    Path, typer.Option("--home", envvar="MAAS_HOME", help="Folder of the cluster on this machine.", show_default=True)
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        envvar="MAAS_ENDPOINT",
        help="Where the cluster answers, HOST:PORT. Default: the one of this machine, else 127.0.0.1:8080.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout, and nothing else.")]


def endpoint_or_default(endpoint: str | None) -> str:
    """Return the endpoint that was asked for, else that of the cluster on this machine, else the usual one."""
    if endpoint:
        return endpoint
    from maas.supervisor.home import Home, running_state

    state = running_state(Home(Path(os.environ.get("MAAS_HOME", DEFAULT_HOME)).expanduser()))
    return state.endpoint if state else f"127.0.0.1:{DEFAULT_PORT}"


@contextmanager
def connected(endpoint: str | None, *, retry_seconds: float = _RETRY_SECONDS) -> Iterator["Client"]:
    """Give a client, and say plainly when nobody is there. Raises MaasError."""
    from maas.client import Client

    address = endpoint_or_default(endpoint)
    try:
        with Client(address, retry_seconds=retry_seconds) as client:
            yield client
    except UnavailableError as error:
        if not is_unreachable(error, address):
            raise
        raise ClusterUnreachable(address) from error


def parse_time(text: str) -> datetime:
    """Return the time that `2026-03-03`, `2026-03-03 14:30` or `2026-03-03T14:30:00Z` means; here, without a zone."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"{text!r} is no time: write 2026-03-03, or 2026-03-03T14:30:00Z") from error


At = Annotated[
    datetime | None,
    typer.Option(
        "--at",
        parser=parse_time,
        metavar="TIME",
        help="As it was then: 2026-03-03 (as the day began, here) or 2026-03-03T14:30:00Z.",
    ),
]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the history.")]
