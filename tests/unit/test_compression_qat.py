"""qat: rounding against numpy, gradients that pass it, and weights that int8 stores as they are."""

from pathlib import Path

import numpy as np
import onnx
import pyarrow
import pyarrow.parquet
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from maas_compression.materials import Materials, TrainingDataMissing
from maas_compression.recipe import Int8, Qat
from maas_compression.techniques.int8 import apply_int8
from maas_compression.techniques.qat import (
    MATRIX_LEVELS,
    RoundedModule,
    apply_qat,
    round_as_a_whole,
    round_by_output,
)
from maas_jobs.labelled_rows import open_labelled_split
from maas_package.architectures import load_architecture
from maas_package.package import Package
from maas_package.text import build_word_tokenizer
from maas_package.trainable import load_module, package_trained_model

TEXTS = [f"{first} {second} film" for first in ("a", "the", "one") for second in ("great", "dull", "fine", "awful")]
LABELS = [int("great" in text or "fine" in text) for text in TEXTS]
SIZES = {
    "bert-text-classifier": {"hidden_size": 16, "layers": 2, "heads": 2, "inner_size": 24},
    "lstm-text-classifier": {"hidden_size": 8, "embedding_size": 6},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(3)


def made(folder: Path, name: str) -> Package:
    tokenizer = build_word_tokenizer(TEXTS, 40)
    architecture = load_architecture(name)
    config = architecture.parse_config({"vocabulary_size": tokenizer.vocabulary_size, **SIZES[name]})
    return package_trained_model(
        folder,
        architecture=architecture,
        config=config,
        module=architecture.build(config),
        tokenizer=tokenizer,
        labels=("bad", "good"),
    )


def materials(folder: Path) -> Materials:
    (folder / "scratch").mkdir()
    path = folder / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(TEXTS, pyarrow.string()), "label": LABELS}), path)
    split = open_labelled_split(path)
    return Materials(folder / "scratch", train=split, validation=split)


def test_a_matrix_is_rounded_with_a_scale_for_each_output() -> None:
    weights = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)
    scales = np.abs(weights).max(axis=1, keepdims=True) / MATRIX_LEVELS
    rounded = round_by_output(torch.from_numpy(weights))
    np.testing.assert_allclose(rounded.numpy(), np.rint(weights / scales) * scales, atol=1e-6)
    torch.testing.assert_close(round_by_output(rounded), rounded)
    assert not round_by_output(torch.zeros(2, 3)).any()


def test_embeddings_and_activations_are_rounded_to_256_numbers_with_zero_among_them() -> None:
    values = np.random.default_rng(2).normal(loc=1.0, size=(40, 3)).astype(np.float32)
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    expected = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
    rounded = round_as_a_whole(torch.from_numpy(values))
    np.testing.assert_allclose(rounded.numpy(), expected, atol=1e-5)
    torch.testing.assert_close(round_as_a_whole(rounded), rounded)
    assert round_as_a_whole(torch.tensor([0.0, 3.0]))[0] == 0


@pytest.mark.parametrize("name", SIZES)
def test_gradients_pass_the_rounding_to_every_weight(name: str) -> None:
    architecture = load_architecture(name)
    config = architecture.parse_config({"vocabulary_size": 20, "dropout": 0.0, **SIZES[name]})
    module = architecture.build(config)
    tokens = torch.tensor([[2, 3, 4], [5, 6, 0]])
    plain = module(tokens)
    rounded = RoundedModule(module)
    answer = rounded(tokens)
    assert not torch.equal(answer, plain)
    torch.testing.assert_close(answer, plain, atol=0.05, rtol=0.1)
    answer.sum().backward()
    gradients = {key: parameter.grad for key, parameter in module.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert any(gradient is not None and gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("name", SIZES)
def test_int8_after_qat_stores_the_weights_as_they_are(tmp_path: Path, name: str) -> None:
    source = made(tmp_path / "source", name)
    given = materials(tmp_path)
    result = apply_qat(source, Qat(epochs=2, learning_rate=1e-3), tmp_path / "qat", given)
    weights = load_module(result).state_dict()
    before = load_module(source).state_dict()
    assert not torch.equal(weights["output.bias"], before["output.bias"])
    quantized = apply_int8(result, Int8(), tmp_path / "int8", given)
    graph = onnx.load(str(quantized.path(quantized.manifest.servables[0].path))).graph
    stored = stored_weights(graph)
    assert len(stored) >= 4
    wholes = [tensor for tensor in weights.values() if tensor.ndim == 2]
    # The graph has the query of the last layer apart from the rest.
    parts = [part for tensor in wholes for part in (tensor[: len(tensor) // 3], tensor[len(tensor) // 3 :])]
    matrices = [tensor.numpy().ravel() for tensor in wholes + parts]
    for values in stored:
        nearest = min(
            np.abs(np.sort(values) - np.sort(matrix)).max() for matrix in matrices if len(matrix) == len(values)
        )
        assert nearest < 1e-6


def stored_weights(graph: onnx.GraphProto) -> list[NDArray[np.float32]]:
    """The weights that the file's integers stand for, each with its scale along the axis that has as many."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = []
    for name, values in tensors.items():
        if not name.endswith("_quantized"):
            continue
        scale = tensors[name.removesuffix("_quantized") + "_scale"].ravel()
        axis = next((axis for axis in reversed(range(values.ndim)) if values.shape[axis] == len(scale)), 0)
        shape = [len(scale) if one == axis else 1 for one in range(values.ndim)]
        zero = tensors[name.removesuffix("_quantized") + "_zero_point"].astype(np.float32).ravel()
        if len(scale) > 1:
            scale, zero = scale.reshape(shape), zero.reshape(shape)
        found.append(((values.astype(np.float32) - zero) * scale).ravel())
    return found


def test_without_data_there_is_nothing_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataMissing):
        apply_qat(made(tmp_path / "a", "lstm-text-classifier"), Qat(), tmp_path / "b", Materials(tmp_path))
