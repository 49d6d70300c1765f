"""A disk that is full, read-only or broken, as failures that say what to do about it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maas_runtime.failures import Failure, Overloaded, Unavailable

_RETRY_AFTER_SECONDS = 30.0


class StorageFull(Overloaded):
    """No more bytes fit on the disk, or in the quota."""

    reason = "STORAGE_FULL"


class StorageReadOnly(Overloaded):
    """The folder cannot be written to."""

    reason = "STORAGE_READ_ONLY"


class StorageFailed(Unavailable):
    """The disk reports an error of its own."""

    reason = "STORAGE_FAILED"


def storage_full(folder: Path) -> StorageFull:
    """Return the failure of a disk without space."""
    return StorageFull(f"the disk is full: free space under {folder}", retry_after_seconds=_RETRY_AFTER_SECONDS)


def storage_read_only(folder: Path) -> StorageReadOnly:
    """Return the failure of a folder that cannot be written to."""
    return StorageReadOnly(
        f"cannot write: {folder} has to be a folder that this process may write to",
        retry_after_seconds=_RETRY_AFTER_SECONDS,
    )


def storage_failed(folder: Path, problem: str) -> StorageFailed:
    """Return the failure of a disk that does not do its work."""
    return StorageFailed(f"the disk under {folder} failed ({problem}): check it, then try again")


@contextmanager
def translated_disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError that a person can do something about into its failure; others pass as they are."""
    try:
        yield
    except OSError as error:
        failure = _failure_of(error, folder)
        if failure is None:
            raise
        raise failure from error


def _failure_of(error: OSError, folder: Path) -> Failure | None:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return storage_full(folder)
        case errno.EROFS | errno.EACCES | errno.EPERM | errno.ENOTDIR | errno.EEXIST:
            return storage_read_only(folder)
        case errno.EIO:
            return storage_failed(folder, "input/output error")
        case _:
            return None
