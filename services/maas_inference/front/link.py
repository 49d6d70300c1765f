"""The front's connection to the manager: model tables come in, reports go out. Lines of JSON on a unix socket.

While the manager is away the front goes on with the last table that it got.
"""

import asyncio
import logging
import time
from typing import Protocol

import msgspec

from maas_inference.front.metrics import FrontMetrics
from maas_inference.table import FrontReport, ModelTable, VersionUse

logger = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
_MAX_LINE_BYTES = 16 << 20
_RECONNECT_SECONDS = (0.02, 0.05, 0.1, 0.2)

_decode_table = msgspec.json.Decoder(ModelTable).decode
_encode_report = msgspec.json.Encoder().encode


class TableUser(Protocol):
    """Serves what a table says."""

    news: asyncio.Event
    """Set when the manager has to hear at once how versions are used."""

    def apply(self, table: ModelTable) -> None:
        """Serve another table from now on."""

    def uses(self) -> tuple[VersionUse, ...]:
        """Return how each version is used now."""


async def keep_link(path: str, user: TableUser, metrics: FrontMetrics) -> None:
    """Be connected to the manager at `path`, until cancelled."""
    failures = 0
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=_MAX_LINE_BYTES)
        except OSError:
            await asyncio.sleep(_RECONNECT_SECONDS[min(failures, len(_RECONNECT_SECONDS) - 1)])
            failures += 1
            continue
        failures = 0
        try:
            await _exchange(reader, writer, user, metrics)
        except (OSError, ValueError, msgspec.DecodeError) as error:
            logger.warning("the link to the manager broke", extra={"error": str(error)})
        finally:
            writer.close()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, user: TableUser, metrics: FrontMetrics
) -> None:
    """Apply each table at once and acknowledge it; report when there is news, and all once a second.

    Returns when the manager hangs up.
    """
    revision = 0
    line = asyncio.ensure_future(reader.readline())
    news = asyncio.ensure_future(user.news.wait())
    next_report = time.monotonic()
    try:
        while True:
            timeout = max(0.0, next_report - time.monotonic())
            done, _ = await asyncio.wait({line, news}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if line in done:
                received = line.result()
                if not received.endswith(b"\n"):
                    return
                table = _decode_table(received)
                user.apply(table)
                revision = table.revision
                line = asyncio.ensure_future(reader.readline())
            if news in done:
                user.news.clear()
                news = asyncio.ensure_future(user.news.wait())
            counts = None
            if time.monotonic() >= next_report:
                next_report = time.monotonic() + REPORT_SECONDS
                counts = metrics.counts()
            writer.write(_encode_report(FrontReport(revision, user.uses(), counts)) + b"\n")
            await writer.drain()
    finally:
        line.cancel()
        news.cancel()
