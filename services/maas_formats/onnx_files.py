"""An ONNX file from anywhere made into a package."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maas_engine.engine import InputsRefused, ServableBroken, first_line, open_engine
from maas_engine.examples import Examples
from maas_engine.predictor import Predictor
from maas_engine.publish import Log, agreeing, openvino_candidates, with_measurements
from maas_formats.kinds import refuse_harm
from maas_package.manifest import TENSORS, TEXT_CLASSIFICATION, Manifest, Servable, TensorSpec, TextInput
from maas_package.package import Package, write_package
from maas_package.tensors import Array
from maas_runtime.failures import InvalidInput

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

SERVABLE_PATH = "servables/onnxruntime/model.onnx"
TOKENIZER_PATH = "tokenizer.json"
TEXT_INPUT = "text"
DEFAULT_MAX_TOKENS = 256

# ONNX's names of element types -> the Open Inference Protocol's.
_DATATYPES = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "UINT16": "UINT16",
    "UINT32": "UINT32",
    "UINT64": "UINT64",
    "INT8": "INT8",
    "INT16": "INT16",
    "INT32": "INT32",
    "INT64": "INT64",
    "FLOAT16": "FP16",
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "STRING": "BYTES",
}
# A protobuf message ends at 2 GB; weights beyond this go into a file beside it.
_MOST_EMBEDDED_BYTES = 1_000_000_000
_TOGETHER = 3


class OnnxFileUnreadable(InvalidInput):
    """The file is not ONNX, or not all of it is there."""

    reason = "ONNX_FILE_UNREADABLE"


class OnnxDataMissing(InvalidInput):
    """A file of weights beside the ONNX file is missing, damaged, or outside its folder."""

    reason = "ONNX_DATA_MISSING"


class OnnxTypeUnsupported(InvalidInput):
    """An input or output is no tensor, or of a type that callers cannot send."""

    reason = "ONNX_TYPE_UNSUPPORTED"


class OnnxVersionUnsupported(InvalidInput):
    """The file was written for operators, or a format, newer than the engine's."""

    reason = "ONNX_VERSION_UNSUPPORTED"


class OnnxOperatorUnknown(InvalidInput):
    """The graph has an operator that the engine does not have."""

    reason = "ONNX_OPERATOR_UNKNOWN"


class OnnxNotRunnable(InvalidInput):
    """The engine does not load the graph, or cannot run it with the inputs that it declares."""

    reason = "ONNX_NOT_RUNNABLE"


class OnnxPaddingCounts(InvalidInput):
    """A text's answer depends on how long the other texts of its batch are."""

    reason = "ONNX_PADDING_COUNTS"


class OnnxUnavailable(InvalidInput):
    """Reading ONNX files needs a library that is not installed here."""

    reason = "ONNX_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class TextOptions:
    """The model takes word ids, which this tokenizer makes of texts."""

    tokenizer: Path
    feeds: str = ""
    """The input that takes the ids; empty where there is only one."""
    max_tokens: int = DEFAULT_MAX_TOKENS


def import_onnx(
    source: Path, folder: Path, *, text: TextOptions | None = None, labels: tuple[str, ...] = (), log: Log = logger.info
) -> Package:
    """Make a package of an ONNX file in `folder`, which must be new or empty.

    Its signature is the graph's. It is run: one row, and several together and apart, so that requests only share a
    batch where that changes no answer. Raises an InvalidInput that says what to do.
    """
    model = _read(source)
    _store(model, source, folder)
    if text is not None:
        shutil.copyfile(text.tokenizer, folder / TOKENIZER_PATH)
    servable = Servable("onnxruntime", "fp32", SERVABLE_PATH)
    manifest = Manifest(
        task=TEXT_CLASSIFICATION if labels else TENSORS,
        inputs=tuple(_inputs(model)),
        outputs=tuple(_spec(value) for value in model.graph.output),
        labels=labels,
        servables=(servable,),
    )
    if text is not None:
        feeds = text.feeds or manifest.inputs[0].name
        manifest = replace(manifest, text=TextInput(TEXT_INPUT, feeds, TOKENIZER_PATH, text.max_tokens))
    del model
    package, batches = _tried(Package(folder, manifest), servable, log)
    # Through the one door that checks everything, before anything is measured.
    package = write_package(folder, package.manifest)
    candidates = agreeing(package, openvino_candidates(servable), servable, batches, log)
    servables = with_measurements(package, (servable, *candidates), (), log)
    return write_package(folder, replace(package.manifest, servables=servables, files=()))


def _read(source: Path) -> "onnx.ModelProto":
    """Return the graph with its weights. Raises OnnxFileUnreadable or OnnxDataMissing."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx.external_data_helper import load_external_data_for_model
    except ImportError as error:
        raise OnnxUnavailable("importing needs the library onnx: pip install onnx") from error
    if source.is_file():
        refuse_harm(source, source.name)
    try:
        model = onnx.load(str(source), load_external_data=False)
    except OSError as error:
        raise OnnxFileUnreadable(f"{source.name} cannot be read: {error.strerror}") from error
    except (DecodeError, ValueError) as error:
        raise OnnxFileUnreadable(
            f"{source.name} is not an ONNX file, or its end is missing; export it again"
        ) from error
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise OnnxFileUnreadable(f"{source.name} has no graph: it is not an ONNX file, or its end is missing")
    try:
        load_external_data_for_model(model, str(source.parent))
    # The library's own: a missing file, one outside the folder, one that is too short.
    except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        raise OnnxDataMissing(
            f"the weights of {source.name} are not all in its folder ({first_line(error)}); copy the files that the "
            "export wrote beside it"
        ) from error
    return model


def _store(model: "onnx.ModelProto", source: Path, folder: Path) -> None:
    import onnx
    from onnx.external_data_helper import uses_external_data

    target = folder.joinpath(*SERVABLE_PATH.split("/"))
    target.parent.mkdir(parents=True)
    weights_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights_bytes > _MOST_EMBEDDED_BYTES:
        onnx.save(model, str(target), save_as_external_data=True, location=f"{target.name}.data")
    elif any(
        uses_external_data(tensor) for tensor in onnx.load(str(source), load_external_data=False).graph.initializer
    ):
        onnx.save(model, str(target))
    else:
        shutil.copyfile(source, target)


def _inputs(model: "onnx.ModelProto") -> Iterator[TensorSpec]:
    # Older files list their weights among the inputs.
    weights = {tensor.name for tensor in model.graph.initializer}
    found = [value for value in model.graph.input if value.name not in weights]
    if not found:
        raise OnnxTypeUnsupported("the graph has no inputs, so there is nothing to ask it")
    for value in found:
        spec = _spec(value)
        if not value.type.tensor_type.HasField("shape"):
            raise OnnxTypeUnsupported(
                f"the graph does not say how many dimensions {value.name} has; export it with shapes"
            )
        yield spec


def _spec(value: "onnx.ValueInfoProto") -> TensorSpec:
    """Return an input or output as it is declared; free sizes are -1."""
    from onnx import TensorProto

    if not value.type.HasField("tensor_type"):
        kind = (value.type.WhichOneof("value") or "nothing").removesuffix("_type")
        raise OnnxTypeUnsupported(
            f"{value.name} is a {kind}, and only tensors are served; export without it (scikit-learn: zipmap=False)"
        )
    element = TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    if element not in _DATATYPES:
        raise OnnxTypeUnsupported(
            f"{value.name} holds {element.lower()}, which callers cannot send; cast it in the graph to one of "
            f"{', '.join(sorted(name.lower() for name in _DATATYPES))}"
        )
    dims = value.type.tensor_type.shape.dim
    shape = tuple(one.dim_value if one.HasField("dim_value") and one.dim_value > 0 else -1 for one in dims)
    return TensorSpec(value.name, _DATATYPES[element], shape)


def _tried(package: Package, servable: Servable, log: Log) -> tuple[Package, list[Mapping[str, Array]]]:
    """Run the graph; return the package with what that showed of its signature, and the batches that it can run."""
    try:
        engine = open_engine(package, servable)
    except ServableBroken as error:
        raise _load_failure(error.message) from error
    predictor = Predictor(package, engine)
    try:
        examples = Examples(predictor)
        alone = [examples.batch(1, seed) for seed in range(_TOGETHER)]
        answers = [predictor.compute(batch) for batch in alone]
        manifest = replace(
            package.manifest,
            outputs=tuple(_seen(spec, answers[0][spec.name]) for spec in package.manifest.outputs),
        )
        if manifest.text is not None:
            _check_padding(predictor, alone[0], answers[0])
        if manifest.joins_rows:
            manifest = _with_rows(manifest, predictor, alone, answers, log)
    except InputsRefused as error:
        shapes = ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in package.manifest.inputs)
        raise OnnxNotRunnable(f"the graph loads but does not run with {shapes}: {error.message}") from error
    finally:
        predictor.close()
    return replace(package, manifest=manifest), alone


def _seen(spec: TensorSpec, tensor: Array) -> TensorSpec:
    """Return an output's shape; what a graph declares of it may be missing, or wrong."""
    if len(spec.shape) != tensor.ndim:
        return replace(spec, shape=(-1,) * tensor.ndim)
    sizes = zip(spec.shape, tensor.shape, strict=True)
    return replace(spec, shape=tuple(size if size == actual else -1 for size, actual in sizes))


def _with_rows(
    manifest: Manifest,
    predictor: Predictor,
    alone: list[Mapping[str, Array]],
    answers: list[Mapping[str, Array]],
    log: Log,
) -> Manifest:
    """Return the manifest, saying whether rows can be computed together: whether each gets the answer that it gets
    alone.
    """
    together = {name: np.concatenate([batch[name] for batch in alone]) for name in alone[0]}
    try:
        answer = predictor.compute(together)
    except InputsRefused:
        log("the graph takes one row at a time, whatever it declares: requests are not batched")
        return replace(
            manifest,
            inputs=tuple(replace(spec, shape=(1, *spec.shape[1:])) for spec in manifest.inputs),
            outputs=tuple(replace(spec, shape=(1, *spec.shape[1:])) for spec in manifest.outputs),
        )
    if all(_same_rows(answer[name], [one[name] for one in answers]) for name in answer):
        return manifest
    log("rows computed together get other answers than alone: requests are not batched")
    return replace(manifest, rows_apart=True)


def _check_padding(predictor: Predictor, batch: Mapping[str, Array], answer: Mapping[str, Array]) -> None:
    """Raise OnnxPaddingCounts when a row gets another answer with padding at its end."""
    padded = {
        name: np.pad(ids, ((0, 0), (0, 8)), constant_values=predictor.preparer.padding_id)
        for name, ids in batch.items()
    }
    padded_answer = predictor.compute(padded)
    if not all(_same_rows(padded_answer[name], [answer[name]]) for name in answer):
        raise OnnxPaddingCounts(
            "a row of word ids gets another answer when padded, and texts of one batch are padded to the longest; "
            "export the model with its mask made of the ids, or import it without a tokenizer"
        )


def _same_rows(together: Array, alone: list[Array]) -> bool:
    expected = np.concatenate(alone)
    if together.shape != expected.shape:
        return False
    if expected.dtype.kind != "f":
        return bool((together == expected).all())
    largest = float(np.abs(expected).max(initial=0.0))
    return bool(np.allclose(together, expected, rtol=1e-3, atol=1e-4 * max(largest, 1e-3)))


def _load_failure(message: str) -> InvalidInput:
    """Return why the engine does not load the graph, by what it says."""
    lowered = message.lower()
    if "ir version" in lowered or "opset" in lowered:
        return OnnxVersionUnsupported(f"{message}; export it again for an older operator set")
    if "is not a registered function/op" in lowered or "no op registered" in lowered:
        return OnnxOperatorUnknown(f"{message}; replace the operator, or serve the model with an engine of your own")
    return OnnxNotRunnable(message)
