"""codebook: weights as indices into a few shared values, found by k-means; decoded when the file is loaded.

Shapes: R rows, C columns, L = 2^bits levels.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from numpy.typing import NDArray

from maas_compression.materials import Materials
from maas_compression.recipe import Codebook
from maas_compression.techniques.feedback import Moments, input_moments, round_with_feedback
from maas_compression.techniques.graph_weights import EMBEDDINGS, graph_weights
from maas_compression.techniques.graphs import float_graph, write_graph_package
from maas_compression.techniques.packed import PackedWeight, store_packed
from maas_package.package import Package

# Levels are fitted to about as many numbers as this: more changed no level's second digit.
_SAMPLE = 1_000_000
_LLOYD_STEPS = 100
_SCALE_STEPS = 3
_LEAST_SCALE = 1e-4


def apply_codebook(source: Package, technique: Codebook, folder: Path, materials: Materials) -> Package:
    """Write the package whose weights take `bits` each to `folder`, which must be new or empty.

    Where there are training texts, the matrices are rounded so that their outputs on these change least. The result
    has no trainable form. Raises GraphMissing or GraphUnusable.
    """
    model = float_graph(source)
    moments = input_moments(source, model, materials) if technique.parts != EMBEDDINGS else {}
    graph = codebook_graph(model, technique, moments)
    return write_graph_package(source, graph, folder, precision=f"codebook{technique.bits}")


def codebook_graph(
    model: onnx.ModelProto, technique: Codebook, moments: Moments = MappingProxyType({})
) -> onnx.ModelProto:
    """Return the graph with its float weights as indices into levels; what is quantized already stays as it is.

    Raises GraphUnusable when it has no such weights.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    packed = []
    for weight in graph_weights(result, technique.parts, technique.keep):
        matrix = _as_matrix(weight.value)
        book = fit_codebook(matrix, technique.bits)
        if weight.name in moments:
            book = with_feedback(matrix, book, moments[weight.name], weight.fan_in_axes[0])
        packed.append(
            PackedWeight(
                name=weight.name,
                shape=weight.value.shape,
                bits=technique.bits,
                indices=book.indices,
                levels=book.levels,
                scales=(book.row_scales, book.column_scales),
            )
        )
    store_packed(result, packed)
    return result


@dataclass(frozen=True, slots=True)
class FittedCodebook:
    """A matrix [R, C] as levels[indices] * row_scales * column_scales.

    `indices`: uint8 [R, C]; `levels`: float32 [L], ascending; the scales: float16 [R, 1] and [1, C].
    """

    indices: NDArray[np.uint8]
    levels: NDArray[np.float32]
    row_scales: NDArray[np.float16]
    column_scales: NDArray[np.float16]


def fit_codebook(matrix: NDArray[np.float32], bits: int) -> FittedCodebook:
    """Fit 2^bits levels to a matrix by k-means (Lloyd), one set for all of it, in the units of each row and column.

    Han et al., 2016 (arXiv:1510.00149, section 3) share the levels among a whole layer. A level for each row and column
    scale is nearer by far, since some columns of a transformer are ten times as large as others: squared error of
    all-MiniLM-L6-v2's first matrix in 4, 3 and 2 bits, as a share of its squares: 0.0147, 0.051 and 0.161 with one set
    of levels; 0.0102, 0.036 and 0.119 with scales, which is what is least for numbers of a normal distribution
    (Max, 1960: 0.0095, 0.0345, 0.1175).
    """
    # Whatever a tensor's size, its scales fit 16 bits, since the levels take the size.
    size = float(np.sqrt(np.mean(np.square(matrix, dtype=np.float64)))) or 1.0
    matrix = (matrix / size).astype(np.float32)
    columns = _spread(matrix / _spread(matrix, axis=1), axis=0).astype(np.float16)
    rows = _spread(matrix / columns, axis=1).astype(np.float16)
    levels = np.zeros(2**bits, np.float32)
    indices = np.zeros(matrix.shape, np.uint8)
    for _ in range(_SCALE_STEPS):
        units = rows.astype(np.float32) * columns.astype(np.float32)
        scaled = np.divide(matrix, units, out=np.zeros_like(matrix), where=units != 0)
        step = max(1, matrix.size // _SAMPLE) | 1  # odd, so that it meets all columns
        levels = lloyd(scaled.reshape(-1)[::step], np.square(units).reshape(-1)[::step], 2**bits)
        indices = nearest_level(scaled, levels)
        rows = _fitted_rows(matrix, levels[indices] * columns.astype(np.float32), rows)
    return FittedCodebook(indices, levels * np.float32(size), rows, columns)


def with_feedback(
    matrix: NDArray[np.float32], book: FittedCodebook, moments: NDArray[np.float64], fan_in_axis: int
) -> FittedCodebook:
    """Return the codebook with other indices, for inputs of these moments, which lie along `fan_in_axis` of two."""
    if fan_in_axis == 0:
        turned = FittedCodebook(book.indices.T, book.levels, book.column_scales.T, book.row_scales.T)
        made = with_feedback(matrix.T, turned, moments, 1)
        return replace(book, indices=np.ascontiguousarray(made.indices.T))
    rows, columns = book.row_scales.astype(np.float32)[:, 0], book.column_scales.astype(np.float32)[0]

    def rounding(index: int, weights: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        units = rows * columns[index]
        codes = nearest_level(np.divide(weights, units, out=np.zeros_like(weights), where=units != 0), book.levels)
        return codes, book.levels[codes] * units

    return replace(book, indices=round_with_feedback(matrix, moments, rounding))


def lloyd(values: NDArray[np.float32], weights: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return the `count` levels, ascending, with the least weighted squared error (Lloyd, 1982; a local least).

    In one dimension the values nearest a level are neighbours, so with their running sums a step costs a search for
    the boundaries alone. Starts from quantiles.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order].astype(np.float64)
    mass = np.concatenate([[0.0], np.cumsum(weights[order], dtype=np.float64)])
    moment = np.concatenate([[0.0], np.cumsum(weights[order] * ordered)])
    levels = np.quantile(ordered, (np.arange(count) + 0.5) / count)
    for _ in range(_LLOYD_STEPS):
        ends = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        ends = np.concatenate([[0], ends, [len(ordered)]])
        inside = mass[ends[1:]] - mass[ends[:-1]]
        means = (moment[ends[1:]] - moment[ends[:-1]]) / np.where(inside > 0, inside, 1)
        moved = np.sort(np.where(inside > 0, means, levels))
        if np.abs(moved - levels).max() <= 1e-6 * np.abs(levels).max():
            break
        levels = moved
    return levels.astype(np.float32)


def nearest_level(values: NDArray[np.float32], levels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the index of the level nearest to each value."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, values).astype(np.uint8)


def _as_matrix(value: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [R, C]: a recurrent layer's [1, R, C] without its first axis, a convolution's outputs as rows."""
    return value.reshape(-1, value.shape[-1]) if value.ndim <= 3 else value.reshape(len(value), -1)


def _spread(matrix: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Return the root of the mean square along an axis; 1 where that is next to nothing."""
    root = np.sqrt(np.square(matrix).mean(axis=axis, keepdims=True))
    return np.where(root < _LEAST_SCALE, 1, root).astype(np.float32)


def _fitted_rows(
    matrix: NDArray[np.float32], decoded: NDArray[np.float32], rows: NDArray[np.float16]
) -> NDArray[np.float16]:
    """Return the row scales [R, 1] that bring what is decoded nearest to the matrix (least squares)."""
    squares = np.square(decoded).sum(axis=1, keepdims=True)
    fitted = (matrix * decoded).sum(axis=1, keepdims=True) / np.where(squares > 0, squares, 1)
    return np.where(squares > 0, fitted, rows).astype(np.float16)
