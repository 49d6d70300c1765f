"""Whether reading a file would run what is written in it: a pickle, or a format with code inside. Told by its bytes.

Nothing is loaded, and no more than the beginning of a file, or of an archive's members, is looked at. A damaged archive
is not told from others here: whoever reads it will say so.
"""

import bz2
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from maas_package.archives import ArchiveTooLarge, open_tar
from maas_package.content import Content, mapped
from maas_package.pickle_scan import is_pickle

PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})

_LOOK_BYTES = 64 * 1024
_MOST_MEMBERS = 100_000
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_NUMPY_MAGIC = b"\x93NUMPY"
_OBJECT_ARRAY = re.compile(rb"['\"]\|?O\d*['\"]")

_Member = tuple[str, Callable[[], IO[bytes] | None]]


class HarmKind(Enum):
    """What a file would do to its reader."""

    PICKLE = "runs what it says while it is loaded"
    EXPORTED_PROGRAM = "its reader evaluates expressions of it"
    KERAS = "its layers may hold code"
    LOCKED = "nobody can say"


@dataclass(frozen=True, slots=True)
class Harm:
    """What was found, and in which member of the file; `member` is empty when it is the file itself."""

    kind: HarmKind
    what: str
    member: str = ""


def find_harm(location: Path) -> Harm | None:
    """Return what makes the file unsafe to load, or None."""
    with mapped(location) as content:
        head = content[:_LOOK_BYTES]
        found = harm_of_content(content)
    if found is not None:
        return found
    try:
        if zipfile.is_zipfile(location):
            with zipfile.ZipFile(location) as archive:
                return _harm_of_zip(archive)
        if head[257:262] == b"ustar":
            with location.open("rb") as stream, open_tar(stream, location.stat().st_size) as tar:
                return _harm_of_members(_tar_members(tar))
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
        return None
    # A password, a compression that is not known here, a header that is too long.
    except (RuntimeError, NotImplementedError, ArchiveTooLarge):
        return Harm(HarmKind.LOCKED, "an archive that cannot be looked into")
    return None


def harm_of_content(content: Content) -> Harm | None:
    """Return what makes a file unsafe to load, or None; archives are not opened."""
    head = content[:_LOOK_BYTES]
    if head.startswith(_HDF5_MAGIC):
        return Harm(HarmKind.KERAS, "an HDF5 file, as Keras writes it: its layers may hold code")
    if head.startswith(_NUMPY_MAGIC):
        if _OBJECT_ARRAY.search(head[:4096]):
            return Harm(HarmKind.PICKLE, "an array of Python objects, which is a pickle")
        return None
    if is_pickle(content):
        return Harm(HarmKind.PICKLE, "a pickle")
    opened = _decompressed(head)
    return Harm(HarmKind.PICKLE, "a compressed pickle") if opened and is_pickle(opened) else None


def _harm_of_zip(archive: zipfile.ZipFile) -> Harm | None:
    names = archive.namelist()
    tails = {PurePosixPath(name).name for name in names}
    pickled = _harm_of_members(
        (info.filename, partial(archive.open, info)) for info in archive.infolist() if not info.is_dir()
    )
    if "archive_format" in tails:
        member = pickled.member if pickled else next(name for name in names if name.endswith("archive_format"))
        return Harm(HarmKind.EXPORTED_PROGRAM, "a torch.export archive, whose expressions its reader evaluates", member)
    if pickled is not None:
        return pickled
    if {"config.json", "metadata.json"} <= tails and any(name.endswith(".weights.h5") for name in names):
        return Harm(HarmKind.KERAS, "a Keras archive: its layers may hold code", "config.json")
    return None


def _harm_of_members(members: Iterator[_Member]) -> Harm | None:
    for count, (name, open_member) in enumerate(members):
        if count >= _MOST_MEMBERS:
            return Harm(HarmKind.LOCKED, "an archive of more members than can be looked at", name)
        stream = open_member()
        head = b""
        if stream is not None:
            with stream:
                head = stream.read(_LOOK_BYTES)
        found = harm_of_content(head)
        # An HDF5 file in an archive is somebody's weights or data; its code, if any, is named elsewhere.
        if found is not None and found.kind is HarmKind.PICKLE:
            return replace(found, member=name)
        if PurePosixPath(name).suffix.lower() in PICKLE_SUFFIXES:
            return Harm(HarmKind.PICKLE, "a pickle by its name", name)
    return None


def _tar_members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for member in tar:
        if member.isfile():
            yield member.name, partial(tar.extractfile, member)


def _decompressed(head: bytes) -> bytes:
    """Return the beginning of what is compressed in these bytes; empty when they are not compressed."""
    try:
        if head.startswith(b"BZh"):
            return bz2.BZ2Decompressor().decompress(head, _LOOK_BYTES)
        if head.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
            return lzma.LZMADecompressor(memlimit=256 * 1024 * 1024).decompress(head, _LOOK_BYTES)
        if head.startswith((b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")):
            return zlib.decompressobj(wbits=47).decompress(head, _LOOK_BYTES)
    except (OSError, zlib.error, lzma.LZMAError, EOFError, ValueError):
        return b""
    return b""
