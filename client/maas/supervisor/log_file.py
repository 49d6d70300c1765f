"""Log files that never grow past a bound."""

import os
from pathlib import Path

MAX_BYTES = 8 * 2**20
"""Of the file that is written to; one full file is kept beside it."""


class BoundedLog:
    """A log file; when it is full it becomes `<name>.1`, replacing the one before.

    Writing never fails: what a full disk does not take is dropped and counted, because the process behind it must not
    stop for its log.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._descriptor = -1
        self._size_bytes = 0
        self._dropped_bytes = 0

    def write(self, content: bytes) -> None:
        """Add bytes."""
        try:
            self._prepare(len(content))
            if self._dropped_bytes:
                note = f"[{self._dropped_bytes} bytes could not be written here]\n".encode()
                self._size_bytes += os.write(self._descriptor, note)
                self._dropped_bytes = 0
            self._size_bytes += os.write(self._descriptor, content)
        except OSError:
            self._dropped_bytes += len(content)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _prepare(self, more_bytes: int) -> None:
        if self._descriptor >= 0 and self._size_bytes and self._size_bytes + more_bytes > self._max_bytes:
            self.close()
            os.replace(self._path, older(self._path))
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._size_bytes = os.fstat(self._descriptor).st_size


def older(path: Path) -> Path:
    """Return where the full file before a log file is."""
    return path.with_name(f"{path.name}.1")
