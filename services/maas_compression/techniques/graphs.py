"""The graphs that graph techniques rewrite: any package's served form as floats, and the package of a new one."""

import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.inliner import inline_local_functions

from maas_engine.engine import ServableMissing, choose_servable
from maas_engine.examples import Examples
from maas_engine.predictor import open_predictor
from maas_engine.publish import architecture_examples, largest_difference
from maas_package.architectures import load_architecture
from maas_package.manifest import Servable
from maas_package.package import Package, write_package
from maas_package.tensors import Array
from maas_package.trainable import ONNX_PATH, WeightsInvalid, export_onnx, load_module
from maas_runtime.failures import InvalidInput

FLOAT_TYPES = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
_INDEX_TYPES = frozenset({TensorProto.BOOL, TensorProto.INT32, TensorProto.INT64})

PACKED_NODE = "packed:"
"""Begins the names of nodes that decode weights of a few bits each (packed.py). To fold those would undo what they
save, so the techniques that follow leave them as they are."""
_MOST_EMBEDDED_BYTES = 2**30
"""A Protocol Buffers message holds 2 GiB; a graph with more weights keeps them beside it."""
_EXAMPLE_ROWS = (1, 8)
# What may be told from constants but is no weight: random, of any size, or with graphs inside.
_NOT_FOLDED = frozenset(
    {"Bernoulli", "ConstantOfShape", "Expand", "If", "Loop", "Multinomial", "Range", "Scan", "SequenceMap", "Tile"}
)


class GraphMissing(InvalidInput):
    """The package has no ONNX graph that onnxruntime runs here."""

    reason = "GRAPH_MISSING"


class GraphUnusable(InvalidInput):
    """There is nothing in the graph that could be compressed, or what was made of it is no graph."""

    reason = "GRAPH_UNUSABLE"


def float_graph(package: Package) -> onnx.ModelProto:
    """Return the package's graph with the weights inside, as float32 wherever they are only stored as something else.

    Made anew from the trainable form where there is one, else read from what onnxruntime serves. Weights that the
    file turns into floats while it is loaded (integers of fixed_point, halves) are floats here; what int4 and codebook
    packed, and integers that the engine computes with, stay. Each node has a name of its own. Raises GraphMissing,
    GraphUnusable, WeightsInvalid, and what exporting raises.
    """
    manifest = package.manifest
    if manifest.architecture is not None and manifest.weights is not None:
        model = _exported(package)
    else:
        model = _served(package)
    # Older files list their weights among the inputs, where a caller could replace them.
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    _constants_to_initializers(model)
    fold_stored_weights(model)
    _name_nodes(model.graph)
    check_graph(model)
    return model


def write_graph_package(
    source: Package, model: onnx.ModelProto, folder: Path, *, precision: str, engine: str = "onnxruntime"
) -> Package:
    """Write the package that serves `model` on `engine` to `folder`, which must be new or empty.

    Everything else is as in `source`, but for the trainable form and other servables, which it no longer has. The
    largest difference from the source on examples is recorded, without a tolerance: accuracy and agreement on real
    data say what it costs. Raises GraphUnusable, WeightsInvalid, or ServableBroken when the engine cannot load it.
    """
    check_graph(model)
    target = folder.joinpath(*ONNX_PATH.split("/"))
    target.parent.mkdir(parents=True)
    save_graph(model, target)
    return write_servable_package(source, folder, Servable(engine, precision, ONNX_PATH))


def write_servable_package(source: Package, folder: Path, servable: Servable) -> Package:
    """Make the package of one servable, whose file already lies in `folder`; the rest is write_graph_package's."""
    manifest = source.manifest
    if manifest.text is not None:
        tokenizer = folder.joinpath(*manifest.text.tokenizer.split("/"))
        tokenizer.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.path(manifest.text.tokenizer), tokenizer)
    made = replace(manifest, architecture=None, weights=None, servables=(servable,), files=())
    package = write_package(folder, made)
    difference = _difference(source, package)
    if math.isnan(difference):
        raise GraphUnusable("what was made of the graph answers NaN where the source has numbers, or the source does")
    if math.isinf(difference):  # texts, or another shape: there is no distance between them
        return package
    return write_package(folder, replace(made, servables=(replace(servable, max_difference=difference),)))


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write the graph, with its weights beside it where they are more than a file can hold. Raises GraphUnusable."""
    weights_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    try:
        if weights_bytes > _MOST_EMBEDDED_BYTES:
            onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
        else:
            onnx.save(model, str(path))
        # By path: the form that also takes what lies beside the file.
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise GraphUnusable(f"what was made of the graph is not valid ONNX: {str(error)[:300]}") from error


def check_graph(model: onnx.ModelProto) -> None:
    """Raise GraphUnusable when the graph has no layers or no weights, WeightsInvalid when a weight is no number."""
    if not model.graph.node:
        raise GraphUnusable("the graph has no layers, so there is nothing to compress")
    tensors = [tensor for graph in graphs_of(model.graph) for tensor in graph.initializer]
    if not any(tensor.data_type not in _INDEX_TYPES and math.prod(tensor.dims) > 1 for tensor in tensors):
        raise GraphUnusable("the graph has no weights, so there is nothing to compress")
    for tensor in tensors:
        if tensor.data_type in FLOAT_TYPES and not np.isfinite(numpy_helper.to_array(tensor).astype(np.float64)).all():
            raise WeightsInvalid(f"the weights {tensor.name} hold NaN or infinity; train the model anew")


def example_batches(package: Package) -> Sequence[Mapping[str, Array]]:
    """Return prepared inputs to compare two forms of the package on; with padding where it has an architecture."""
    if package.manifest.architecture is not None:
        return architecture_examples(package.manifest.architecture)
    predictor = open_predictor(package, comparable_servable(package))
    try:
        examples = Examples(predictor)
        return [examples.batch(rows, seed) for seed, rows in enumerate(_EXAMPLE_ROWS)]
    finally:
        predictor.close()


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and all graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for inner in _inner_graphs(node):
            yield from graphs_of(inner)


def fold_stored_weights(model: onnx.ModelProto) -> None:
    """Replace what the graph computes of nothing but initializers by the result, in place.

    onnxruntime computes it, so that whatever operators it knows can be a way of storing weights. DequantizeLinear
    stays: it says which matrix is to be multiplied as integers. So do packed weights.
    """
    graph = model.graph
    constant = {tensor.name for tensor in graph.initializer}
    folded: list[onnx.NodeProto] = []
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        if _is_folded(node) and any(node.input) and all(name in constant for name in node.input if name):
            folded.append(node)
            constant.update(name for name in node.output if name)
        else:
            kept.append(node)
    if not folded:
        return
    read = {*_names_read(kept), *(value.name for value in graph.output)}
    values = _computed(model, folded, sorted(read & {name for node in folded for name in node.output if name}))
    initializers = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())


def _exported(package: Package) -> onnx.ModelProto:
    reference = package.manifest.architecture
    assert reference is not None
    architecture = load_architecture(reference.name)
    module = load_module(package)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsInvalid(f"the weights {name} hold NaN or infinity; train the model anew")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "model.onnx")
        export_onnx(module, architecture, architecture.parse_config(reference.config), path)
        return onnx.load(str(path))


def _served(package: Package) -> onnx.ModelProto:
    try:
        servable = choose_servable(package, "onnxruntime")
    except ServableMissing as missing:
        raise GraphMissing(
            f"this version has no trainable form and no ONNX graph for onnxruntime, which is what this technique "
            f"changes: {missing.message}"
        ) from missing
    model = onnx.load(str(package.path(servable.path)))
    return inline_local_functions(model) if model.functions else model


def comparable_servable(package: Package) -> Servable:
    """Return the servable to compare with: onnxruntime's where there is one, since others may round."""
    try:
        return choose_servable(package, "onnxruntime")
    except ServableMissing:
        return choose_servable(package)


def _difference(source: Package, made: Package) -> float:
    batches = example_batches(source)
    return largest_difference(_answers(source, comparable_servable(source), batches), _answers(made, None, batches))


def _answers(
    package: Package, servable: Servable | None, batches: Sequence[Mapping[str, Array]]
) -> list[Mapping[str, Array]]:
    predictor = open_predictor(package, servable)
    try:
        return [predictor.compute(batch) for batch in batches]
    finally:
        predictor.close()


def _constants_to_initializers(model: onnx.ModelProto) -> None:
    """Turn the nodes Constant that hold a tensor into initializers, where techniques look for weights."""
    kept = []
    for node in model.graph.node:
        value = next((one for one in node.attribute if one.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(value.t)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _name_nodes(graph: onnx.GraphProto) -> None:
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        name = node.name or next((output for output in node.output if output), node.op_type)
        node.name = name if name not in taken else f"{name}_{index}"
        taken.add(node.name)


def _is_folded(node: onnx.NodeProto) -> bool:
    return not (
        node.op_type in _NOT_FOLDED
        or node.name.startswith(PACKED_NODE)
        or node.op_type.startswith("Random")
        or node.op_type.endswith("QuantizeLinear")
        or node.op_type == "DequantizeLinear"
        or any(True for _ in _inner_graphs(node))
    )


def _computed(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], wanted: Sequence[str]) -> dict[str, Array]:
    """Return what the nodes make of the initializers they read."""
    import onnxruntime

    read = set(_names_read(nodes))
    graph = onnx.helper.make_graph(
        nodes,
        "stored_weights",
        [],
        [onnx.ValueInfoProto(name=name) for name in wanted],
        [tensor for tensor in model.graph.initializer if tensor.name in read],
    )
    part = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip(wanted, session.run(list(wanted), {}), strict=True))
    # The library's errors have no base class of their own.
    except Exception as error:
        raise GraphUnusable(f"the stored weights cannot be turned into floats: {str(error)[:300]}") from error


def _names_read(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Yield each name that a node reads, also from inside of graphs within it."""
    for node in nodes:
        yield from node.input
        for inner in _inner_graphs(node):
            yield from _names_read(inner.node)
            yield from (value.name for value in inner.output)


def _inner_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs
