"""int4 against numpy: what the engine answers is what the stored integers, dequantized here, give in float32."""

from pathlib import Path

import numpy as np
import onnx
import pyarrow
import pyarrow.parquet
import pytest
from compression_graphs import (
    FLOATS,
    SMALL_BERT,
    SMALL_LSTM,
    answer,
    graph_of,
    numbers,
    operators_when_loaded,
    served,
    small_package,
)
from onnx import helper, numpy_helper

from maas_compression.materials import Materials
from maas_compression.recipe import Codebook, Int4, Int8
from maas_compression.techniques.codebook import apply_codebook
from maas_compression.techniques.feedback import input_moments
from maas_compression.techniques.graph_weights import graph_weights
from maas_compression.techniques.graphs import GraphUnusable, float_graph
from maas_compression.techniques.int4 import apply_int4, fitting_group, int4_graph, quantize_groups
from maas_compression.techniques.int8 import apply_int8
from maas_jobs.labelled_rows import open_labelled_split
from maas_package.package import Package, read_package


def nearest(matrix: FLOATS, group: int, *, symmetric: bool) -> FLOATS:
    """[R, K] as quantize_groups says it is, dequantized."""
    groups = quantize_groups(matrix, group, symmetric=symmetric)
    steps = groups.integers.astype(np.float32) - groups.zeros[:, :, np.newaxis]
    return (steps * groups.scales[:, :, np.newaxis]).reshape(len(matrix), -1)[:, : matrix.shape[1]]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [16, 32, 128])
@pytest.mark.parametrize("inputs", [48, 100, 384])
def test_a_matrix_is_multiplied_by_its_dequantized_integers(inputs: int, group: int, symmetric: bool) -> None:
    weight, x = numbers(inputs, 24), numbers(5, inputs, seed=1)
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight})
    made = int4_graph(model, Int4(group_size=group, symmetric=symmetric))
    assert [node.op_type for node in made.graph.node] == ["MatMulNBits"]
    expected = x @ nearest(weight.T, fitting_group(inputs, group), symmetric=symmetric).T
    # The kernel rounds x to 8 bits a group: 1/127 of its largest number, added up over the inputs.
    np.testing.assert_allclose(answer(made, x), expected, atol=0.04 * np.sqrt(inputs) / 2)


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_keeps_its_bias(transposed: int) -> None:
    weight, bias, x = numbers(64, 32), numbers(32, seed=2) * 100, numbers(3, 64, seed=1)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=transposed)
    model = graph_of([node], {"w": np.ascontiguousarray(weight.T) if transposed else weight, "b": bias})
    made = int4_graph(model, Int4(group_size=32))
    expected = x @ nearest(weight.T, 32, symmetric=True).T + bias
    np.testing.assert_allclose(answer(made, x), expected, atol=0.3)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [32, 100, 384])
def test_a_lookup_gives_the_dequantized_rows(columns: int, symmetric: bool) -> None:
    table = numbers(50, columns)
    model = graph_of([helper.make_node("Gather", ["table", "ids"], ["y"])], {"table": table})
    made = int4_graph(model, Int4(group_size=64, symmetric=symmetric))
    assert [node.op_type for node in made.graph.node] == ["GatherBlockQuantized"]
    ids = np.array([[3, 49, 0], [7, 7, 1]], np.int64)
    expected = nearest(table, fitting_group(columns, 64, is_padded=False), symmetric=symmetric)[ids]
    np.testing.assert_allclose(answer(made, ids), expected, rtol=1e-6, atol=1e-7)


def test_a_fitted_range_is_nearer_than_the_largest_weight_alone() -> None:
    matrix = numbers(40, 256)
    scales = np.abs(matrix.reshape(40, -1, 64)).max(axis=2, keepdims=True) / 7
    plain = (np.rint(matrix.reshape(40, -1, 64) / scales) * scales).reshape(matrix.shape)
    fitted = nearest(matrix, 64, symmetric=True)
    assert np.square(fitted - matrix).sum() < 0.9 * np.square(plain - matrix).sum()


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_group_of_nothing_but_zeros_stays_zero(symmetric: bool) -> None:
    matrix = numbers(4, 64)
    matrix[1] = 0
    assert not nearest(matrix, 32, symmetric=symmetric)[1].any()


def dequantized(model: onnx.ModelProto, group: int) -> onnx.ModelProto:
    """The float graph of the weights as 4 bits have them."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    weights = {weight.name: weight for weight in graph_weights(model)}
    for tensor in rounded.graph.initializer:
        if tensor.name in weights:
            matrix = weights[tensor.name].value
            by_column = weights[tensor.name].fan_in_axes == (0,)
            made = nearest(matrix.T if by_column else matrix, group, symmetric=True)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(made.T if by_column else made), tensor.name))
    return rounded


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return served(small_package(tmp_path_factory.mktemp("bert") / "package", "bert-text-classifier", SMALL_BERT))


@pytest.fixture(scope="module")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return small_package(tmp_path_factory.mktemp("lstm") / "package", "lstm-text-classifier", SMALL_LSTM)


def test_a_transformer_runs_on_the_engine_s_own_4_bit_operators(bert: onnx.ModelProto, tmp_path: Path) -> None:
    made = int4_graph(bert, Int4(group_size=32))
    operators = operators_when_loaded(made, tmp_path)
    # Four matrices a layer, of which the last layer has one in two parts, and the pooler; the output is too small.
    assert operators.count("MatMulNBits") == 4 + 5 + 1
    assert operators.count("GatherBlockQuantized") == 2, "words and positions"
    tokens = np.array([[2, 3, 4, 150], [5, 4, 0, 0]], np.int64)
    expected = answer(dequantized(bert, group=32), tokens)
    assert np.abs(answer(made, tokens) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(("part", "others"), [("matrices", "GatherBlockQuantized"), ("embeddings", "MatMulNBits")])
def test_only_the_part_that_is_asked_for_changes(bert: onnx.ModelProto, part: str, others: str) -> None:
    made = int4_graph(bert, Int4(parts=part))
    assert others not in {node.op_type for node in made.graph.node}


def test_layers_that_are_kept_stay_float(bert: onnx.ModelProto) -> None:
    made = int4_graph(bert, Int4(keep=("encoder.layers.1.*", "encoder.word.weight")))
    operators = [node.op_type for node in made.graph.node]
    assert operators.count("MatMulNBits") == 4 + 1
    assert operators.count("GatherBlockQuantized") == 1, "the positions"


def test_an_lstm_s_weights_are_decoded_while_the_file_is_loaded(lstm: Package, tmp_path: Path) -> None:
    made = apply_int4(lstm, Int4(group_size=16), tmp_path / "out", Materials(tmp_path))
    assert read_package(tmp_path / "out") == made
    before, after = (operators_when_loaded(served(package), tmp_path) for package in (lstm, made))
    assert after == ["GatherBlockQuantized" if operator == "Gather" else operator for operator in before]
    sizes = [package.servable_bytes(package.manifest.servables[0]) for package in (lstm, made)]
    assert sizes[1] < 0.5 * sizes[0]


def test_what_is_packed_is_not_packed_again(lstm: Package, tmp_path: Path) -> None:
    made = apply_int4(lstm, Int4(), tmp_path / "first", Materials(tmp_path))
    with pytest.raises(GraphUnusable, match="no float weights left"):
        apply_codebook(made, Codebook(), tmp_path / "second", Materials(tmp_path))
    assert {node.op_type for node in float_graph(made).graph.node} >= {"BitShift", "GatherBlockQuantized"}


def test_codebooks_of_the_matrices_can_follow_4_bits_of_the_embeddings(lstm: Package, tmp_path: Path) -> None:
    first = apply_int4(lstm, Int4(parts="embeddings"), tmp_path / "first", Materials(tmp_path))
    made = apply_codebook(first, Codebook(parts="matrices"), tmp_path / "second", Materials(tmp_path))
    assert made.servable_bytes(made.manifest.servables[0]) < first.servable_bytes(first.manifest.servables[0])


def test_int8_of_the_matrices_can_follow_4_bits_of_the_embeddings(lstm: Package, tmp_path: Path) -> None:
    first = apply_int4(lstm, Int4(parts="embeddings"), tmp_path / "first", Materials(tmp_path))
    made = apply_int8(first, Int8(), tmp_path / "second", Materials(tmp_path))
    operators = {node.op_type for node in onnx.load(str(made.path(made.manifest.servables[0].path))).graph.node}
    assert {"GatherBlockQuantized", "DynamicQuantizeLSTM", "MatMulInteger"} <= operators


def correlated(rows: int, inputs: int) -> FLOATS:
    """Inputs as a layer gets them: a few directions hold most of what there is."""
    return numbers(rows, inputs, seed=5) * 0.1 + numbers(rows, 6, seed=6) @ numbers(6, inputs, seed=7)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_outputs_on_the_data_change_less_with_feedback(operator: str, symmetric: bool) -> None:
    weight, seen, new = numbers(96, 40), correlated(400, 96), correlated(800, 96)[400:]
    model = graph_of([helper.make_node(operator, ["x", "w"], ["y"])], {"w": weight})
    technique = Int4(group_size=32, symmetric=symmetric)
    moments = {"w": seen.T.astype(np.float64) @ seen}
    plain, fed_back = (int4_graph(model, technique, given) for given in ({}, moments))
    assert plain.ByteSize() == fed_back.ByteSize()
    errors = [np.square(answer(made, new) - new @ weight).mean() for made in (plain, fed_back)]
    assert errors[1] < 0.5 * errors[0]


def test_moments_are_those_of_the_training_texts(lstm: Package, tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["w1 w2", "w3"], "label": [0, 1]}), path)
    model = served(lstm)
    texts = Materials(tmp_path, train=open_labelled_split(path))
    assert not input_moments(lstm, model, texts), "its only matrix outside the LSTM is too small"
    for tensor in model.graph.initializer:
        if tensor.name == "output_weight":  # large enough to be changed
            tensor.CopyFrom(numpy_helper.from_array(numbers(64, 16), "output_weight"))
        if tensor.name == "output_bias":
            tensor.CopyFrom(numpy_helper.from_array(numbers(64), "output_bias"))
    moments = input_moments(lstm, model, texts)
    assert moments["output_weight"].shape == (16, 16)
    assert np.linalg.matrix_rank(moments["output_weight"], tol=1e-5) == 2, "the sum of two texts' states"
    assert not input_moments(lstm, model, Materials(tmp_path))
