"""A file's bytes to look at, of which no more is in memory than is looked at."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

Content: TypeAlias = bytes | mmap.mmap


@contextmanager
def mapped(location: Path) -> Iterator[Content]:
    """Give the bytes of a file that nobody changes meanwhile."""
    with location.open("rb") as stream:
        if location.stat().st_size == 0:
            yield b""
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content
