"""A package as an OCI image layout, so that a model can live in a container registry.

The media types and annotations are those of the CNCF ModelPack specification: an image manifest whose artifactType says
that it is a model, and a layer for each file, as it is (`raw`). So a layer's digest is the file's hash in the package.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from maas_formats.onnx_export import make_folder
from maas_package.manifest import MANIFEST_NAME, JsonObject
from maas_package.package import Package

LAYOUT_NAME = "oci-layout"
INDEX_NAME = "index.json"
BLOBS_PATH = "blobs/sha256"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MODEL_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHT_TYPE = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
PATH_ANNOTATION = "org.cncf.model.filepath"
TAG_ANNOTATION = "org.opencontainers.image.ref.name"

# What tools that know no models write a layer to.
_TITLE_ANNOTATION = "org.opencontainers.image.title"


def export_oci(package: Package, folder: Path, *, model: str, version: int) -> list[str]:
    """Write the layout into the new folder; its one model is tagged with the version. Raises FolderTaken.

    The same version is always the same bytes.
    """
    make_folder(folder)
    (folder / BLOBS_PATH).mkdir(parents=True)
    manifest = package.manifest
    content = (package.folder / MANIFEST_NAME).read_bytes()
    layers = [_described(WEIGHT_CONFIG_TYPE, _store(folder, content), len(content), MANIFEST_NAME)]
    servables = {servable.path for servable in manifest.servables}
    for entry in manifest.files:
        is_weight = entry.path.endswith(".safetensors") or any(entry.path.startswith(path) for path in servables)
        media_type = WEIGHT_TYPE if is_weight else WEIGHT_CONFIG_TYPE
        layers.append(_described(media_type, f"sha256:{entry.sha256}", entry.size_bytes, entry.path))
        shutil.copyfile(package.path(entry.path), folder / BLOBS_PATH / entry.sha256)
    config = {
        "descriptor": {"name": model, "version": str(version)},
        "config": {"architecture": manifest.architecture.name} if manifest.architecture is not None else {},
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
    }
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": MODEL_TYPE,
        "config": _stored(folder, CONFIG_TYPE, config),
        "layers": layers,
    }
    described = _stored(folder, MANIFEST_TYPE, document)
    described |= {"artifactType": MODEL_TYPE, "annotations": {TAG_ANNOTATION: str(version)}}
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [described]}
    (folder / INDEX_NAME).write_bytes(_json(index))
    # Last: a folder without it is no layout yet.
    (folder / LAYOUT_NAME).write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    return [LAYOUT_NAME, INDEX_NAME, BLOBS_PATH]


def _described(media_type: str, digest: str, size_bytes: int, path: str) -> JsonObject:
    annotations = {PATH_ANNOTATION: path, _TITLE_ANNOTATION: path}
    return {"mediaType": media_type, "digest": digest, "size": size_bytes, "annotations": annotations}


def _stored(folder: Path, media_type: str, document: JsonObject) -> JsonObject:
    """Store a document and return its descriptor."""
    content = _json(document)
    return {"mediaType": media_type, "digest": _store(folder, content), "size": len(content)}


def _store(folder: Path, content: bytes) -> str:
    """Store a blob and return its digest."""
    sha256 = hashlib.sha256(content).hexdigest()
    (folder / BLOBS_PATH / sha256).write_bytes(content)
    return f"sha256:{sha256}"


def _json(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
