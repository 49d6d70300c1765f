"""The hand-written graph beside the module that it is written from; tests of quantizing it are elsewhere."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from maas_package.architectures import load_architecture
from maas_package.trainable import export_onnx

SIZES = {"vocabulary_size": 40, "hidden_size": 16, "layers": 2, "heads": 4, "inner_size": 24, "positions": 12}
BATCH = np.array([[2, 3, 4, 5, 9], [5, 4, 0, 0, 0], [3, 0, 0, 0, 0], [7, 7, 7, 0, 0]])


def exported(name: str, folder: Path, **changes: object) -> tuple[torch.nn.Module, Callable[[np.ndarray], np.ndarray]]:
    architecture = load_architecture(name)
    config = architecture.parse_config(SIZES | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        module = architecture.build(config).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    path = folder / "model.onnx"
    assert export_onnx(module, architecture, config, path) < 1e-4
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return module, lambda tokens: np.asarray(session.run(None, {"input_ids": tokens})[0])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bert-text-classifier", {}),
        ("bert-text-classifier", {"pooling": "mean", "activation": "gelu_tanh"}),
        ("bert-text-classifier", {"heads": [2, 0], "inner_size": [0, 8], "head_size": 4, "activation": "relu"}),
        ("bert-text-classifier", {"heads": [1, 3], "head_size": 4, "pooler": "relu"}),
        ("bert-sentence-encoder", {}),
        ("bert-sentence-encoder", {"pooling": "first", "normalized": False}),
    ],
)
def test_the_graph_answers_as_the_module(name: str, changes: dict[str, object], tmp_path: Path) -> None:
    module, run = exported(name, tmp_path, **changes)
    with torch.inference_mode():
        expected = module(torch.from_numpy(BATCH)).numpy()
    np.testing.assert_allclose(run(BATCH), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_a_text_is_answered_alike_alone_and_beside_longer_ones(pooling: str, tmp_path: Path) -> None:
    _, run = exported("bert-text-classifier", tmp_path, pooling=pooling)
    together = run(BATCH)
    for row, answer in zip(BATCH, together, strict=True):
        np.testing.assert_allclose(run(row[row != 0][None])[0], answer, atol=1e-5)


def test_a_text_without_words_changes_no_other_text_and_is_changed_by_none(tmp_path: Path) -> None:
    _, run = exported("bert-text-classifier", tmp_path)
    with_empty = run(np.concatenate([BATCH, np.zeros((1, 5), np.int64)]))
    np.testing.assert_allclose(with_empty[:-1], run(BATCH), atol=1e-5)
    np.testing.assert_allclose(with_empty[-1], run(np.zeros((1, 2), np.int64))[0], atol=1e-5)
    assert np.isfinite(with_empty).all()
