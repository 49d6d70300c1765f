"""A package as a Triton model repository: `<model>/config.pbtxt` and `<model>/<version>/model.onnx`."""

import json
from pathlib import Path

from maas_engine.publish import Log
from maas_formats.onnx_export import copy_onnx, make_folder, onnx_servable
from maas_package.manifest import Manifest, TensorSpec
from maas_package.package import Package
from maas_runtime.failures import InvalidInput

CONFIG_NAME = "config.pbtxt"
LABELS_NAME = "labels.txt"

_BACKEND = "onnxruntime"
_MOST_ROWS = 64
# The Open Inference Protocol's names -> Triton's, where they differ.
_DATATYPES = {"BYTES": "TYPE_STRING"}


class StepsNotExportable(InvalidInput):
    """The version has code before or after the engine, which Triton would not run."""

    reason = "STEPS_NOT_EXPORTABLE"


def export_triton(package: Package, folder: Path, *, model: str, version: int, log: Log) -> list[str]:
    """Write the repository into `folder`, where there may be other models. Raises OnnxFormMissing, StepsNotExportable
    or FolderTaken.
    """
    manifest = package.manifest
    onnx_servable(package)
    if manifest.steps:
        raise StepsNotExportable(
            f"the version has the steps {', '.join(step.name for step in manifest.steps)}, which Triton would not run; "
            "export it with --format package, or --format onnx for what is between them"
        )
    home = folder / model
    make_folder(home)
    (home / str(version)).mkdir()
    copy_onnx(package, home / str(version))
    (home / CONFIG_NAME).write_text(_config(manifest, model))
    if manifest.labels:
        (home / LABELS_NAME).write_text("".join(f"{label}\n" for label in manifest.labels))
    if manifest.text is not None:
        log(
            f"Triton takes the tensor {manifest.text.feeds} only: its callers make word ids of texts themselves, with "
            f"{manifest.text.tokenizer} of the package (--format package)"
        )
    if not manifest.joins_rows:
        log("rows of different requests are not joined, so max_batch_size is 0")
    return sorted(file.relative_to(folder).as_posix() for file in home.rglob("*") if file.is_file())


def _config(manifest: Manifest, model: str) -> str:
    """Return protobuf's text format of Triton's ModelConfig."""
    joins_rows = manifest.joins_rows
    lines = [
        f"name: {_text(model)}",
        f"backend: {_text(_BACKEND)}",
        f"max_batch_size: {_MOST_ROWS if joins_rows else 0}",
    ]
    for kind, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for index, spec in enumerate(specs):
            lines += [f"{kind} {{", *(f"  {line}" for line in _tensor(spec, joins_rows))]
            if kind == "output" and index == 0 and manifest.labels:
                lines.append(f"  label_filename: {_text(LABELS_NAME)}")
            lines.append("}")
    if joins_rows:
        lines.append("dynamic_batching { }")
    return "".join(f"{line}\n" for line in lines)


def _tensor(spec: TensorSpec, joins_rows: bool) -> list[str]:
    sizes = spec.shape[1:] if joins_rows else spec.shape
    lines = [
        f"name: {_text(spec.name)}",
        f"data_type: {_DATATYPES.get(spec.datatype, f'TYPE_{spec.datatype}')}",
        f"dims: [{', '.join(str(size) for size in sizes or (1,))}]",
    ]
    # Triton knows no tensor without dimensions, beside the rows.
    return lines if sizes else [*lines, "reshape { shape: [] }"]


def _text(value: str) -> str:
    """Return the value quoted, as protobuf's text format and JSON have in common for what is not ASCII too."""
    return json.dumps(value, ensure_ascii=False)
