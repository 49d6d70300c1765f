"""A package's ONNX form as a plain file, for whoever else runs ONNX."""

import shutil
from pathlib import Path

from maas_engine.publish import Log
from maas_package.manifest import Servable
from maas_package.package import Package
from maas_runtime.failures import InvalidInput

MODEL_NAME = "model.onnx"
TOKENIZER_NAME = "tokenizer.json"


class OnnxFormMissing(InvalidInput):
    """The version has no form that onnxruntime runs."""

    reason = "ONNX_FORM_MISSING"


class FolderTaken(InvalidInput):
    """Something is at the place where the export would be written."""

    reason = "FOLDER_TAKEN"


def onnx_servable(package: Package) -> Servable:
    """Return the form that onnxruntime runs. Raises OnnxFormMissing."""
    for servable in package.manifest.servables:
        if servable.engine == "onnxruntime":
            return servable
    engines = ", ".join(sorted({one.engine for one in package.manifest.servables})) or "nothing"
    raise OnnxFormMissing(f"the version has no ONNX form, it is served by {engines}; export it with --format package")


def copy_onnx(package: Package, folder: Path) -> Servable:
    """Copy the ONNX file into `folder` as model.onnx, and what lies beside it under the name that it has there."""
    servable = onnx_servable(package)
    beside = Path(servable.path)
    for entry in package.manifest.files:
        path = Path(entry.path)
        if entry.path == servable.path:
            shutil.copyfile(package.path(entry.path), folder / MODEL_NAME)
        elif path.parent == beside.parent and path.name.startswith(beside.name + "."):
            shutil.copyfile(package.path(entry.path), folder / path.name)
    return servable


def export_onnx(package: Package, folder: Path, log: Log) -> list[str]:
    """Write model.onnx, and the tokenizer of a model of texts, into the new folder. Raises OnnxFormMissing."""
    make_folder(folder)
    copy_onnx(package, folder)
    manifest = package.manifest
    if manifest.text is not None:
        shutil.copyfile(package.path(manifest.text.tokenizer), folder / TOKENIZER_NAME)
        log(
            f"model.onnx takes word ids ({manifest.text.feeds}), not texts: {TOKENIZER_NAME} makes them, "
            f"at most {manifest.text.max_tokens} of a text"
        )
    if manifest.steps:
        log(f"the steps {', '.join(step.name for step in manifest.steps)} are code and not in it")
    if manifest.labels:
        log(f"its classes are, in this order: {', '.join(manifest.labels)}")
    return sorted(file.name for file in folder.iterdir())


def make_folder(folder: Path) -> None:
    """Make the folder, with those above it. Raises FolderTaken when something is there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderTaken(f"{folder} is not empty; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
