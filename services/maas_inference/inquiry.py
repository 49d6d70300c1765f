"""What a front does not know it asks of its manager: a line of JSON there, a line back, on a connection of its own.

Only REST comes this way, and only what is rare; the same calls over gRPC go to the manager directly.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec

from maas_inference.front.failures import InternalError, status_of
from maas_inference.repository import Repository
from maas_runtime.failures import Failure, Unavailable

logger = logging.getLogger(__name__)

INQUIRY_SOCKET: Final = "manager.sock"
"""The manager's socket for inquiries, in the run folder."""
ANSWER_SECONDS: Final = 30.0
"""How long an answer may take; loading a model is the longest."""
_MAX_LINE_BYTES: Final = 16 << 20


class ManagerAway(Unavailable):
    """The manager of this front cannot be asked."""

    reason = "MANAGER_AWAY"


class Inquiry(msgspec.Struct, frozen=True):
    """A question about a model, or about all."""

    about: Literal["statistics", "load", "unload"]
    model: str = ""
    version: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """The HTTP status and the JSON that a caller gets."""

    status: int
    content: Any


Ask: TypeAlias = Callable[[Inquiry], Awaitable[Outcome]]
"""Asks the manager. Raises ManagerAway."""

_encode: Final = msgspec.json.Encoder().encode
_decode_inquiry: Final = msgspec.json.Decoder(Inquiry).decode
_decode_outcome: Final = msgspec.json.Decoder(Outcome).decode


def asker(path: str) -> Ask:
    """Return what asks the manager that listens at `path`."""

    async def ask(inquiry: Inquiry) -> Outcome:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reader, writer = await asyncio.open_unix_connection(path, limit=_MAX_LINE_BYTES)
                try:
                    writer.write(_encode(inquiry) + b"\n")
                    return _decode_outcome(await reader.readline())
                finally:
                    writer.close()
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise ManagerAway("the inference manager cannot be asked now; retry") from error

    return ask


@asynccontextmanager
async def answering(path: Path, repository: Repository) -> AsyncIterator[None]:
    """Answer inquiries at `path` while the context is open."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            outcome = await _outcome(repository, _decode_inquiry(await reader.readline()))
            writer.write(_encode(outcome) + b"\n")
            await writer.drain()
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            logger.warning("a front's inquiry broke", extra={"error": str(error)})
        finally:
            writer.close()

    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # what a killed manager left
    server = await asyncio.start_unix_server(serve, path, limit=_MAX_LINE_BYTES)
    try:
        yield
    finally:
        server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


async def _outcome(repository: Repository, inquiry: Inquiry) -> Outcome:
    try:
        match inquiry.about:
            case "statistics":
                return Outcome(200, {"model_stats": repository.statistics(inquiry.model, inquiry.version)})
            case "load":
                await repository.load(inquiry.model)
            case "unload":
                await repository.unload(inquiry.model)
    except Failure as failure:
        return _refusal(failure)
    except Exception:
        logger.exception("an inquiry failed", extra={"about": inquiry.about})
        return _refusal(InternalError("internal error of the inference manager"))
    return Outcome(200, {})


def _refusal(failure: Failure) -> Outcome:
    status = status_of(failure)
    return Outcome(status.http, {"error": failure.message, "reason": failure.reason, "code": status.name})
