"""A package on disk: a folder with manifest.json and the files it lists, each checked before anything is loaded."""

import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from maas_package.content import Content, mapped
from maas_package.harm import PICKLE_SUFFIXES, HarmKind, harm_of_content
from maas_package.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileEntry, Manifest, ManifestInvalid, Servable
from maas_package.onnx_file import check_onnx
from maas_package.packed import archive_kind
from maas_package.safetensors_header import read_safetensors_header
from maas_runtime.failures import InvalidInput

_CHUNK_BYTES = 1024 * 1024


class ManifestMissing(InvalidInput):
    """The folder has no manifest.json."""

    reason = "MANIFEST_MISSING"


class PackageFileMissing(InvalidInput):
    """The manifest lists a file that is not there."""

    reason = "PACKAGE_FILE_MISSING"


class PackageFileUnlisted(InvalidInput):
    """The folder has a file that the manifest does not list."""

    reason = "PACKAGE_FILE_UNLISTED"


class PackageFileDamaged(InvalidInput):
    """A file is not what its size, its hash or its name says."""

    reason = "PACKAGE_FILE_DAMAGED"


class PackageHoldsPickle(InvalidInput):
    """A file is, or holds, a pickle: loading it could run anything."""

    reason = "PACKAGE_HOLDS_PICKLE"


class PackageHoldsCode(InvalidInput):
    """A file's format makes its reader run what is written in it."""

    reason = "PACKAGE_HOLDS_CODE"


class PackageHoldsArchive(InvalidInput):
    """A file is an archive, or compressed: what comes out of it can be of any size, and a pickle."""

    reason = "PACKAGE_HOLDS_ARCHIVE"


class PackageLinkOutside(InvalidInput):
    """A link leads out of the package, or a file is not a plain file."""

    reason = "PACKAGE_LINK_OUTSIDE"


@dataclass(frozen=True, slots=True)
class Package:
    """A folder whose files are the manifest's."""

    folder: Path
    manifest: Manifest

    @property
    def total_bytes(self) -> int:
        """Bytes of all files, manifest.json included."""
        return len(self.manifest.to_json()) + sum(entry.size_bytes for entry in self.manifest.files)

    def servable_bytes(self, servable: Servable) -> int:
        """Bytes of a servable's file, and of what lies beside it under its name (`model.onnx.data`)."""
        return sum(
            entry.size_bytes
            for entry in self.manifest.files
            if entry.path == servable.path or entry.path.startswith(servable.path + ".")
        )

    def path(self, relative: str) -> Path:
        """Return where a file of the manifest lies."""
        return self.folder.joinpath(*relative.split("/"))


def read_package(folder: Path) -> Package:
    """Read a package, checking that each file is there, whole, listed, harmless, and inside the folder.

    Raises an InvalidInput that says which file is wrong and how.
    """
    manifest_path = folder / MANIFEST_NAME
    if not manifest_path.is_file():
        raise ManifestMissing(f"there is no {MANIFEST_NAME}; a package is a folder that `maas models pull` wrote")
    if manifest_path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ManifestInvalid(f"{MANIFEST_NAME} is larger than {MAX_MANIFEST_BYTES} bytes")
    manifest = Manifest.from_json(manifest_path.read_bytes())
    package = Package(folder, manifest)
    listed = {entry.path for entry in manifest.files}
    for path in _walk(folder):
        if path not in listed and path != MANIFEST_NAME:
            raise PackageFileUnlisted(f"{path} is not in the manifest", path=path)
    for entry in manifest.files:
        _check_entry(package.path(entry.path), entry, listed)
    return package


def write_package(folder: Path, manifest: Manifest) -> Package:
    """Make a package of the files that already lie in `folder`; `manifest.files` is filled in here.

    manifest.json is written last and at once: a folder without it is not yet a package. Raises the same as
    read_package.
    """
    entries = []
    for path in _walk(folder):
        if path == MANIFEST_NAME:
            continue
        location = folder.joinpath(*path.split("/"))
        sha256, size_bytes = _hash_file(location)
        entries.append(FileEntry(path, sha256, size_bytes))
    paths = {entry.path for entry in entries}
    for entry in entries:
        check_content(folder.joinpath(*entry.path.split("/")), entry.path, paths)
    # Through the one door, so that what is written can be read.
    checked = Manifest.from_json(replace(manifest, files=tuple(entries)).to_json())
    partial = folder / f".{MANIFEST_NAME}.partial"
    try:
        with partial.open("wb") as stream:
            stream.write(checked.to_json())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, folder / MANIFEST_NAME)
    finally:
        partial.unlink(missing_ok=True)
    return Package(folder, checked)


def check_content(location: Path, path: str, members: Collection[str]) -> None:
    """Look into one file, called `path` in a package with these members, without loading or unpacking it.

    Raises PackageHoldsPickle, PackageHoldsCode, PackageHoldsArchive, or PackageFileDamaged, SafetensorsInvalid or
    OnnxInvalid when it is not of the kind that its name says.
    """
    suffix = Path(path).suffix.lower()
    if suffix in PICKLE_SUFFIXES:
        raise PackageHoldsPickle(f"{path}: files of this kind may hold a pickle; store safetensors", path=path)
    if suffix == ".pt2":
        # torch.export.load evaluates the archive's shape expressions as Python (docs/decisions/0009-engines.md).
        raise PackageHoldsCode(f"{path}: a torch.export archive runs code when loaded; store ONNX or safetensors")
    if suffix == ".safetensors":
        # Before all others: the length in a safetensors header may happen to look like their marks.
        read_safetensors_header(location, path)
        return
    with mapped(location) as content:
        if archive := archive_kind(content):
            raise PackageHoldsArchive(
                f"{path} is {archive}, which is not looked into: store what is in it as files", path=path
            )
        if suffix == ".json":
            _check_json(content, path)
        harm = harm_of_content(content)
        if harm is not None:
            kind = PackageHoldsPickle if harm.kind is HarmKind.PICKLE else PackageHoldsCode
            raise kind(f"{path} is or holds {harm.what}", path=path)
        if suffix == ".onnx":
            check_onnx(content, path, members)


def _walk(folder: Path) -> Iterator[str]:
    """Yield the relative path of each file, sorted. Raises PackageLinkOutside."""
    root = folder.resolve()
    for location in sorted(folder.rglob("*")):
        path = location.relative_to(folder).as_posix()
        if location.is_symlink() and not location.resolve().is_relative_to(root):
            raise PackageLinkOutside(f"{path} is a link that leads out of the package", path=path)
        mode = location.stat().st_mode if location.exists() else 0
        if stat.S_ISREG(mode):
            yield path
        elif not stat.S_ISDIR(mode):
            raise PackageLinkOutside(f"{path} is neither a file nor a folder", path=path)


def _check_entry(location: Path, entry: FileEntry, members: Collection[str]) -> None:
    if not location.is_file():
        raise PackageFileMissing(f"{entry.path} is listed but not there", path=entry.path)
    size_bytes = location.stat().st_size
    if size_bytes != entry.size_bytes:
        raise PackageFileDamaged(f"{entry.path} has {size_bytes} bytes instead of {entry.size_bytes}", path=entry.path)
    sha256, _ = _hash_file(location)
    if sha256 != entry.sha256:
        raise PackageFileDamaged(f"{entry.path} has SHA-256 {sha256} instead of {entry.sha256}", path=entry.path)
    check_content(location, entry.path, members)


def _hash_file(location: Path) -> tuple[str, int]:
    digest = hashlib.sha256()
    size_bytes = 0
    with location.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return digest.hexdigest(), size_bytes


def _check_json(content: Content, path: str) -> None:
    try:
        # Looked through without making anything of it: a value can take thirty times the memory of its text.
        msgspec.json.decode(content, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise PackageFileDamaged(f"{path} is not JSON: {error}", path=path) from error
