"""int4 against numpy: what the engine answers is what the stored integers, dequantized here, give in float32."""

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from maas_compression.recipe import Int4
from maas_compression.techniques.int4 import fitting_group, int4_graph, quantize_groups

FLOATS = NDArray[np.float32]


def graph_of(nodes: list[onnx.NodeProto], constants: dict[str, FLOATS], opset: int = 17) -> onnx.ModelProto:
    """One input `x` (`ids` for a lookup), one output `y`."""
    is_lookup = any("ids" in node.input for node in nodes)
    given = ("ids", TensorProto.INT64) if is_lookup else ("x", TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*given, ["rows", "columns"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c"] if is_lookup else ["a", "b"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def answer(model: onnx.ModelProto, given: NDArray[np.generic]) -> FLOATS:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: FLOATS = session.run(None, {session.get_inputs()[0].name: given})[0]
    return result


def numbers(*shape: int, seed: int = 0) -> FLOATS:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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
