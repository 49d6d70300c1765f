"""`python -m maas_formats import|export`: what `maas models import` and `maas models export` run.

Prints one JSON object: what was made, or `failure` and `reason`.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from maas.formats import SourceKind, TargetFormat
from maas_formats.kinds import detect
from maas_formats.oci_import import OciModelUnsupported, unpack_oci
from maas_formats.oci_layout import export_oci
from maas_formats.onnx_export import export_onnx
from maas_formats.onnx_files import DEFAULT_MAX_TOKENS, TextOptions, import_onnx
from maas_formats.saved_model import import_saved_model
from maas_formats.triton import export_triton
from maas_package.package import Package, read_package
from maas_runtime.failures import Failure, InvalidInput


class OptionsUnused(InvalidInput):
    """An option says what this kind of source says itself."""

    reason = "OPTIONS_UNUSED"


def main() -> None:
    """Import or export once."""
    options = _parser().parse_args()
    try:
        result = options.run(options)
    except Failure as failure:
        result = {"failure": failure.message, "reason": failure.reason}
    print(json.dumps(result))
    sys.exit("failure" in result)


def _import(options: argparse.Namespace) -> dict[str, Any]:
    notes: list[str] = []
    kind = SourceKind(options.kind) if options.kind else detect(options.source)
    if kind is not SourceKind.OCI:
        return {"kind": kind, **_describe(_package(kind, options.source, options, notes), notes)}
    with tempfile.TemporaryDirectory(prefix="maas-oci-") as scratch:
        unpacked = Path(scratch, "model")
        unpack_oci(options.source, unpacked, notes.append)
        package = _package(detect(unpacked), unpacked, options, notes)
    return {"kind": kind, **_describe(package, notes)}


def _package(kind: SourceKind, source: Path, options: argparse.Namespace, notes: list[str]) -> Package:
    labels = tuple(label.strip() for label in options.labels.split(",") if label.strip())
    text = options.tokenizer and TextOptions(
        options.tokenizer, options.text_feeds, options.max_tokens or DEFAULT_MAX_TOKENS
    )
    if text is not None and kind not in (SourceKind.ONNX, SourceKind.SAVED_MODEL):
        raise OptionsUnused(f"a source of the kind {kind} has its own tokenizer.json; leave --tokenizer out")
    match kind:
        case SourceKind.ONNX:
            return import_onnx(source, options.out, text=text, labels=labels, log=notes.append)
        case SourceKind.SAVED_MODEL:
            return import_saved_model(source, options.out, text=text, labels=labels, log=notes.append)
        case SourceKind.HUGGING_FACE:
            # Here, since it needs torch, and an ONNX file does not.
            from maas_formats.hugging_face import import_hugging_face

            return import_hugging_face(
                source, options.out, max_tokens=options.max_tokens, labels=labels, log=notes.append
            )
        case SourceKind.PACKAGE:
            if labels or options.max_tokens:
                raise OptionsUnused("a package says its labels and how many tokens it takes; leave the options out")
            read_package(source)
            shutil.copytree(source, options.out, dirs_exist_ok=True)
            return read_package(options.out)
        case SourceKind.OCI:
            raise OciModelUnsupported("the layout holds another layout; import that one")


def _export(options: argparse.Namespace) -> dict[str, Any]:
    package = read_package(options.source)
    notes: list[str] = []
    match options.format:
        case TargetFormat.ONNX:
            written = export_onnx(package, options.out, notes.append)
        case TargetFormat.TRITON:
            written = export_triton(
                package, options.out, model=options.model, version=options.version, log=notes.append
            )
        case _:
            written = export_oci(package, options.out, model=options.model, version=options.version)
    return {"format": options.format, "files": written, "notes": notes}


def _describe(package: Package, notes: list[str]) -> dict[str, Any]:
    manifest = package.manifest
    return {
        "task": manifest.task,
        "inputs": [f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in manifest.inputs],
        "outputs": [f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in manifest.outputs],
        "batched": manifest.joins_rows,
        "servables": [f"{one.engine} {one.precision}" for one in manifest.servables],
        "notes": notes,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="maas_formats", description="Models from elsewhere, and for elsewhere.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("import", help="make a package")
    command.add_argument("source", type=Path)
    command.add_argument("--out", type=Path, required=True, help="new or empty folder for the package")
    command.add_argument("--kind", choices=[*SourceKind], help="what the source is; told by its content otherwise")
    command.add_argument("--tokenizer", type=Path, help="tokenizer.json that turns texts into word ids")
    command.add_argument("--text-feeds", default="", help="input that takes the word ids")
    command.add_argument("--max-tokens", type=int, help="how many word ids of a text are kept")
    command.add_argument("--labels", default="", help="names of the classes, with commas: the model is a classifier")
    command.set_defaults(run=_import)
    command = commands.add_parser("export", help="write a package as something else")
    command.add_argument("source", type=Path, help="package folder")
    command.add_argument("--format", choices=[TargetFormat.ONNX, TargetFormat.TRITON, TargetFormat.OCI], required=True)
    command.add_argument("--out", type=Path, required=True, help="new or empty folder")
    command.add_argument("--model", required=True, help="what it is called there")
    command.add_argument("--version", type=int, required=True)
    command.set_defaults(run=_export)
    return parser


if __name__ == "__main__":
    main()
