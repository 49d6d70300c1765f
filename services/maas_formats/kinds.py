"""What kind of model a path holds, told by its content. What would have to be unpickled is refused by its member."""

from pathlib import Path

from maas.formats import SourceKind
from maas_formats.oci_layout import LAYOUT_NAME
from maas_package.harm import Harm, HarmKind, find_harm
from maas_package.manifest import MANIFEST_NAME
from maas_package.package import PackageHoldsCode, PackageHoldsPickle
from maas_runtime.failures import InvalidInput

_SAFETENSORS = "*.safetensors"
_GRAPH_NAME = "saved_model.pb"
_ADVICE = (
    "save the weights with safetensors.torch.save_file(model.state_dict(), 'model.safetensors') beside config.json and "
    "tokenizer.json, or write ONNX: torch.onnx.export(model, inputs, 'model.onnx', dynamo=True)"
)
_EXPORTED_ADVICE = (
    "whoever trusts it writes ONNX of it: "
    "torch.onnx.export(torch.export.load('model.pt2'), f='model.onnx', dynamo=True)"
)
_KERAS_ADVICE = "write a SavedModel with model.export('saved_model') and import that folder"
_LOCKED_ADVICE = "import what is in it, unpacked"
_ADVICE_OF_KIND = {
    HarmKind.PICKLE: _ADVICE,
    HarmKind.EXPORTED_PROGRAM: _EXPORTED_ADVICE,
    HarmKind.KERAS: _KERAS_ADVICE,
    HarmKind.LOCKED: _LOCKED_ADVICE,
}


class FormatUnknown(InvalidInput):
    """The path holds nothing that can be imported."""

    reason = "FORMAT_UNKNOWN"


class SourceMissing(InvalidInput):
    """There is nothing at the path."""

    reason = "SOURCE_MISSING"


def detect(source: Path) -> SourceKind:
    """Return the kind of what lies at `source`. Raises SourceMissing, FormatUnknown, or as `refuse_harm` does."""
    if source.is_dir():
        return _detect_folder(source)
    if not source.is_file():
        raise SourceMissing(f"there is no {source.name}")
    if source.suffix.lower() == ".onnx":
        return SourceKind.ONNX
    refuse_harm(source, source.name)
    if source.suffix.lower() == ".safetensors":
        raise FormatUnknown(f"{source.name} has weights only: import its folder, with config.json and tokenizer.json")
    # ONNX has no mark of its own; its reader says what is wrong.
    if source.suffix == "":
        return SourceKind.ONNX
    raise FormatUnknown(f"{source.name} is nothing that can be imported; {_takes()}")


def refuse_harm(location: Path, name: str) -> None:
    """Raise PackageHoldsPickle or PackageHoldsCode, naming the member, when reading the file could run anything."""
    harm = find_harm(location)
    if harm is not None:
        raise _refusal(harm, name)


def _detect_folder(source: Path) -> SourceKind:
    if (source / LAYOUT_NAME).is_file():
        return SourceKind.OCI
    if (source / MANIFEST_NAME).is_file():
        return SourceKind.PACKAGE
    if (source / _GRAPH_NAME).is_file():
        return SourceKind.SAVED_MODEL
    if (source / "config.json").is_file() and any(source.glob(_SAFETENSORS)):
        return SourceKind.HUGGING_FACE
    # What is not there is best said by what is there instead.
    for location in sorted(source.iterdir()):
        if location.is_file():
            refuse_harm(location, location.name)
    if (source / "config.json").is_file():
        raise FormatUnknown(f"{source.name} has no model.safetensors beside its config.json; {_ADVICE}")
    raise FormatUnknown(f"{source.name} is nothing that can be imported; {_takes()}")


def _refusal(harm: Harm, name: str) -> InvalidInput:
    where = f"{name}: its member {harm.member} is" if harm.member else f"{name} is"
    advice = _ADVICE_OF_KIND[harm.kind]
    if harm.kind is HarmKind.PICKLE:
        return PackageHoldsPickle(
            f"{where} {harm.what}, and loading it could run anything; {advice}", path=name, member=harm.member
        )
    what = f"of {harm.what}" if harm.member else harm.what
    return PackageHoldsCode(f"{where} {what}; {advice}", path=name, member=harm.member)


def _takes() -> str:
    return (
        "there are: an .onnx file, a Hugging Face folder (config.json, model.safetensors, tokenizer.json), "
        "a SavedModel of TensorFlow (saved_model.pb), an OCI image layout (oci-layout), a package (manifest.json)"
    )
