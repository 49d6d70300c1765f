"""tar archives from strangers, read in little memory whatever their headers say."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from typing import IO, cast

_MOST_READ_BYTES = 1024 * 1024


class ArchiveTooLarge(Exception):
    """A header, or the whole archive, has more bytes than are read."""


@contextmanager
def open_tar(stream: BufferedIOBase, most_bytes: int) -> Iterator[tarfile.TarFile]:
    """Open the tar archive that the stream holds. Reading it raises ArchiveTooLarge beyond `most_bytes`."""
    bounded = cast(IO[bytes], _Bounded(stream, most_bytes))
    with tarfile.open(fileobj=bounded, mode="r:") as archive:
        yield archive


class _Bounded:
    """What tarfile reads of a stream: by itself it reads a header at once, as long as that says that it is."""

    def __init__(self, stream: BufferedIOBase, most_bytes: int) -> None:
        self._stream = stream
        self._most_bytes = most_bytes

    def read(self, size: int) -> bytes:
        """Read `size` bytes, fewer at the end."""
        if size > _MOST_READ_BYTES:
            raise ArchiveTooLarge(f"it has a header of {size} bytes")
        self._check(self._stream.tell())
        return self._stream.read(size)

    def seek(self, position: int) -> int:
        """Go to a position; in a compressed stream that reads up to it."""
        self._check(position)
        return self._stream.seek(position)

    def tell(self) -> int:
        """Return the position."""
        return self._stream.tell()

    def _check(self, position: int) -> None:
        if position > self._most_bytes:
            raise ArchiveTooLarge(f"it unpacks to more than {self._most_bytes} bytes")
