"""What training begins with when it goes on from a version: a classifier as it is, an encoder with a layer on top."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from maas_jobs.labelled_rows import LabelledSplit, LabelsInvalid, open_labelled_split
from maas_package.architectures import load_architecture
from maas_package.manifest import TENSORS
from maas_package.package import read_package
from maas_package.text import build_word_tokenizer
from maas_package.trainable import load_module, package_trained_model
from maas_training.beginning import begin_with
from maas_training.spec import Hyperparameters

WAYS = Hyperparameters(dropout=0.3)


def split(folder: Path, labels: list[int]) -> LabelledSplit:
    path = folder / "train.parquet"
    texts = pyarrow.array([f"a film of {label}" for label in labels], pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), path)
    return open_labelled_split(path)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("encoder") / "package"
    tokenizer = build_word_tokenizer(["a film of great and moving scenes"], 20)
    architecture = load_architecture("bert-sentence-encoder")
    config = architecture.parse_config(
        {"vocabulary_size": tokenizer.vocabulary_size, "hidden_size": 8, "layers": 2, "heads": 2, "inner_size": 16}
    )
    package_trained_model(
        folder,
        architecture=architecture,
        config=config,
        module=architecture.build(config),
        tokenizer=tokenizer,
        labels=(),
        task=TENSORS,
    )
    return folder


def test_an_encoder_becomes_a_classifier_with_its_weights_words_and_pooling(tmp_path: Path, encoder: Path) -> None:
    beginning = begin_with(encoder, WAYS, split(tmp_path, [0, 1, 2]))
    assert (beginning.architecture.name, beginning.labels) == ("bert-text-classifier", ("0", "1", "2"))
    source = load_module(read_package(encoder))
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, beginning.module.state_dict()[name])
    assert (beginning.config["pooling"], beginning.config["dropout"]) == ("mean", 0.3)
    tokens = torch.tensor([[2, 3, 4], [2, 5, 0]])
    vectors = []
    beginning.module.get_submodule("pooler").register_forward_pre_hook(lambda _, inputs: vectors.append(inputs[0]))
    logits = beginning.module.eval()(tokens)
    assert logits.shape == (2, 3)
    normalized = torch.nn.functional.normalize(vectors[0], dim=-1)
    torch.testing.assert_close(normalized, source(tokens))
    assert beginning.tokenizer.encode(["great scenes"]).tolist() != [[1, 1]]


def test_the_layer_on_top_is_the_same_for_the_same_seed(tmp_path: Path, encoder: Path) -> None:
    train = split(tmp_path, [0, 1])
    first, second = (begin_with(encoder, WAYS, train).module.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_classifier_goes_on_with_its_weights_and_labels(tmp_path: Path, tiny_package_folder: Path) -> None:
    beginning = begin_with(tiny_package_folder, WAYS, split(tmp_path, [0, 1]))
    assert beginning.labels == ("negative", "positive")
    source = load_module(read_package(tiny_package_folder)).state_dict()
    assert all(torch.equal(tensor, source[name]) for name, tensor in beginning.module.state_dict().items())


def test_a_class_that_the_classifier_does_not_know_is_refused(tmp_path: Path, tiny_package_folder: Path) -> None:
    with pytest.raises(LabelsInvalid, match="label 2"):
        begin_with(tiny_package_folder, WAYS, split(tmp_path, [0, 1, 2]))
