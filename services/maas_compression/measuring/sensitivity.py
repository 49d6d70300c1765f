"""What each layer loses when it alone has few bits, and which layers had better stay as they are.

Layers are made coarse in the float graph and run as floats, which says what integers cost without making any: one
quantizer for all numbers of bits, and one run of a few rows a layer.
"""

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from maas_compression.materials import Materials, TrainingDataMissing
from maas_compression.measuring.judging import Judge, Judgement
from maas_compression.techniques.graphs import save_graph
from maas_engine.engine import choose_servable, open_engine
from maas_engine.predictor import Predictor
from maas_package.manifest import Servable
from maas_package.package import Package
from maas_package.trainable import ONNX_PATH

LOOKED_AT_ROWS = 256
"""Rows a layer is judged on: its error is a sum over all outputs, which so many rows tell well."""

_GROUP = 32
"""Below 8 bits so many weights of a row share a scale, as int4 stores them."""
_MOST_OF_8_BITS = 64
_OUTPUT_AXIS = {"MatMul": -1, "Conv": 0, "ConvTranspose": 1, "LSTM": 1, "Attention": -1, "Gather": 0}

_FIRST_OPSET_THAT_ROUNDS = 11

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class LayerLoss:
    """What the model loses when these weights alone are coarse; `error` is Judgement's."""

    layer: str
    operator: str
    weights: int
    error: float
    quality_loss: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What every layer loses, and all of them; `fewest_to_keep` is None where no loss was stated."""

    bits: int
    metric: str
    rows: int
    layers: tuple[LayerLoss, ...]
    all_layers: LayerLoss
    fewest_to_keep: int | None


def measure_sensitivity(
    source: Package,
    model: onnx.ModelProto,
    layers: Sequence[str],
    materials: Materials,
    bits: int,
    most_loss: float | None,
) -> Sensitivity:
    """Rank the layers of the source's float graph; with `most_loss`, find how many have to stay as they are.

    Raises TrainingDataMissing, and what judging raises.
    """
    judge = looking_judge(source, materials)
    ranked = rank_layers(source, model, layers, judge, bits, materials.progress)
    together = judge_coarse(source, model, layers, judge, bits)
    fewest = None if most_loss is None else fewest_to_keep(source, model, ranked, judge, bits, most_loss)
    return Sensitivity(bits, judge.metric, together.rows, ranked, _loss_of(model, layers, together), fewest)


def most_sensitive_layers(
    source: Package, model: onnx.ModelProto, layers: Sequence[str], materials: Materials, count: int, bits: int = 8
) -> tuple[str, ...]:
    """Return the names of the `count` layers that lose most. Raises TrainingDataMissing, and what judging raises."""
    if not count:
        return ()
    ranked = rank_layers(source, model, layers, looking_judge(source, materials), bits, materials.progress)
    for one in ranked[:count]:
        materials.log(f"{one.layer} stays as it is: with {bits} bits it alone changes the outputs by {one.error:.2%}")
    return tuple(one.layer for one in ranked[:count])


def looking_judge(source: Package, materials: Materials) -> Judge:
    """Return what judges a source's layers: on rows of `validation`, else of `train`, never on those of `test`.

    Raises TrainingDataMissing for a model that takes texts where there are none.
    """
    rows = materials.validation or materials.texts
    if rows is None and source.manifest.text is not None:
        raise TrainingDataMissing("to tell which layers matter takes texts: name a dataset with a split validation")
    servable = choose_servable(source, "onnxruntime")
    return Judge(source, servable, rows, materials.scratch, most_rows=LOOKED_AT_ROWS)


def rank_layers(
    source: Package, model: onnx.ModelProto, layers: Sequence[str], judge: Judge, bits: int, progress: Progress
) -> tuple[LayerLoss, ...]:
    """Return what each of the layers loses, the one that loses most first.

    `model` is the source's float graph, `layers` are names of its nodes that have weights; `judge` is the source's.
    """
    found = []
    for index, layer in enumerate(layers):
        progress(index / len(layers), f"layer {index + 1} of {len(layers)}")
        found.append(layer_loss(source, model, [layer], judge, bits))
    return tuple(sorted(found, key=lambda one: one.error, reverse=True))


def layer_loss(source: Package, model: onnx.ModelProto, layers: Collection[str], judge: Judge, bits: int) -> LayerLoss:
    """Return what is lost when all these layers are coarse."""
    return _loss_of(model, layers, judge_coarse(source, model, layers, judge, bits))


def judge_coarse(
    source: Package, model: onnx.ModelProto, layers: Collection[str], judge: Judge, bits: int
) -> Judgement:
    """Return how good the source is when all these layers are coarse."""
    with _predictor(source, coarse(model, layers, bits)) as predictor:
        return judge.judge(predictor)


def fewest_to_keep(
    source: Package,
    model: onnx.ModelProto,
    ranked: Sequence[LayerLoss],
    judge: Judge,
    bits: int,
    most_loss: float,
) -> int:
    """Return the smallest n so that the quality falls by at most `most_loss` when the n first stay as they are.

    None first, which is what one would like best; then by halving, as though keeping one layer more never did harm.
    What it returns was tried, or is all of them.
    """
    names = [one.layer for one in ranked]
    if judge_coarse(source, model, names, judge, bits).loss <= most_loss:
        return 0
    few, many = 0, len(names)
    while few < many:
        middle = (few + many) // 2
        loss = judge_coarse(source, model, names[middle:], judge, bits).loss
        few, many = (few, middle) if loss <= most_loss else (middle + 1, many)
    return many


def coarse(model: onnx.ModelProto, layers: Collection[str], bits: int) -> onnx.ModelProto:
    """Return a copy of the graph in which the weights of the layers are those that `bits` can tell apart.

    With 8 bits, what goes into them is rounded as well: to unsigned integers with one scale for the whole tensor, as
    dynamic quantization does it while it runs.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    wanted = set(layers)
    rounds_inputs = bits == 8 and _opset(model) >= _FIRST_OPSET_THAT_ROUNDS
    nodes: list[onnx.NodeProto] = []
    for number, node in enumerate(graph.node):
        if node.name in wanted:
            weights = _weights_of(model, node)
            for position, matrix in weights.items():
                name = f"{node.input[position]}_{number}_coarse"
                graph.initializer.append(numpy_helper.from_array(coarse_weights(matrix, node, bits), name))
                node.input[position] = name
            if rounds_inputs and node.op_type != "Gather":
                position = next(position for position in range(len(node.input)) if position not in weights)
                nodes += _rounded_input(node, position, number)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in graph.node for name in node.input}
    for tensor in [one for one in graph.initializer if one.name not in read and _is_matrix(one)]:
        graph.initializer.remove(tensor)
    return copy


def coarse_weights(weights: NDArray[np.float32], node: onnx.NodeProto, bits: int) -> NDArray[np.float32]:
    """Return round(w / s) * s with s = max|w| / (2^(bits - 1) - 1): symmetric, as weights are quantized.

    With 8 bits s is an output's, a table has one for all of it, and 7 of the bits are used, which are what int8 uses;
    below, _GROUP weights of an output share one.
    """
    most = _MOST_OF_8_BITS if bits == 8 else 2 ** (bits - 1) - 1
    if bits == 8 and node.op_type == "Gather":
        rows = weights.reshape(1, -1)
        return _rounded(rows, most).reshape(weights.shape)
    axis = _output_axis(node)
    rows = np.moveaxis(weights, axis, 0)
    shape = rows.shape
    rows = rows.reshape(shape[0], -1)
    if bits < 8:
        padding = -rows.shape[1] % _GROUP
        grouped = np.pad(rows, ((0, 0), (0, padding))).reshape(-1, _GROUP)
        rounded = _rounded(grouped, most).reshape(shape[0], -1)[:, : rows.shape[1]]
    else:
        rounded = _rounded(rows, most)
    return np.ascontiguousarray(np.moveaxis(rounded.reshape(shape), 0, axis))


def _rounded(rows: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    scales = np.abs(rows).max(axis=1, keepdims=True) / most
    scales[scales == 0] = 1
    rounded: NDArray[np.float32] = (np.rint(rows / scales) * scales).astype(np.float32)
    return rounded


def _output_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "Gemm":
        transposed = any(one.name == "transB" and one.i for one in node.attribute)
        return 0 if transposed else 1
    return _OUTPUT_AXIS.get(node.op_type, -1)


def _weights_of(model: onnx.ModelProto, node: onnx.NodeProto) -> dict[int, NDArray[np.float32]]:
    """Return the float matrices among a node's inputs, by their position."""
    positions = {name: position for position, name in enumerate(node.input)}
    return {
        positions[tensor.name]: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name in positions and _is_matrix(tensor)
    }


def _is_matrix(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1


def _rounded_input(node: onnx.NodeProto, position: int, number: int) -> list[onnx.NodeProto]:
    """Put rounding between a node and one of its inputs; return the nodes that do it."""
    integers, scale, zero, rounded = (f"coarse_{number}_{part}" for part in ("integers", "scale", "zero", "rounded"))
    quantize = helper.make_node("DynamicQuantizeLinear", [node.input[position]], [integers, scale, zero])
    dequantize = helper.make_node("DequantizeLinear", [integers, scale, zero], [rounded])
    node.input[position] = rounded
    return [quantize, dequantize]


def _opset(model: onnx.ModelProto) -> int:
    return max(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))


def _loss_of(model: onnx.ModelProto, layers: Collection[str], judgement: Judgement) -> LayerLoss:
    nodes = [node for node in model.graph.node if node.name in set(layers)]
    one = nodes[0] if len(nodes) == 1 else None
    return LayerLoss(
        layer=one.name if one else "",
        operator=one.op_type if one else "",
        weights=sum(weight.size for node in nodes for weight in _weights_of(model, node).values()),
        error=judgement.error,
        quality_loss=judgement.loss,
        agreement=judgement.agreement,
    )


@contextmanager
def _predictor(source: Package, model: onnx.ModelProto) -> Iterator[Predictor]:
    """Give what answers with a graph in place of the source's own."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, *ONNX_PATH.split("/"))
        path.parent.mkdir(parents=True)
        save_graph(model, path)
        engine = open_engine(Package(Path(scratch), source.manifest), Servable("onnxruntime", "fp32", ONNX_PATH))
        try:
            yield Predictor(source, engine)
        finally:
            engine.close()
