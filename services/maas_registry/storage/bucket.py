"""One bucket, or a prefix of it, through obstore."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, S3Store

from maas.names import BlobName
from maas_registry.domain.blobs import BlobNotFound
from maas_registry.storage.blob_location import BucketLocation
from maas_runtime.failures import Unavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Config

logger = logging.getLogger(__name__)

# What is under way at once is memory.
_UP_BYTES, _UP_AT_ONCE = 5 * 2**20, 2
_DOWN_BYTES, _DOWN_AT_ONCE = 4 * 2**20, 2
# S3 takes 10,000.
_MOST_PARTS = 9_000

_CLIENT: "ClientConfig" = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=60)}
_RETRIES: "RetryConfig" = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
# What S3, GCS and Azure answer.
_NO_BUCKET = ("NoSuchBucket", "bucket does not exist", "ContainerNotFound")


class BlobStoreUnavailable(Unavailable):
    """The bucket does not answer, or not as it should."""

    reason = "BLOB_STORE_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as it is: another write gives another tag."""

    size_bytes: int
    e_tag: str | None


class Bucket:
    """Blobs and marks of damage as objects. All of it raises BlobStoreUnavailable."""

    def __init__(self, location: BucketLocation) -> None:
        self._where = str(location)
        self._objects = _open(location)

    async def check(self) -> None:
        """See that the bucket is there and lets this process in."""
        with self._translated_errors():
            await anext(aiter(self._objects.list_async("blobs", chunk_size=1)), None)

    async def stat(self, name: BlobName) -> tuple[Stored | None, str | None]:
        """Return what is stored, and the tag of what was found damaged."""
        return await asyncio.gather(self._find(name), self._damaged_tag(name))

    async def get_stat(self, name: BlobName) -> Stored:
        """Return what is stored. Raises BlobNotFound."""
        stored = await self._find(name)
        if stored is None:
            raise BlobNotFound(f"there is no committed {name}: upload it first", name=str(name))
        return stored

    async def read(self, name: BlobName, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Yield an object's bytes in pieces, some of which are asked for at once. Raises BlobNotFound."""
        step = _DOWN_BYTES * _DOWN_AT_ONCE
        for first in range(start, end, step):
            ranges = [
                (place, min(end, place + _DOWN_BYTES)) for place in range(first, min(end, first + step), _DOWN_BYTES)
            ]
            pieces = await asyncio.gather(*(self._read_range(name, *place) for place in ranges), return_exceptions=True)
            for piece in pieces:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece

    async def put(self, name: BlobName, path: Path, size_bytes: int) -> None:
        """Store a file's bytes as the blob's object, and forget that an earlier one was damaged."""
        with self._translated_errors():
            part_bytes = max(_UP_BYTES, size_bytes // _MOST_PARTS)
            await self._objects.put_async(_key(name), path, chunk_size=part_bytes, max_concurrency=_UP_AT_ONCE)
        await self._delete(_damaged_key(name))

    async def list(self) -> AsyncGenerator[tuple[BlobName, int], None]:
        """Yield all blobs with their sizes."""
        with self._translated_errors():
            async for page in self._objects.list_async("blobs", chunk_size=1000):
                for meta in page:
                    sha256 = meta["path"].rpartition("/")[2]
                    if re.fullmatch("[0-9a-f]{64}", sha256):
                        yield BlobName(sha256), meta["size"]

    async def remove(self, name: BlobName) -> None:
        """Remove an object and what is known of it, if it is there."""
        await self._delete(_key(name))
        await self._delete(_damaged_key(name))

    async def mark_damaged(self, name: BlobName, stored: Stored) -> None:
        """Remember that these bytes are not the blob's. It does not touch what somebody has put since."""
        with self._translated_errors():
            await self._objects.put_async(_damaged_key(name), (stored.e_tag or "").encode())

    async def _find(self, name: BlobName) -> Stored | None:
        try:
            with self._translated_errors():
                meta = await self._objects.head_async(_key(name))
        except FileNotFoundError:
            return None
        return Stored(meta["size"], meta["e_tag"])

    async def _damaged_tag(self, name: BlobName) -> str | None:
        try:
            with self._translated_errors():
                mark = await self._objects.get_async(_damaged_key(name))
                return bytes(await mark.bytes_async()).decode()
        except FileNotFoundError:
            return None

    async def _read_range(self, name: BlobName, start: int, end: int) -> bytes:
        try:
            with self._translated_errors():
                piece = bytes(await self._objects.get_range_async(_key(name), start=start, end=end))
        except FileNotFoundError as error:
            raise BlobNotFound(f"{name} was removed while it was read", name=str(name)) from error
        if len(piece) != end - start:
            raise BlobStoreUnavailable(f"{self._where} answered with too few bytes: try again")
        return piece

    async def _delete(self, key: str) -> None:
        try:
            with self._translated_errors():
                await self._objects.delete_async(key)
        except FileNotFoundError:
            return

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            self._log(error)
            raise BlobStoreUnavailable(
                f"{self._where} does not let this process in: check its credentials and what they allow"
            ) from error
        except BaseError as error:
            self._log(error)
            if any(mark in str(error) for mark in _NO_BUCKET):
                raise BlobStoreUnavailable(
                    f"there is no bucket {self._where}: make it, or change MAAS_REGISTRY_BLOBS_URL"
                ) from error
            raise BlobStoreUnavailable(f"{self._where} does not answer as it should: try again") from error

    def _log(self, error: BaseError) -> None:
        # The first line says what happened. A query may hold a signature, so it is left out.
        detail = re.sub(r"\?\S*", "?…", str(error).partition("\n")[0])
        logger.warning("bucket failed", extra={"bucket": self._where, "detail": detail})


def _key(name: BlobName) -> str:
    return f"blobs/{name.sha256[:2]}/{name.sha256}"


def _damaged_key(name: BlobName) -> str:
    return f"damaged/{name.sha256}"


def _open(location: BucketLocation) -> "ObjectStore":
    prefix = location.prefix or None
    match location.scheme:
        case "s3":
            config: S3Config = {}
            if location.endpoint:
                config["endpoint"] = location.endpoint
            if location.region:
                config["region"] = location.region
            client: ClientConfig = {**_CLIENT, "allow_http": location.endpoint.startswith("http://")}
            return S3Store(location.bucket, prefix=prefix, config=config, client_options=client, retry_config=_RETRIES)
        case "gs":
            return GCSStore(location.bucket, prefix=prefix, client_options=_CLIENT, retry_config=_RETRIES)
        case "az":
            return AzureStore(location.bucket, prefix=prefix, client_options=_CLIENT, retry_config=_RETRIES)
