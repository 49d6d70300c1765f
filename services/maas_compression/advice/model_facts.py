"""Facts of a model: where its bytes are, which products it computes, how its weights are spread.

Read from the float graph, so that they are known of any model that has one. The statistics are of the largest tensors
and of samples of them: a second, also for a model of 100 MB.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

EMBEDDINGS, MATRICES, RECURRENT, CONVOLUTIONS, OTHER = "embeddings", "matrices", "recurrent", "convolutions", "other"
PARTS = (EMBEDDINGS, MATRICES, RECURRENT, CONVOLUTIONS, OTHER)

_LOOKED_AT = 8
"""How many of the largest matrices the statistics are of."""
_SINGULAR_VALUES_UP_TO = 2048
"""The smaller side of a matrix whose singular values are found: it takes a cubic time."""
_LOW_RANK_ENERGY = 0.95
_GROUP = 32
_LEAST_SHARE = 0.01
"""A shape of products that reads fewer of the products' weights is left out."""
_OUTLIER = 6.0
"""An input channel is an outlier when its largest weight is so many times the median channel's."""

# The place of the weights among a node's inputs, and what they are there.
_WEIGHT_INPUTS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "Gather": (EMBEDDINGS, (0,)),
    "MatMul": (MATRICES, (0, 1)),
    "Gemm": (MATRICES, (0, 1)),
    "LSTM": (RECURRENT, (1, 2)),
    "GRU": (RECURRENT, (1, 2)),
    "RNN": (RECURRENT, (1, 2)),
    "Conv": (CONVOLUTIONS, (1,)),
    "ConvTranspose": (CONVOLUTIONS, (1,)),
}
# What stands between stored weights and the node that uses them.
_PASSES_ON = frozenset({"Transpose", "Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, slots=True)
class Part:
    """The weights of one kind."""

    tensors: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Product:
    """A product of states [rows, inputs] with weights [inputs, outputs], `count` times a call (LSTM: a word)."""

    inputs: int
    outputs: int
    count: int

    @property
    def weights(self) -> int:
        """How many weights all of them read."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True, slots=True)
class Spread:
    """How the weights of matrices are spread; means over the largest of them, weighted by size.

    `beyond_fan_in`: share outside ±sqrt(6 / fan_in), which clip would change. `outlier_channels`: share of inputs whose
    largest weight is more than 6 times the median's. The errors are ||w - w'|| / ||w|| of w' rounded to 8 bits with a
    scale for each output, to 4 bits with a scale for each 32 weights. `low_rank_weights`: weights of the truncated
    singular value decomposition with 95 % of the energy, as a share of what they replace (1: nothing is won);
    `largest`: the largest |w|.
    """

    beyond_fan_in: float
    outlier_channels: float
    int8_error: float
    int4_error: float
    low_rank_weights: float
    largest: float


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the graph says. `parts` has every kind of PARTS; `spread` is None where there is no matrix."""

    parts: Mapping[str, Part]
    products: tuple[Product, ...]
    spread: Spread | None
    layers: int
    """How often the largest matrix shape comes: the layers of a transformer."""

    @property
    def parameters(self) -> int:
        """All weights."""
        return sum(part.parameters for part in self.parts.values())

    def share(self, part: str) -> float:
        """Return the share of the weights that are of this kind."""
        return self.parts[part].parameters / self.parameters if self.parameters else 0.0


def look_at_model(model: onnx.ModelProto) -> ModelFacts:
    """Return the facts of a float graph."""
    weights = _weights_by_kind(model.graph)
    parts = {
        kind: Part(len(tensors), sum(tensor.size for tensor in tensors))
        for kind in PARTS
        for tensors in [weights[kind]]
    }
    shapes = Counter(_product_shape(tensor) for tensor in (*weights[MATRICES], *weights[RECURRENT]))
    products = sorted((Product(*shape, count) for shape, count in shapes.items()), key=lambda one: -one.weights)
    least = _LEAST_SHARE * sum(product.weights for product in products)
    return ModelFacts(
        parts=parts,
        products=tuple(product for product in products if product.weights >= least),
        spread=_spread([_two_dimensional(tensor) for tensor in (*weights[MATRICES], *weights[RECURRENT])]),
        layers=max((one.count for one in products), default=0),
    )


def _weights_by_kind(graph: onnx.GraphProto) -> defaultdict[str, list[NDArray[np.float32]]]:
    """Return each float tensor once, by the first node that uses it."""
    kinds: dict[str, str] = {}
    origin: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in _PASSES_ON and node.input:
            origin[node.output[0]] = origin.get(node.input[0], node.input[0])
            continue
        kind, places = _WEIGHT_INPUTS.get(node.op_type, (OTHER, range(len(node.input))))
        for place in places:
            if place < len(node.input):
                kinds.setdefault(origin.get(node.input[place], node.input[place]), kind)
    found: defaultdict[str, list[NDArray[np.float32]]] = defaultdict(list)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor)
            kind = kinds.get(tensor.name, OTHER)
            # A bias that is added by MatMul's neighbour, a scale: no matrix, whoever uses it.
            found[kind if array.ndim >= 2 else OTHER].append(array)
    return found


def _two_dimensional(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [inputs, outputs]. ONNX's LSTM keeps [directions, outputs, inputs]."""
    return tensor.reshape(-1, tensor.shape[-1]).T if tensor.ndim == 3 else tensor.reshape(-1, tensor.shape[-1])


def _product_shape(tensor: NDArray[np.float32]) -> tuple[int, int]:
    rows, columns = _two_dimensional(tensor).shape
    return rows, columns


def _spread(matrices: list[NDArray[np.float32]]) -> Spread | None:
    largest = sorted(matrices, key=lambda matrix: -matrix.size)[:_LOOKED_AT]
    if not largest:
        return None
    sizes = [matrix.size for matrix in largest]

    def mean(values: list[float]) -> float:
        return float(np.average(values, weights=sizes))

    return Spread(
        beyond_fan_in=mean([float(np.mean(np.abs(matrix) > (6 / matrix.shape[0]) ** 0.5)) for matrix in largest]),
        outlier_channels=mean([_outlier_channels(matrix) for matrix in largest]),
        int8_error=mean([_rounding_error(matrix, 127, matrix.shape[0]) for matrix in largest]),
        int4_error=mean([_rounding_error(matrix, 7, _GROUP) for matrix in largest]),
        low_rank_weights=mean([_low_rank_weights(matrix) for matrix in largest]),
        largest=max(float(np.abs(matrix).max(initial=0)) for matrix in largest),
    )


def _outlier_channels(matrix: NDArray[np.float32]) -> float:
    largest = np.abs(matrix).max(axis=1)
    return float(np.mean(largest > _OUTLIER * np.median(largest)))


def _rounding_error(matrix: NDArray[np.float32], most: int, group: int) -> float:
    """Return ||w - w'|| / ||w||, w' = s * round(w / s), s = max|w| / most of `group` weights of one output."""
    columns = matrix.T
    spare = -columns.shape[1] % group
    groups = np.pad(columns, ((0, 0), (0, spare))).reshape(-1, group)
    scales = np.maximum(np.abs(groups).max(axis=1, keepdims=True) / most, np.finfo(np.float32).tiny)
    norm = float(np.linalg.norm(groups))
    rounded = np.rint(groups / scales) * scales
    return float(np.linalg.norm(groups - rounded)) / norm if norm else 0.0


def _low_rank_weights(matrix: NDArray[np.float32]) -> float:
    rows, columns = matrix.shape
    if min(rows, columns) > _SINGULAR_VALUES_UP_TO:
        return 1.0
    narrow = (matrix if rows >= columns else matrix.T).astype(np.float64)
    # The squared singular values, largest first: the eigenvalues of the smaller product with itself.
    energies = np.cumsum(np.maximum(np.linalg.eigvalsh(narrow.T @ narrow)[::-1], 0))
    if not energies.size or not energies[-1]:
        return 1.0
    rank = int(np.searchsorted(energies, _LOW_RANK_ENERGY * energies[-1])) + 1
    share: float = rank * (rows + columns) / (rows * columns)
    return min(1.0, share)
