"""The files of a model in an OCI image layout, each checked against its digest before anything reads it."""

import gzip
import hashlib
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from maas_engine.publish import Log
from maas_formats.json_files import read_json
from maas_formats.oci_layout import (
    BLOBS_PATH,
    INDEX_NAME,
    LAYOUT_NAME,
    MANIFEST_TYPE,
    MODEL_TYPE,
    PATH_ANNOTATION,
    TAG_ANNOTATION,
)
from maas_package.archives import ArchiveTooLarge, open_tar
from maas_package.manifest import JsonObject, check_path
from maas_runtime.failures import InvalidInput

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_LAYER_TYPE = re.compile(r"application/vnd\.cncf\.model\.([a-z.]+)\.v1\.(raw|tar|tar\+gzip)\Z")
_TAKEN = ("weight", "weight.config")
_MOST_JSON_BYTES = 4 * 1024 * 1024
_MOST_FILES = 10_000
_MOST_BYTES = 64 * 1024**3
# Weights hardly get smaller; what grows more than this is not made of weights.
_MOST_GROWTH = 100
_CHUNK_BYTES = 1024 * 1024


class OciLayoutInvalid(InvalidInput):
    """A document of the layout is missing, broken or contradicts another."""

    reason = "OCI_LAYOUT_INVALID"


class OciBlobDamaged(InvalidInput):
    """A blob is not there, or not what its digest and size say."""

    reason = "OCI_BLOB_DAMAGED"


class OciModelUnsupported(InvalidInput):
    """The layout holds something else than one model, or packs it in a way that is not known here."""

    reason = "OCI_MODEL_UNSUPPORTED"


class OciModelTooLarge(InvalidInput):
    """The model has more files, or more bytes, than are taken or there is room for."""

    reason = "OCI_MODEL_TOO_LARGE"


def unpack_oci(layout: Path, folder: Path, log: Log) -> None:
    """Write the files of the layout's one model into the new folder `folder`. Raises one of the above."""
    _check_version(layout)
    manifest = _document(layout, _find_model(layout), "the manifest")
    if manifest.get("artifactType") != MODEL_TYPE:
        raise OciModelUnsupported(
            f"{layout.name} holds {manifest.get('artifactType') or 'a container image'}, and a model is {MODEL_TYPE}"
        )
    if not isinstance(manifest.get("config"), dict):
        raise OciLayoutInvalid("the manifest has no config")
    _check_blob(layout, *_reference(manifest["config"], "the config"))
    layers = list(_layers(manifest, log))
    declared = sum(layer.size_bytes for layer in layers)
    folder.mkdir(parents=True)
    if declared > min(_MOST_BYTES, shutil.disk_usage(folder).free):
        raise OciModelTooLarge(f"the model has {declared} bytes, for which there is no room")
    for layer in layers:
        _check_blob(layout, layer.digest, layer.size_bytes)
        try:
            _unpack(_blob(layout, layer.digest), layer, folder)
        except ArchiveTooLarge as error:
            raise OciModelTooLarge(f"the layer {layer.digest} is too large: {error}") from error
        except (tarfile.TarError, zlib.error, EOFError) as error:
            raise OciLayoutInvalid(f"the layer {layer.digest} is a broken archive: {error}") from error
        # A name that is too long, two layers that write one file, a file where another has a folder.
        except OSError as error:
            raise OciLayoutInvalid(f"the layer {layer.digest} cannot be written: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Layer:
    digest: str
    size_bytes: int
    packing: str
    """raw, tar, tar+gzip."""
    path: str
    """Where a raw layer is written to; an archive's members have paths of their own."""


def _check_version(layout: Path) -> None:
    version = _read_json(layout, LAYOUT_NAME).get("imageLayoutVersion")
    if not isinstance(version, str) or not version.startswith("1."):
        raise OciModelUnsupported(f"{LAYOUT_NAME} says version {version!r}, and 1.0.0 is known here")


def _find_model(layout: Path) -> JsonObject:
    """Return the descriptor of the layout's one manifest."""
    manifests = _objects(_read_json(layout, INDEX_NAME), "manifests", INDEX_NAME)
    found = [one for one in manifests if one.get("mediaType") == MANIFEST_TYPE]
    if len(found) != 1:
        tags = ", ".join(str(one.get("annotations", {}).get(TAG_ANNOTATION, one.get("digest"))) for one in found)
        raise OciModelUnsupported(
            f"{layout.name} holds {len(found)} manifests ({tags}), and one is imported: "
            f"skopeo copy oci:{layout.name}:TAG oci:one:TAG"
        )
    return found[0]


def _layers(manifest: JsonObject, log: Log) -> Iterator[_Layer]:
    found = _objects(manifest, "layers", "the manifest")
    if len(found) > _MOST_FILES:
        raise OciModelTooLarge(f"the manifest has {len(found)} layers, and {_MOST_FILES} are taken")
    for one in found:
        media_type = one.get("mediaType")
        match = _LAYER_TYPE.match(media_type) if isinstance(media_type, str) else None
        if match is None:
            raise OciModelUnsupported(
                f"a layer is {media_type!r}, and application/vnd.cncf.model.*.v1.raw, tar and tar+gzip are known here"
            )
        digest, size_bytes = _reference(one, "a layer")
        annotations = one.get("annotations")
        path = annotations.get(PATH_ANNOTATION) if isinstance(annotations, dict) else None
        if match[1] not in _TAKEN:
            log(f"{path or digest} is left out: it is {match[1]}, not the model")
            continue
        if match[2] != "raw":
            yield _Layer(digest, size_bytes, match[2], "")
        elif isinstance(path, str):
            yield _Layer(digest, size_bytes, match[2], check_path(path, PATH_ANNOTATION))
        else:
            raise OciLayoutInvalid(f"the layer {digest} has no {PATH_ANNOTATION}, so nobody knows what it is called")


def _unpack(blob: Path, layer: _Layer, folder: Path) -> None:
    """Write a checked blob's files."""
    if layer.packing == "raw":
        with blob.open("rb") as stream:
            _write(stream, folder.joinpath(*layer.path.split("/")), layer.size_bytes)
        return
    is_compressed = layer.packing == "tar+gzip"
    most_bytes = layer.size_bytes * (_MOST_GROWTH if is_compressed else 1)
    with ExitStack() as stack:
        opened = stack.enter_context(gzip.GzipFile(blob) if is_compressed else blob.open("rb"))
        archive = stack.enter_context(open_tar(opened, most_bytes))
        for count, member in enumerate(archive):
            if count >= _MOST_FILES:
                raise OciModelTooLarge(f"the layer {layer.digest} has more than {_MOST_FILES} files")
            if member.isdir():
                continue
            if not member.isfile() or member.issparse():
                raise OciLayoutInvalid(f"{member.name} in the layer {layer.digest} is a link or no plain file")
            if member.size > most_bytes:
                raise OciModelTooLarge(f"{member.name} in the layer {layer.digest} has {member.size} bytes")
            path = check_path(member.name.removeprefix("./"), f"the layer {layer.digest}")
            content = archive.extractfile(member)
            assert content is not None
            _write(content, folder.joinpath(*path.split("/")), member.size)


def _write(stream: IO[bytes], target: Path, size_bytes: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        shutil.copyfileobj(stream, out, _CHUNK_BYTES)
        if out.tell() != size_bytes:
            raise OciLayoutInvalid(f"{target.name} ends after {out.tell()} of {size_bytes} bytes")


def _document(layout: Path, descriptor: JsonObject, what: str) -> JsonObject:
    digest, size_bytes = _reference(descriptor, what)
    _check_blob(layout, digest, min(size_bytes, _MOST_JSON_BYTES))
    return _read_json(layout, f"{BLOBS_PATH}/{digest.removeprefix('sha256:')}")


def _reference(descriptor: JsonObject, what: str) -> tuple[str, int]:
    digest, size_bytes = descriptor.get("digest"), descriptor.get("size")
    if not isinstance(digest, str) or not _DIGEST.match(digest):
        raise OciLayoutInvalid(f"{what} has the digest {digest!r}, and sha256 with 64 hexadecimal digits is known here")
    if type(size_bytes) is not int or size_bytes < 0:
        raise OciLayoutInvalid(f"{what} has the size {size_bytes!r}")
    return digest, size_bytes


def _blob(layout: Path, digest: str) -> Path:
    return layout / BLOBS_PATH / digest.removeprefix("sha256:")


def _check_blob(layout: Path, digest: str, size_bytes: int) -> None:
    """Raise OciBlobDamaged unless the blob is what its descriptor says."""
    location = _blob(layout, digest)
    if not location.is_file() or not location.resolve().is_relative_to(layout.resolve()):
        raise OciBlobDamaged(f"{BLOBS_PATH} has no {digest}; copy the whole folder")
    if location.stat().st_size != size_bytes:
        raise OciBlobDamaged(f"{digest} has {location.stat().st_size} bytes instead of {size_bytes}; copy it again")
    with location.open("rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != f"sha256:{actual}":
        raise OciBlobDamaged(f"{digest} is sha256:{actual}; copy it again")


def _read_json(layout: Path, name: str) -> JsonObject:
    value: JsonObject = read_json(layout, name, dict, _MOST_JSON_BYTES, OciLayoutInvalid)
    return value


def _objects(document: JsonObject, field: str, where: str) -> list[dict[str, Any]]:
    value = document.get(field)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise OciLayoutInvalid(f"{where} has no list {field}")
    return value
