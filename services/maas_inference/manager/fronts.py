"""The manager's side of the link to the fronts: tables go out, reports come in."""

import asyncio
import contextlib
import logging
import math
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from maas.names import DeploymentName, VersionName
from maas_inference.counts import FrontCounts
from maas_inference.manager.front_metrics import front_families
from maas_inference.table import FrontReport, ModelTable, VersionUse

logger = logging.getLogger(__name__)

_MAX_LINE_BYTES = 16 << 20
_encode_table = msgspec.json.Encoder().encode
_decode_report = msgspec.json.Decoder(FrontReport).decode


class _Front:
    """One connected front."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.report = FrontReport(0)
        self.uses: dict[tuple[str, str], VersionUse] = {}
        self.counts = FrontCounts()
        self.table_changed = asyncio.Event()


class Fronts(Collector):
    """All connected fronts. As a collector it shows what they count, each under its number."""

    def __init__(self) -> None:
        self._table = ModelTable()
        self._fronts: set[_Front] = set()
        self._reported = asyncio.Event()
        self.on_report: Callable[[], None] = lambda: None
        """Called after each report."""

    @property
    def count(self) -> int:
        """How many fronts are connected."""
        return len(self._fronts)

    def publish(self, table: ModelTable) -> None:
        """Send a table to all fronts, and to those that come later."""
        self._table = table
        for front in self._fronts:
            front.table_changed.set()

    def use(self, deployment: DeploymentName, version: VersionName) -> VersionUse:
        """Return how all fronts together use a version, as they last said."""
        key = (deployment.deployment_id, str(version.number))
        uses = [use for front in self._fronts if (use := front.uses.get(key)) is not None]
        return VersionUse(
            *key,
            idle_seconds=min((use.idle_seconds for use in uses), default=math.inf),
            in_flight_seconds=max((use.in_flight_seconds for use in uses), default=0.0),
            waits_for_worker=any(use.waits_for_worker for use in uses),
        )

    async def until_obeyed(self, revision: int, timeout: float) -> None:
        """Wait until every front obeys that table or a newer one, at most `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while any(front.report.revision < revision for front in self._fronts):
                    self._reported.clear()
                    await self._reported.wait()

    @asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        """Take connections at `path` while the context is open."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # what a killed manager left
        server = await asyncio.start_unix_server(self._serve, path, limit=_MAX_LINE_BYTES)
        try:
            yield
        finally:
            server.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def collect(self) -> Iterable[Metric]:
        """Return the families of all fronts, joined by name."""
        return front_families({str(front.number): front.counts for front in sorted(self._fronts, key=_number)})

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken = {front.number for front in self._fronts}
        front = _Front(next(number for number in range(len(taken) + 1) if number not in taken))
        self._fronts.add(front)
        logger.info("front connected", extra={"front": front.number})
        sending = asyncio.ensure_future(self._send_tables(front, writer))
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                front.report = _decode_report(line)
                front.uses = {(use.deployment, use.version): use for use in front.report.uses}
                if front.report.counts is not None:
                    front.counts = front.report.counts
                self._reported.set()
                self.on_report()
        except (OSError, ValueError, msgspec.DecodeError) as error:
            logger.warning("the link to a front broke", extra={"front": front.number, "error": str(error)})
        finally:
            sending.cancel()
            self._fronts.discard(front)
            self._reported.set()
            writer.close()
            logger.info("front gone", extra={"front": front.number})

    async def _send_tables(self, front: _Front, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # the reader's side sees the same end
            while True:
                front.table_changed.clear()
                writer.write(_encode_table(self._table) + b"\n")
                await writer.drain()
                await front.table_changed.wait()


def _number(front: _Front) -> int:
    return front.number
