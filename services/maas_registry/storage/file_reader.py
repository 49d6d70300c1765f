"""Reading a file in chunks, one chunk ahead of whoever takes them."""

import asyncio
from collections.abc import AsyncGenerator
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from maas_registry.storage.disk import Disk
from maas_runtime.completion import to_its_end

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK_BYTES = 2**20


async def read_file(
    disk: Disk, path: Path, offset: int, length: int | None, digest: "_Hash | None" = None
) -> AsyncGenerator[bytes, None]:
    """Yield `length` bytes from `offset` on, or all to the end, in chunks of at most 1 MiB; `digest` is updated.

    While one chunk is on its way to the caller, the next is read.
    """
    opening = disk.begin(lambda: FileIO(path))
    ahead: asyncio.Future[bytes] | None = None
    left = length
    try:
        file = await disk.end(opening)
        await disk.run(lambda: file.seek(offset))

        def next_chunk(size_bytes: int) -> bytes:
            chunk = file.read(size_bytes)
            if digest is not None:
                digest.update(chunk)
            return chunk

        def begin() -> "asyncio.Future[bytes]":
            size_bytes = CHUNK_BYTES if left is None else min(CHUNK_BYTES, left)
            return disk.begin(lambda: next_chunk(size_bytes))

        ahead = begin()
        while chunk := await disk.end(ahead):
            if left is not None:
                left -= len(chunk)
            ahead = begin()
            yield chunk
    finally:
        await to_its_end(_close(disk, opening, ahead))


async def _close(disk: Disk, opening: "asyncio.Future[FileIO]", ahead: "asyncio.Future[bytes] | None") -> None:
    """Close the file, also one that was opened for a caller who had left by then."""
    if ahead is not None:
        await asyncio.wait([ahead])
    if opening.exception() is None:
        await disk.run(opening.result().close)
