"""What arrived of unfinished uploads, as files `<sha256>.part` of one folder."""

import asyncio
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from maas.names import BlobName
from maas_registry.domain.blobs import Blob, BlobCorrupt, BlobState
from maas_registry.storage.disk import Disk
from maas_runtime.completion import to_its_end

if TYPE_CHECKING:
    from hashlib import _Hash

_CHUNK_BYTES = 2**20
_ABANDONED_AFTER_SECONDS = 7 * 24 * 3600
_REMEMBERED_HASHES = 256


class Parts:
    """The folder of unfinished uploads. It is on this machine also when committed blobs are not."""

    def __init__(self, disk: Disk, folder: Path) -> None:
        self._disk = disk
        self._folder = folder
        self._open: set[BlobName] = set()
        # Hashes of what unfinished uploads have stored, so that going on with one need not read it again.
        self._hashes: OrderedDict[BlobName, tuple[int, _Hash]] = OrderedDict()

    def path(self, name: BlobName) -> Path:
        """Return where the bytes of the blob are, or would be."""
        return self._folder / f"{name.sha256}.part"

    def prepare(self) -> None:
        """Make the folder. Blocks."""
        self._folder.mkdir(parents=True, exist_ok=True)

    async def find(self, name: BlobName) -> Blob | None:
        """Return what arrived of a blob; None when nothing did."""

        def find() -> Blob | None:
            try:
                return Blob(name, BlobState.RECEIVING, self.path(name).stat().st_size)
            except FileNotFoundError:
                return None

        return await self._disk.run(find)

    async def drop_abandoned(self) -> int:
        """Remove what nobody went on with for a week, and return how many there were."""

        in_use = {self.path(name) for name in self._open}

        def drop() -> int:
            dropped = 0
            for left in self._folder.glob("*.part"):
                if left not in in_use and time.time() - left.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                    left.unlink()
                    dropped += 1
            return dropped

        return await self._disk.run(drop)

    @asynccontextmanager
    async def open(self, name: BlobName, offset: int) -> AsyncIterator["Part"]:
        """Go on with an upload at `offset`, dropping what is stored behind it."""
        file = _PartFile(self.path(name), name)
        remembered = self._hashes.pop(name, None)
        part = Part(self._disk, file)
        self._open.add(name)
        try:
            await self._disk.run(lambda: file.open(offset, remembered))
            yield part
        finally:
            try:
                await to_its_end(part.close())
            finally:
                self._open.discard(name)
            if file.worth_going_on:
                self._remember(name, file)

    def _remember(self, name: BlobName, file: "_PartFile") -> None:
        self._hashes[name] = (file.stored_bytes, file.digest)
        while len(self._hashes) > _REMEMBERED_HASHES:
            self._hashes.popitem(last=False)


class Part:
    """A file that grows. While one chunk is written and hashed, on two threads, the next may arrive."""

    def __init__(self, disk: Disk, file: "_PartFile") -> None:
        self._disk = disk
        self._file = file
        self._under_way: list[asyncio.Future[None]] = []
        self._accepted_bytes: int | None = None

    @property
    def path(self) -> Path:
        """Where the bytes are."""
        return self._file.path

    @property
    def received_bytes(self) -> int:
        """How many bytes there are, those of earlier uploads and those under way included."""
        return self._file.stored_bytes if self._accepted_bytes is None else self._accepted_bytes

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes. Raises what went wrong with these or the ones before."""
        await self._settle()
        self._accepted_bytes = self._file.stored_bytes + len(chunk)
        self._under_way = [
            self._disk.begin(lambda: self._file.append(chunk)),
            self._disk.begin(lambda: self._file.digest.update(chunk)),
        ]

    async def complete(self) -> None:
        """Have all of the bytes on disk. Raises BlobCorrupt and drops them when they have not the blob's hash."""
        await self._settle()
        await self._disk.run(self._file.complete)

    async def close(self) -> None:
        """End the work that is under way, and close the file."""
        under_way, self._under_way = self._under_way, []
        if under_way:
            await asyncio.wait(under_way)
        for work in under_way:
            if work.exception() is not None:
                self._file.broken = True
        await self._disk.run(self._file.close)

    async def _settle(self) -> None:
        for work in self._under_way:
            await self._disk.end(work)
        self._under_way = []


class _PartFile:
    """A file that grows, with the hash of all that is in it. Everything here blocks."""

    def __init__(self, path: Path, name: BlobName) -> None:
        self.path = path
        self._name = name
        self._file: FileIO | None = None
        self.digest = hashlib.sha256()
        self.stored_bytes = 0
        self.broken = False
        """Whether the hash may be of other bytes than those on disk."""
        self._left = False

    @property
    def worth_going_on(self) -> bool:
        """Whether a later upload can take up this one's hash; known once it is closed."""
        return self.stored_bytes > 0 and self._left and not self.broken

    def open(self, offset: int, remembered: "tuple[int, _Hash] | None") -> None:
        self._file = FileIO(self.path, "r+" if offset else "w")
        if remembered is not None and remembered[0] == offset == self.path.stat().st_size:
            self.digest = remembered[1]
        else:
            self._hash_start(offset)
        if offset:
            self._file.truncate(offset)
            self._file.seek(offset)
        self.stored_bytes = offset

    def append(self, chunk: bytes) -> None:
        assert self._file is not None
        rest = memoryview(chunk)
        while rest:
            written = self._file.write(rest)
            self.stored_bytes += written
            rest = rest[written:]

    def complete(self) -> None:
        assert self._file is not None
        if self.digest.hexdigest() != self._name.sha256:
            self.path.unlink()
            raise BlobCorrupt(
                f"the bytes that arrived have SHA-256 {self.digest.hexdigest()}, not that of {self._name}; they were "
                "dropped: upload again from the start",
                name=str(self._name),
            )
        try:
            os.fsync(self._file.fileno())
        except OSError:
            self.path.unlink()  # nobody knows which of its bytes are on disk, and another fsync would not tell
            raise

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._left = self.path.exists()

    def _hash_start(self, size_bytes: int) -> None:
        assert self._file is not None
        while size_bytes:
            chunk = self._file.read(min(size_bytes, _CHUNK_BYTES))
            self.digest.update(chunk)
            size_bytes -= len(chunk)
