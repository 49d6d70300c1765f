from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow
import pyarrow.parquet
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from maas_compression.materials import Materials, TrainingDataMissing
from maas_compression.recipe import Prune
from maas_compression.techniques import apply_technique
from maas_compression.techniques.prune import PruneNotApplicable
from maas_compression.techniques.prune_masks import module_matrices
from maas_jobs.labelled_rows import LabelledSplit, open_labelled_split
from maas_package.architectures import load_architecture
from maas_package.package import Package, read_package
from maas_package.text import build_word_tokenizer
from maas_package.trainable import TrainableFormMissing, load_module, package_trained_model

WORDS = [f"w{number}" for number in range(58)]
LSTM_SIZES = {"vocabulary_size": 60, "embedding_size": 12, "hidden_size": 32}
BERT_SIZES = {"vocabulary_size": 60, "hidden_size": 32, "layers": 3, "heads": 4, "inner_size": 64, "positions": 64}


def made(folder: Path, architecture_name: str, sizes: dict[str, Any]) -> Package:
    architecture = load_architecture(architecture_name)
    config = architecture.parse_config(sizes)
    torch.manual_seed(3)
    module = architecture.build(config).eval()
    if architecture_name != "lstm-text-classifier":
        with torch.no_grad():  # as far from nothing as trained weights are
            for name, parameter in module.named_parameters():
                if "norm" not in name:
                    parameter.mul_(4)
    is_encoder = architecture_name == "bert-sentence-encoder"
    return package_trained_model(
        folder,
        architecture=architecture,
        config=config,
        module=module,
        tokenizer=build_word_tokenizer([" ".join(WORDS)], vocabulary_size=60),
        labels=() if is_encoder else ("negative", "positive"),
        **({"task": "tensors"} if is_encoder else {}),
    )


@pytest.fixture(scope="module")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return made(tmp_path_factory.mktemp("packages") / "lstm", "lstm-text-classifier", LSTM_SIZES)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return made(tmp_path_factory.mktemp("packages") / "transformer", "bert-text-classifier", BERT_SIZES)


def split(folder: Path, name: str, rows: int) -> LabelledSplit:
    generator = np.random.default_rng(rows)
    texts = [" ".join(generator.choice(WORDS, generator.integers(3, 20))) for _ in range(rows)]
    table = pyarrow.table({"text": texts, "label": [int("w1" in text.split()) for text in texts]})
    pyarrow.parquet.write_table(table, folder / f"{name}.parquet")
    return open_labelled_split(folder / f"{name}.parquet")


@pytest.fixture
def materials(tmp_path: Path) -> Materials:
    (tmp_path / "scratch").mkdir()
    return Materials(
        tmp_path / "scratch", train=split(tmp_path, "train", 200), validation=split(tmp_path, "validation", 60)
    )


def pruned(source: Package, technique: Prune, materials: Materials, name: str = "out") -> Package:
    return apply_technique(source, technique, materials.scratch.parent / name, materials)


def tokens(rows: int = 16) -> Tensor:
    return load_architecture("lstm-text-classifier").example_inputs(LSTM_SIZES, rows, 5)["tokens"]


def answers(module: nn.Module) -> Tensor:
    with torch.inference_mode():
        answered: Tensor = module(tokens())
    return answered


def config_of(package: Package) -> dict[str, Any]:
    assert package.manifest.architecture is not None
    return dict(package.manifest.architecture.config)


@pytest.mark.parametrize(
    ("structure", "share", "setting", "expected"),
    [("heads", 0.5, "heads", 6), ("channels", 0.5, "inner_size", 128), ("layers", 0.34, "layers", 2)],
)
def test_parts_of_a_transformer_leave_it_and_the_files_shrink(
    transformer: Package, materials: Materials, structure: str, share: float, setting: str, expected: int
) -> None:
    package = pruned(transformer, Prune(structure, share), materials)
    value = config_of(package)[setting]
    assert (sum(value) if isinstance(value, list) else value) == expected
    before, after = (one.servable_bytes(one.manifest.servables[0]) for one in (transformer, package))
    assert after < 0.95 * before
    assert read_package(package.folder) == package
    weights = sum(tensor.numel() for tensor in load_module(package).state_dict().values())
    assert weights < 0.95 * sum(tensor.numel() for tensor in load_module(transformer).state_dict().values())


def test_units_of_an_lstm_leave_it_and_the_files_shrink(lstm: Package, materials: Materials) -> None:
    package = pruned(lstm, Prune("hidden_units", 0.5), materials)
    assert config_of(package)["hidden_size"] == 16
    graph = onnx.load(str(package.path(package.manifest.servables[0].path))).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    assert shapes["lstm_recurrent"] == [1, 64, 16]
    assert shapes["output_weight"] == [2, 16]
    before, after = (one.servable_bytes(one.manifest.servables[0]) for one in (lstm, package))
    assert after < 0.6 * before


def test_an_encoder_without_labels_is_pruned_too(tmp_path: Path, materials: Materials) -> None:
    encoder = made(tmp_path / "encoder", "bert-sentence-encoder", BERT_SIZES)
    unlabelled = replace(materials, train=None, unlabelled=materials.train)
    package = pruned(encoder, Prune("channels", 0.25), unlabelled)
    assert sum(config_of(package)["inner_size"]) == 144
    cosine = nn.functional.cosine_similarity(answers(load_module(encoder)), answers(load_module(package)))
    assert cosine.mean() > 0.95


def test_what_was_pruned_can_be_pruned_again(transformer: Package, materials: Materials) -> None:
    package = transformer
    for number, (structure, share) in enumerate([("heads", 0.5), ("channels", 0.75), ("layers", 0.34), ("heads", 0.5)]):
        package = pruned(package, Prune(structure, share), materials, f"out{number}")
    assert len(config_of(package)["heads"]) == 2


def test_training_afterwards_brings_back_what_was_lost(lstm: Package, materials: Materials) -> None:
    lines: list[str] = []
    package = pruned(lstm, Prune("hidden_units", 0.75, recovery_epochs=2), replace(materials, log=lines.append))
    assert config_of(package)["hidden_size"] == 8
    assert any("recovery epoch 2" in line for line in lines)


def test_masked_weights_stay_zero_while_training(lstm: Package, materials: Materials) -> None:
    module = load_module(pruned(lstm, Prune("weights", 0.75, recovery_epochs=1), materials))
    matrices = [parameter.detach() for parameter in module_matrices(module).values()]
    zeros = sum(int((matrix == 0).sum()) for matrix in matrices)
    assert zeros == round(0.75 * sum(matrix.numel() for matrix in matrices))
    assert (module.state_dict()["embedding.weight"][1:] != 0).all()


def test_two_of_four_holds_in_every_group_of_an_output(transformer: Package, materials: Materials) -> None:
    package = pruned(transformer, Prune("two_of_four"), materials)
    for name, matrix in module_matrices(load_module(package)).items():
        if matrix.shape[1] % 4 == 0:
            groups = (matrix.detach() != 0).reshape(matrix.shape[0], -1, 4).sum(dim=2)
            assert (groups == 2).all(), name
    # The larger two stay.
    before = load_module(transformer).state_dict()["pooler.weight"].reshape(32, 8, 4)
    after = load_module(package).state_dict()["pooler.weight"].reshape(32, 8, 4)
    torch.testing.assert_close(after.abs().sum(-1), before.abs().topk(2, dim=-1).values.sum(-1))


def bare(package: Package) -> Package:
    """The package with its served graph only, as an imported one has it."""
    manifest = replace(package.manifest, architecture=None, weights=None)
    return replace(package, manifest=manifest)


@pytest.mark.parametrize("which", ["lstm", "transformer"])
def test_a_bare_graph_takes_masks(lstm: Package, transformer: Package, materials: Materials, which: str) -> None:
    source = bare({"lstm": lstm, "transformer": transformer}[which])
    package = pruned(source, Prune("two_of_four"), materials)
    graph = onnx.load(str(package.path(package.manifest.servables[0].path))).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers = {name: node for node in graph.node for name in node.input if name in weights}
    checked = 0
    for name, node in readers.items():
        matrix = weights[name]
        if node.op_type in ("MatMul", "Gemm", "LSTM") and matrix.ndim >= 2 and name != "lstm_bias":
            transposed = any(one.name == "transB" and one.i for one in node.attribute)
            rows = matrix if node.op_type == "LSTM" or transposed else matrix.T
            assert (np.count_nonzero(rows.reshape(*rows.shape[:-1], -1, 4), axis=-1) <= 2).all(), name
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize(
    ("which", "structure", "share"),
    [
        ("lstm", "heads", 0.5),
        ("lstm", "channels", 0.5),
        ("lstm", "layers", 0.5),
        ("transformer", "hidden_units", 0.5),
        ("transformer", "layers", 0.05),
        ("transformer", "heads", 0.01),
        ("lstm", "hidden_units", 0.01),
    ],
)
def test_a_structure_that_a_network_lacks_is_refused(
    lstm: Package, transformer: Package, materials: Materials, which: str, structure: str, share: float
) -> None:
    with pytest.raises(PruneNotApplicable):
        pruned({"lstm": lstm, "transformer": transformer}[which], Prune(structure, share), materials)


def test_a_bare_graph_has_no_parts_that_could_leave_it(lstm: Package, materials: Materials) -> None:
    for technique in (Prune("hidden_units", 0.5), Prune("weights", 0.5, recovery_epochs=1)):
        with pytest.raises(TrainableFormMissing):
            pruned(bare(lstm), technique, materials)


def test_parts_are_not_chosen_without_data(lstm: Package, materials: Materials) -> None:
    with pytest.raises(TrainingDataMissing):
        pruned(lstm, Prune("hidden_units", 0.5), replace(materials, train=None))
    with pytest.raises(TrainingDataMissing):
        pruned(lstm, Prune("weights", 0.5, recovery_epochs=1), replace(materials, validation=None))


def test_the_same_parts_go_each_time(transformer: Package, materials: Materials) -> None:
    one, other = (pruned(transformer, Prune("heads", 0.5), materials, name) for name in ("one", "other"))
    assert one.manifest == other.manifest
