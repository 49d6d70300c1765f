"""Whether the files of a version are a package: complete, the manifest's, and harmless."""

import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from maas_package.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, FileEntry, Manifest, ManifestInvalid, check_path
from maas_package.package import (
    ManifestMissing,
    PackageFileDamaged,
    PackageFileMissing,
    PackageFileUnlisted,
    check_content,
)
from maas_registry.domain.blobs import Blobs
from maas_registry.domain.versions import File, ServableSpec, Signature, VersionDraft
from maas_runtime.failures import InvalidInput

# A JSON member is parsed whole to be checked, so its size is memory.
_MAX_JSON_BYTES = 256 * 2**20


class PackageFileRepeated(InvalidInput):
    """Two members have the same path, or paths that some file systems hold for the same."""

    reason = "PACKAGE_FILE_REPEATED"


class PackageFileTooLarge(InvalidInput):
    """A member is larger than it may be to be checked."""

    reason = "PACKAGE_FILE_TOO_LARGE"


async def check_package(draft: VersionDraft, blobs: Blobs) -> tuple[tuple[File, ...], Signature]:
    """Return the members with their sizes, and the signature.

    Raises BlobNotFound, or an InvalidInput that says which member is wrong and how.
    """
    check_paths([path for path, _ in draft.members])
    sizes = await blobs.sizes(blob for _, blob in draft.members)
    files = tuple(File(path, blob, sizes[blob]) for path, blob in draft.members)
    manifest = await _read_manifest(files, blobs)
    check_files(files, manifest)
    paths = {file.path for file in files}
    for file in files:
        await _check_member(file, paths, blobs)
    return files, signature_of(manifest, files)


def check_paths(paths: Sequence[str]) -> None:
    """Raise PackagePathInvalid, PackageFileRepeated or ManifestMissing."""
    for path in paths:
        check_path(path)
    counts = Counter(_folded(path) for path in paths)
    for path in paths:
        if counts[_folded(path)] > 1:
            raise PackageFileRepeated(f"{path} is there twice, as some file systems have it", path=path)
        if any(str(parent) in counts for parent in PurePosixPath(_folded(path)).parents):
            raise PackageFileRepeated(f"{path} lies in a folder whose name another file has", path=path)
    if MANIFEST_NAME not in paths:
        raise ManifestMissing(f"there is no {MANIFEST_NAME} among the files")


def _folded(path: str) -> str:
    """Return what is the same for paths that some file systems hold for the same."""
    return unicodedata.normalize("NFKC", path).casefold()


def check_files(files: Sequence[File], manifest: Manifest) -> None:
    """Raise PackageFileUnlisted, PackageFileMissing or PackageFileDamaged when the files are not the manifest's."""
    given = {file.path: FileEntry(file.path, file.blob.sha256, file.size_bytes) for file in files}
    del given[MANIFEST_NAME]
    listed = {entry.path: entry for entry in manifest.files}
    for path in sorted(given.keys() - listed.keys()):
        raise PackageFileUnlisted(f"{path} is not in the manifest", path=path)
    for path in sorted(listed.keys() - given.keys()):
        raise PackageFileMissing(f"{path} is in the manifest but not among the files", path=path)
    for path, entry in listed.items():
        if given[path] != entry:
            raise PackageFileDamaged(
                f"{path} has {given[path].size_bytes} bytes and SHA-256 {given[path].sha256}, "
                f"the manifest says {entry.size_bytes} and {entry.sha256}",
                path=path,
            )


def signature_of(manifest: Manifest, files: Sequence[File]) -> Signature:
    """Return what a package with this manifest takes and gives."""
    sizes = {file.path: file.size_bytes for file in files}
    return Signature(
        task=manifest.task,
        architecture="" if manifest.architecture is None else manifest.architecture.name,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        labels=manifest.labels,
        text_input="" if manifest.text is None else manifest.text.input,
        servables=tuple(
            ServableSpec(servable.engine, servable.precision, servable.path, sizes[servable.path])
            for servable in manifest.servables
        ),
    )


async def _read_manifest(files: Sequence[File], blobs: Blobs) -> Manifest:
    file = next(file for file in files if file.path == MANIFEST_NAME)
    if file.size_bytes > MAX_MANIFEST_BYTES:
        raise ManifestInvalid(f"{MANIFEST_NAME} is larger than {MAX_MANIFEST_BYTES} bytes")
    return Manifest.from_json(await blobs.inspect(file.blob, Path.read_bytes))


async def _check_member(file: File, paths: Collection[str], blobs: Blobs) -> None:
    if file.path.lower().endswith(".json") and file.size_bytes > _MAX_JSON_BYTES:
        raise PackageFileTooLarge(f"{file.path} has more than {_MAX_JSON_BYTES} bytes of JSON", path=file.path)
    await blobs.inspect(file.blob, lambda location: check_content(location, file.path, paths))
