"""Blobs as files.

blobs/<2 hex>/<sha256>     committed
uploads/<sha256>.part      what arrived of an unfinished upload
damaged/<sha256>           committed once, found with other bytes since; kept for whoever wants to know why
"""

import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from maas.names import BlobName
from maas_registry.domain.blobs import Blob, BlobCorrupt, BlobState
from maas_registry.storage.disk import Disk
from maas_registry.storage.file_reader import read_file
from maas_registry.storage.parts import Part, Parts

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where what lies."""

    folder: Path

    def blob(self, name: BlobName) -> Path:
        return self.folder / "blobs" / name.sha256[:2] / name.sha256

    def damaged(self, name: BlobName) -> Path:
        return self.folder / "damaged" / name.sha256


class BlobFolder:
    """BlobStore in a folder of this machine."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._layout = _Layout(disk.folder)
        self._parts = Parts(disk, disk.folder / "uploads")

    async def prepare(self) -> None:
        """Make the folders, and drop uploads that nobody went on with for a week."""

        def prepare() -> None:
            self._parts.prepare()
            blobs, damaged = (self._layout.folder / part for part in ("blobs", "damaged"))
            for folder in (damaged, *(blobs / f"{prefix:02x}" for prefix in range(256))):
                folder.mkdir(parents=True, exist_ok=True)
            _sync_folder(blobs)
            _sync_folder(self._layout.folder)

        await self._disk.run(prepare)
        await self._parts.drop_abandoned()

    async def find(self, name: BlobName) -> Blob | None:
        """Return what is stored of a blob; None when nothing is."""

        def find() -> Blob | None:
            for state, path in (
                (BlobState.COMMITTED, self._layout.blob(name)),
                (BlobState.RECEIVING, self._parts.path(name)),
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
        async with self._parts.open(name, offset) as part:
            yield FolderUpload(self._disk, self._layout, name, part)

    async def read(self, name: BlobName, offset: int, length: int | None) -> AsyncGenerator[bytes, None]:
        """Yield a committed blob's bytes; a full read ends with BlobCorrupt when they do not have its hash."""
        digest = hashlib.sha256() if offset == 0 and length is None else None
        async with aclosing(read_file(self._disk, self._layout.blob(name), offset, length, digest)) as chunks:
            async for chunk in chunks:
                yield chunk
        if digest is not None and digest.hexdigest() != name.sha256:
            await self._set_aside(name)
            raise BlobCorrupt(f"the stored bytes of {name} are damaged: upload them again", name=str(name))

    async def inspect(self, name: BlobName, look: Callable[[Path], ResultT]) -> ResultT:
        """Return what `look` finds in the blob's file."""
        return await self._disk.run(lambda: look(self._layout.blob(name)))

    async def list(self) -> AsyncIterator[Blob]:
        """Yield all blobs that are committed or damaged."""

        def found(folder: Path, state: BlobState) -> list[Blob]:
            return [Blob(BlobName(path.name), state, path.stat().st_size) for path in folder.glob("[0-9a-f]" * 64)]

        places = [(self._layout.folder / "blobs" / f"{prefix:02x}", BlobState.COMMITTED) for prefix in range(256)]
        for folder, state in [*places, (self._layout.folder / "damaged", BlobState.DAMAGED)]:
            for blob in await self._disk.run(partial(found, folder, state)):
                yield blob

    async def remove(self, name: BlobName) -> None:
        """Remove a blob's bytes, if they are there. Who has begun to read them reads on."""

        def remove() -> None:
            for path in (self._layout.blob(name), self._layout.damaged(name)):
                path.unlink(missing_ok=True)

        await self._disk.run(remove)

    async def drop_abandoned(self) -> int:
        """Remove unfinished uploads that nobody went on with for a week."""
        return await self._parts.drop_abandoned()

    async def _set_aside(self, name: BlobName) -> None:
        def set_aside() -> None:
            try:
                os.replace(self._layout.blob(name), self._layout.damaged(name))
            except FileNotFoundError:
                return  # another reader found it damaged and was quicker

        await self._disk.run(set_aside)


class FolderUpload:
    """An upload whose bytes are appended to a file."""

    def __init__(self, disk: Disk, layout: _Layout, name: BlobName, part: Part) -> None:
        self._disk = disk
        self._layout = layout
        self._name = name
        self._part = part

    @property
    def received_bytes(self) -> int:
        """How many bytes are stored, those of earlier uploads included."""
        return self._part.received_bytes

    async def write(self, chunk: bytes) -> None:
        """Store the next bytes."""
        await self._part.write(chunk)

    async def commit(self) -> None:
        """Make the blob visible, on disk. Raises BlobCorrupt and drops what arrived when the hash is wrong."""
        await self._part.complete()

        def publish() -> None:
            blob = self._layout.blob(self._name)
            os.replace(self._part.path, blob)
            _sync_folder(blob.parent)
            self._layout.damaged(self._name).unlink(missing_ok=True)

        await self._disk.run(publish)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
