"""Blobs as files.

blobs/<2 hex>/<sha256>     committed
uploads/<sha256>.part      what arrived of an unfinished upload
damaged/<sha256>           committed once, found with other bytes since; kept for whoever wants to know why
"""

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from maas.names import BlobName
from maas_registry.domain.blobs import Blob, BlobCorrupt, BlobState
from maas_registry.storage.disk import Disk

if TYPE_CHECKING:
    from hashlib import _Hash

_CHUNK_BYTES = 2**20
_ABANDONED_AFTER_SECONDS = 7 * 24 * 3600
_REMEMBERED_HASHES = 256

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where what lies."""

    folder: Path

    def blob(self, name: BlobName) -> Path:
        return self.folder / "blobs" / name.sha256[:2] / name.sha256

    def part(self, name: BlobName) -> Path:
        return self.folder / "uploads" / f"{name.sha256}.part"

    def damaged(self, name: BlobName) -> Path:
        return self.folder / "damaged" / name.sha256


class BlobFolder:
    """BlobStore in a folder of this machine."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._layout = _Layout(disk.folder)
        # Hashes of what unfinished uploads have stored, so that going on with one need not read it again.
        self._hashes: OrderedDict[BlobName, tuple[int, _Hash]] = OrderedDict()

    async def prepare(self) -> None:
        """Make the folders, and drop uploads that nobody went on with for a week."""

        def prepare() -> None:
            blobs, uploads, damaged = (self._layout.folder / part for part in ("blobs", "uploads", "damaged"))
            for folder in (uploads, damaged, *(blobs / f"{prefix:02x}" for prefix in range(256))):
                folder.mkdir(parents=True, exist_ok=True)
            _sync_folder(blobs)
            _sync_folder(self._layout.folder)
            for left in uploads.glob("*.part"):
                if time.time() - left.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                    left.unlink()

        await self._disk.run(prepare)

    async def find(self, name: BlobName) -> Blob | None:
        """Return what is stored of a blob; None when nothing is."""

        def find() -> Blob | None:
            for state, path in (
                (BlobState.COMMITTED, self._layout.blob(name)),
                (BlobState.RECEIVING, self._layout.part(name)),
                (BlobState.DAMAGED, self._layout.damaged(name)),
            ):
                try:
                    return Blob(name, state, path.stat().st_size)
                except FileNotFoundError:
                    continue
            return None

        return await self._disk.run(find)

    @asynccontextmanager
    async def upload(self, name: BlobName, offset: int) -> AsyncIterator["FolderUpload"]:
        """Go on with an upload at `offset`, dropping what is stored behind it."""
        part = _PartFile(self._layout, name)
        remembered = self._hashes.pop(name, None)
        try:
            await self._disk.run(lambda: part.open(offset, remembered))
            yield FolderUpload(self._disk, part)
        finally:
            await self._disk.run(part.close)
            if part.worth_going_on:
                self._remember(name, part)

    async def read(self, name: BlobName, offset: int) -> AsyncGenerator[bytes, None]:
        """Yield a committed blob's bytes; a full read ends with BlobCorrupt when they do not have its hash."""
        blob = _BlobFile(self._layout.blob(name))
        try:
            await self._disk.run(lambda: blob.open(offset))
            while chunk := await self._disk.run(blob.next_chunk):
                yield chunk
        finally:
            await self._disk.run(blob.close)
        if offset == 0 and blob.digest.hexdigest() != name.sha256:
            await self._set_aside(name)
            raise BlobCorrupt(f"the stored bytes of {name} are damaged: upload them again", name=str(name))

    async def inspect(self, name: BlobName, look: Callable[[Path], ResultT]) -> ResultT:
        """Return what `look` finds in the blob's file."""
        return await self._disk.run(lambda: look(self._layout.blob(name)))

    async def _set_aside(self, name: BlobName) -> None:
        def set_aside() -> None:
            try:
                os.replace(self._layout.blob(name), self._layout.damaged(name))
            except FileNotFoundError:
                return  # another reader found it damaged and was quicker

        await self._disk.run(set_aside)

    def _remember(self, name: BlobName, part: "_PartFile") -> None:
        self._hashes[name] = (part.received_bytes, part.digest)
        while len(self._hashes) > _REMEMBERED_HASHES:
            self._hashes.popitem(last=False)


class FolderUpload:
    """An upload whose bytes are appended to a file."""

    def __init__(self, disk: Disk, part: "_PartFile") -> None:
        self._disk = disk
        self._part = part

    @property
    def received_bytes(self) -> int:
        """How many bytes are stored, those of earlier uploads included."""
        return self._part.received_bytes

    async def write(self, chunk: bytes) -> None:
        """Store the next bytes."""
        await self._disk.run(lambda: self._part.append(chunk))

    async def commit(self) -> None:
        """Make the blob visible, on disk. Raises BlobCorrupt and drops what arrived when the hash is wrong."""
        await self._disk.run(self._part.commit)


class _PartFile:
    """A file that grows, with the hash of all that is in it. Everything here blocks."""

    def __init__(self, layout: _Layout, name: BlobName) -> None:
        self._layout = layout
        self._name = name
        self._file: FileIO | None = None
        self.digest = hashlib.sha256()
        self.received_bytes = 0
        self._ended = False

    @property
    def worth_going_on(self) -> bool:
        """Whether a later upload can take up this one's hash."""
        return self.received_bytes > 0 and not self._ended

    def open(self, offset: int, remembered: "tuple[int, _Hash] | None") -> None:
        path = self._layout.part(self._name)
        self._file = FileIO(path, "r+" if offset else "w")
        if remembered is not None and remembered[0] == offset == path.stat().st_size:
            self.digest = remembered[1]
        else:
            self._hash_start(offset)
        if offset:
            self._file.truncate(offset)
            self._file.seek(offset)
        self.received_bytes = offset

    def append(self, chunk: bytes) -> None:
        assert self._file is not None
        rest = memoryview(chunk)
        while rest:
            written = self._file.write(rest)
            self.digest.update(rest[:written])
            self.received_bytes += written
            rest = rest[written:]

    def commit(self) -> None:
        assert self._file is not None
        self._ended = True
        part, blob = self._layout.part(self._name), self._layout.blob(self._name)
        if self.digest.hexdigest() != self._name.sha256:
            part.unlink()
            raise BlobCorrupt(
                f"the bytes that arrived have SHA-256 {self.digest.hexdigest()}, not that of {self._name}; they were "
                "dropped: upload again from the start",
                name=str(self._name),
            )
        try:
            os.fsync(self._file.fileno())
        except OSError:
            part.unlink()  # nobody knows which of its bytes are on disk, and another fsync would not tell
            raise
        os.replace(part, blob)
        _sync_folder(blob.parent)
        self._layout.damaged(self._name).unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _hash_start(self, size_bytes: int) -> None:
        assert self._file is not None
        while size_bytes:
            chunk = self._file.read(min(size_bytes, _CHUNK_BYTES))
            self.digest.update(chunk)
            size_bytes -= len(chunk)


class _BlobFile:
    """A file that is read to its end, with the hash of what was read. Everything here blocks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self.digest = hashlib.sha256()

    def open(self, offset: int) -> None:
        self._file = FileIO(self._path)
        self._file.seek(offset)

    def next_chunk(self) -> bytes:
        assert self._file is not None
        chunk = self._file.read(_CHUNK_BYTES)
        self.digest.update(chunk)
        return chunk

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
