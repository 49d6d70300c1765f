"""codebook against numpy: k-means by brute force, and what the engine answers from the decoded weights."""

from pathlib import Path

import numpy as np
import pytest
from compression_graphs import (
    FLOATS,
    SMALL_LSTM,
    answer,
    graph_of,
    numbers,
    operators_when_loaded,
    served,
    small_package,
)
from onnx import helper

from maas_compression.materials import Materials
from maas_compression.recipe import Codebook
from maas_compression.techniques.codebook import apply_codebook, codebook_graph, fit_codebook, lloyd, nearest_level
from maas_compression.techniques.packed import PackedWeight, pack_bits, store_packed
from maas_package.package import read_package


def decoded(matrix: FLOATS, bits: int) -> FLOATS:
    book = fit_codebook(matrix, bits)
    result: FLOATS = (
        book.levels[book.indices] * book.row_scales.astype(np.float32) * book.column_scales.astype(np.float32)
    )
    return result


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_engine_decodes_what_was_packed(tmp_path: Path, bits: int) -> None:
    generator = np.random.default_rng(bits)
    # 37 * 33 is odd: the last byte is not full.
    indices = generator.integers(0, 2**bits, (37, 33)).astype(np.uint8)
    levels, rows = numbers(2**bits), numbers(37, 1, seed=1).astype(np.float16)
    groups = numbers(37, 3, 1, seed=2)
    weight = PackedWeight("w", (37, 33), bits, indices, levels, (rows, groups))
    expected = ((levels[indices] * rows.astype(np.float32)).reshape(37, 3, 11) * groups).reshape(37, 33)
    model = graph_of([helper.make_node("Gather", ["w", "ids"], ["y"])], {"w": numbers(37, 33)})
    store_packed(model, [weight])
    ids = np.array([[0, 36, 5]], np.int64)
    np.testing.assert_array_equal(answer(model, ids), expected[ids])
    np.testing.assert_array_equal(weight.decoded(), expected)
    assert operators_when_loaded(model, tmp_path) == ["Gather"]


def test_bits_are_packed_with_the_first_in_the_lowest() -> None:
    np.testing.assert_array_equal(pack_bits(np.array([1, 2, 3, 0, 2], np.uint8), 2), [0b00111001, 0b10])
    np.testing.assert_array_equal(pack_bits(np.array([[15, 1]], np.uint8), 4), [[0x1F]])


def test_levels_are_a_least_that_no_step_of_k_means_improves() -> None:
    values = np.concatenate([numbers(400), numbers(200, seed=1) * 0.1 + 4])
    weights = np.abs(numbers(600, seed=2))
    levels = lloyd(values, weights, 8)
    nearest = np.abs(values[:, np.newaxis] - levels).argmin(axis=1)
    means = [np.average(values[nearest == level], weights=weights[nearest == level]) for level in range(8)]
    np.testing.assert_allclose(levels, means, atol=1e-4)
    np.testing.assert_array_equal(nearest_level(values, levels), nearest)


def test_clusters_that_are_clear_are_found() -> None:
    centres = np.array([-3.0, -1.0, 0.5, 4.0], np.float32)
    values = np.repeat(centres, [10, 40, 30, 20]) + numbers(100) * 0.01
    np.testing.assert_allclose(lloyd(values, np.ones(100, np.float32), 4), centres, atol=0.02)


@pytest.mark.parametrize(("bits", "best"), [(2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_normal_weights_lose_what_max_calculated(bits: int, best: float) -> None:
    """The least mean squared error of 4, 8 and 16 levels for a normal distribution: Max, 1960, table I."""
    matrix = numbers(400, 300)
    error = np.square(decoded(matrix, bits) - matrix).sum() / np.square(matrix).sum()
    assert error == pytest.approx(best, rel=0.05)


def test_rows_and_columns_of_other_sizes_cost_nothing() -> None:
    matrix = numbers(200, 100)
    wide = matrix * np.geomspace(0.01, 10, 200, dtype=np.float32)[:, np.newaxis] * np.geomspace(1, 50, 100)
    wide = wide.astype(np.float32)
    errors = [np.square(decoded(one, 3) - one).sum() / np.square(one).sum() for one in (matrix, wide)]
    assert errors[1] < 1.3 * errors[0]


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_a_row_of_zeros_stays_zero_whatever_the_size_of_the_others(size: float) -> None:
    matrix = (numbers(20, 64) * size).astype(np.float32)
    matrix[3] = 0
    made = decoded(matrix, 4)
    assert not made[3].any()
    assert np.square((made - matrix) / size).mean() < 0.015


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert not decoded(np.zeros((32, 32), np.float32), 4).any()


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_the_engine_multiplies_by_the_decoded_matrix(tmp_path: Path, bits: int) -> None:
    weight, x = numbers(64, 48), numbers(5, 64, seed=1)
    made = codebook_graph(graph_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}), Codebook(bits))
    np.testing.assert_allclose(answer(made, x), x @ decoded(weight, bits), rtol=1e-5, atol=1e-5)
    assert operators_when_loaded(made, tmp_path) == ["MatMul"]


def test_a_package_runs_the_operators_that_it_ran_before(tmp_path: Path) -> None:
    source = small_package(tmp_path / "source", "lstm-text-classifier", SMALL_LSTM)
    made = apply_codebook(source, Codebook(bits=4), tmp_path / "out", Materials(tmp_path))
    assert read_package(tmp_path / "out") == made
    assert made.manifest.servables[0].precision == "codebook4"
    before, after = (operators_when_loaded(served(package), tmp_path) for package in (source, made))
    assert after == before


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_outputs_on_the_data_change_less_with_feedback(operator: str) -> None:
    inputs = numbers(800, 96, seed=5) * 0.1 + numbers(800, 6, seed=6) @ numbers(6, 96, seed=7)
    weight, seen, new = numbers(96, 40), inputs[:400], inputs[400:]
    constant = weight if operator == "MatMul" else np.ascontiguousarray(weight.T)
    attributes = {} if operator == "MatMul" else {"transB": 1}
    model = graph_of([helper.make_node(operator, ["x", "w"], ["y"], **attributes)], {"w": constant})
    moments = {"w": seen.T.astype(np.float64) @ seen}
    plain, fed_back = (codebook_graph(model, Codebook(3), given) for given in ({}, moments))
    assert plain.ByteSize() == fed_back.ByteSize()
    errors = [np.square(answer(made, new) - new @ weight).mean() for made in (plain, fed_back)]
    assert errors[1] < 0.5 * errors[0]
