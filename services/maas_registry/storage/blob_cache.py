"""Blobs of a bucket that are also on this machine's disk.

cache/<2 hex>/<sha256>     whole blobs; the least recently used go first when there is no room
cache/filling/<sha256>     blobs that are on their way here; gone at the next start
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from maas.names import BlobName
from maas_registry.storage.disk import Disk


@dataclass(slots=True)
class _Entry:
    size_bytes: int
    checked: bool
    """Whether its hash was seen to be right since this process began: a power cut may have cut the file."""
    readers: int = 0


class CacheMetrics:
    """What the cache saved."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.hits = Counter("maas_registry_cache_hits", "Reads that found the blob on this disk.", registry=registry)
        self.misses = Counter("maas_registry_cache_misses", "Reads that went to the bucket.", registry=registry)
        self.evicted = Counter("maas_registry_cache_evicted_bytes", "Bytes that made room.", registry=registry)
        self.used = Gauge(
            "maas_registry_cache_bytes", "Bytes that the cache holds, or keeps room for.", registry=registry
        )


class BlobCache:
    """Whole blobs in a folder, `limit_bytes` of them at most. What is being read stays."""

    def __init__(self, disk: Disk, limit_bytes: int, metrics: CacheMetrics) -> None:
        self._disk = disk
        self._folder = disk.folder / "cache"
        self._limit_bytes = limit_bytes
        self._metrics = metrics
        self._entries: OrderedDict[BlobName, _Entry] = OrderedDict()
        self._held_bytes = 0

    async def prepare(self) -> None:
        """Take up what the last process left, but for what it had not whole."""

        def prepare() -> list[tuple[float, BlobName, int]]:
            for folder in (self._filling, *(self._folder / f"{prefix:02x}" for prefix in range(256))):
                folder.mkdir(parents=True, exist_ok=True)
            for left in self._filling.iterdir():
                left.unlink()
            found = []
            for path in self._folder.glob("??/" + "[0-9a-f]" * 64):
                status = path.stat()
                found.append((status.st_mtime, BlobName(path.name), status.st_size))
            return sorted(found, key=lambda entry: entry[0])

        for _, name, size_bytes in await self._disk.run(prepare):
            self._entries[name] = _Entry(size_bytes, checked=False)
            self._hold(size_bytes)
        while self._held_bytes > self._limit_bytes:  # the limit may be lower than the last process had
            await self._drop(*next(iter(self._entries.items())))

    def seek(self, name: BlobName) -> bool:
        """Return whether the blob is here, as far as is known, and count the answer."""
        found = name in self._entries
        (self._metrics.hits if found else self._metrics.misses).inc()
        return found

    @asynccontextmanager
    async def open(self, name: BlobName) -> AsyncIterator[Path | None]:
        """Give the blob's file, which stays while the context is open; None when it is not here, or damaged."""
        entry = self._entries.get(name)
        if entry is None:
            yield None
            return
        self._entries.move_to_end(name)
        with _read_by_one_more(entry):
            right = await self._is_right(name, entry)
            if not right:
                await self._drop(name, entry)
            yield self._path(name) if right else None

    def has(self, name: BlobName) -> bool:
        """Return whether the blob is here, as far as is known."""
        return name in self._entries

    async def drop(self, name: BlobName) -> None:
        """Forget a blob. Whoever has its file open reads on."""
        if name in self._entries:
            await self._drop(name, self._entries[name])

    @asynccontextmanager
    async def room(self, size_bytes: int) -> AsyncIterator[bool]:
        """Keep room while the context is open; False when there is too little. What is admitted keeps its room."""
        if not await self._make_room(size_bytes):
            yield False
            return
        self._hold(size_bytes)
        try:
            yield True
        finally:
            self._hold(-size_bytes)

    def filling_path(self, name: BlobName) -> Path:
        """Return where a blob is written on its way here."""
        return self._filling / name.sha256

    async def admit(self, name: BlobName, path: Path, size_bytes: int) -> None:
        """Make a file whose hash was checked an entry. Its room was kept for it."""
        await self._disk.run(lambda: os.replace(path, self._path(name)))
        if name not in self._entries:
            self._entries[name] = _Entry(size_bytes, checked=True)
            self._hold(size_bytes)

    @property
    def _filling(self) -> Path:
        return self._folder / "filling"

    def _path(self, name: BlobName) -> Path:
        return self._folder / name.sha256[:2] / name.sha256

    async def _is_right(self, name: BlobName, entry: _Entry) -> bool:
        path = self._path(name)

        def check() -> bool:
            try:
                if not entry.checked:
                    with path.open("rb") as file:
                        entry.checked = hashlib.file_digest(file, "sha256").hexdigest() == name.sha256
                os.utime(path)  # so that a later process knows which were used last
            except FileNotFoundError:
                return False
            return entry.checked

        return await self._disk.run(check)

    async def _make_room(self, size_bytes: int) -> bool:
        idle = [(name, entry) for name, entry in self._entries.items() if not entry.readers]
        least = self._held_bytes - sum(entry.size_bytes for _, entry in idle)
        if least + size_bytes > self._limit_bytes:
            return False
        for name, entry in idle:
            if self._held_bytes + size_bytes <= self._limit_bytes:
                break
            if not entry.readers:
                self._metrics.evicted.inc(entry.size_bytes)
                await self._drop(name, entry)
        return self._held_bytes + size_bytes <= self._limit_bytes

    async def _drop(self, name: BlobName, entry: _Entry) -> None:
        if self._entries.get(name) is entry:
            del self._entries[name]
            self._hold(-entry.size_bytes)
            await self._disk.run(lambda: self._path(name).unlink(missing_ok=True))

    def _hold(self, more_bytes: int) -> None:
        self._held_bytes += more_bytes
        self._metrics.used.set(self._held_bytes)


@contextmanager
def _read_by_one_more(entry: _Entry) -> Iterator[None]:
    entry.readers += 1
    try:
        yield
    finally:
        entry.readers -= 1
