import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file

from maas_compression.materials import Materials
from maas_compression.recipe import Clip, Distill, FixedPoint, Int8, Prune, RecipeInvalid, Technique, check_recipe
from maas_compression.techniques import apply_technique as apply_with_materials
from maas_compression.techniques.graphs import GraphUnusable
from maas_engine.engine import open_engine
from maas_engine.predictor import Predictor
from maas_package.architectures import load_architecture
from maas_package.package import Package, read_package
from maas_package.text import build_word_tokenizer
from maas_package.trainable import load_module, package_trained_model


def apply_technique(source: Package, technique: Technique, folder: Path) -> Package:
    return apply_with_materials(source, technique, folder, Materials(folder.parent / "scratch"))


TOKENS = np.array([[2, 3, 4, 5], [5, 4, 0, 0], [3, 0, 0, 0]], dtype=np.int64)


@pytest.fixture
def source(tmp_path: Path) -> Package:
    architecture = load_architecture("lstm-text-classifier")
    config = architecture.parse_config(
        architecture.default_config | {"vocabulary_size": 40, "embedding_size": 12, "hidden_size": 16}
    )
    torch.manual_seed(3)
    module = architecture.build(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(4)  # some of it beyond the clipping bound
    return package_trained_model(
        tmp_path / "source",
        architecture=architecture,
        config=config,
        module=module,
        tokenizer=build_word_tokenizer([" ".join(f"w{number}" for number in range(38))], vocabulary_size=40),
        labels=("negative", "positive"),
    )


def logits(package: Package, name: str = "tokens") -> np.ndarray:
    engine = open_engine(package, package.manifest.servables[0], threads=1)
    return Predictor(package, engine).predict({name: TOKENS}).outputs["logits"]


def onnx_initializers(package: Package) -> dict[str, np.ndarray]:
    model = onnx.load(str(package.path(package.manifest.servables[0].path)))
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_clip_limits_matrices_by_their_fan_in_and_leaves_the_rest(source: Package, tmp_path: Path) -> None:
    before = load_module(source).state_dict()
    after = load_module(apply_technique(source, Clip(), tmp_path / "out")).state_dict()
    for name, fan_in in {"lstm.weight_ih_l0": 12, "lstm.weight_hh_l0": 16, "output.weight": 16}.items():
        bound = math.sqrt(6 / fan_in)
        torch.testing.assert_close(after[name], before[name].clamp(-bound, bound))
    assert before["lstm.weight_hh_l0"].abs().max() > math.sqrt(6 / 16), "the test's weights reach beyond the bound"
    for name in ("embedding.weight", "lstm.bias_ih_l0", "output.bias"):
        torch.testing.assert_close(after[name], before[name])


@pytest.mark.parametrize("bits", [1, 4, 8, 15])
def test_fixed_point_rounds_each_weight_to_its_multiple(source: Package, tmp_path: Path, bits: int) -> None:
    before = load_module(source).state_dict()
    made = apply_technique(source, FixedPoint(bits), tmp_path / "out")
    after = load_module(made).state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], torch.round(tensor * 2**bits) / 2**bits, rtol=0, atol=0)
    stored = load_file(made.path("model.safetensors"))
    assert {tensor.dtype.kind for tensor in stored.values()} == {"i"}


def test_fixed_point_takes_the_smallest_integers_that_hold_a_tensor(source: Package, tmp_path: Path) -> None:
    made = apply_technique(source, FixedPoint(8), tmp_path / "out")
    for stored in (load_file(made.path("model.safetensors")), onnx_initializers(made)):
        for name, tensor in stored.items():
            if tensor.dtype == np.int16 and name != "time_axis":
                assert np.abs(tensor).max() > 127, name
    assert onnx_initializers(made)["embedding_integers"].dtype == np.int16


def test_the_served_fixed_point_file_is_smaller_and_answers_as_the_trainable_form(
    source: Package, tmp_path: Path
) -> None:
    made = apply_technique(source, FixedPoint(8), tmp_path / "out")
    before, after = source.manifest.servables[0], made.manifest.servables[0]
    assert made.servable_bytes(after) < 0.75 * source.servable_bytes(before)
    with torch.inference_mode():
        expected = load_module(made)(torch.from_numpy(TOKENS)).numpy()
    np.testing.assert_allclose(logits(made), expected, atol=1e-5)


def test_int8_is_smaller_has_no_trainable_form_and_answers_nearly_the_same(source: Package, tmp_path: Path) -> None:
    made = apply_technique(source, Int8(), tmp_path / "out")
    operators = {node.op_type for node in onnx.load(str(made.path(made.manifest.servables[0].path))).graph.node}
    assert "DynamicQuantizeLSTM" in operators
    assert made.manifest.architecture is None
    assert made.manifest.weights is None
    assert np.abs(logits(made) - logits(source)).max() < 0.5
    with pytest.raises(GraphUnusable, match="no float weights left"):
        apply_technique(made, Clip(), tmp_path / "again")


@pytest.mark.parametrize("technique", [Clip(), FixedPoint(6), Int8()])
def test_what_a_technique_writes_is_a_whole_package(source: Package, tmp_path: Path, technique: Technique) -> None:
    made = apply_technique(source, technique, tmp_path / "out")
    assert read_package(tmp_path / "out") == made
    assert made.manifest.labels == source.manifest.labels
    engine = open_engine(made, made.manifest.servables[0], threads=1)
    prediction = Predictor(made, engine).predict({"text": np.array(["w1 w2"], dtype=np.object_)})
    assert prediction.outputs["logits"].shape == (1, 2)


def test_all_three_can_follow_one_another(source: Package, tmp_path: Path) -> None:
    made = source
    recipe: tuple[Technique, ...] = (Clip(), FixedPoint(8), Int8())
    check_recipe(recipe, has_trainable_form=True)
    for index, technique in enumerate(recipe):
        made = apply_technique(made, technique, tmp_path / str(index))
    assert made.manifest.servables[0].precision == "int8"


@pytest.mark.parametrize(
    ("recipe", "trainable", "wrong"),
    [
        ((Int8(), Clip()), True, [1]),
        ((Int8(), Int8(mode="static")), True, [1]),
        ((Distill(),), False, [0]),
        ((Prune(structure="heads"),), False, [0]),
        ((Int8(), FixedPoint(8), Clip()), True, [1, 2]),
    ],
)
def test_a_step_that_cannot_be_applied_is_named(
    recipe: tuple[Technique, ...], trainable: bool, wrong: list[int]
) -> None:
    with pytest.raises(RecipeInvalid) as caught:
        check_recipe(recipe, has_trainable_form=trainable)
    assert [one.field for one in caught.value.violations] == [f"recipe.techniques[{index}]" for index in wrong]


@pytest.fixture
def transformer(tmp_path: Path) -> Package:
    architecture = load_architecture("bert-text-classifier")
    sizes = {"vocabulary_size": 40, "hidden_size": 64, "layers": 2, "heads": 4, "inner_size": 128, "positions": 32}
    config = architecture.parse_config(sizes)
    torch.manual_seed(3)
    module = architecture.build(config).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" not in name:
                parameter.mul_(4)
    return package_trained_model(
        tmp_path / "transformer",
        architecture=architecture,
        config=config,
        module=module,
        tokenizer=build_word_tokenizer([" ".join(f"w{number}" for number in range(38))], vocabulary_size=40),
        labels=("negative", "positive"),
    )


@pytest.mark.parametrize("technique", [Clip(), FixedPoint(10), Int8()])
def test_a_transformer_answers_nearly_the_same_after_each_technique(
    transformer: Package, tmp_path: Path, technique: Technique
) -> None:
    made = apply_technique(transformer, technique, tmp_path / "out")
    before, after = (logits(package, "input_ids") for package in (transformer, made))
    assert np.abs(after - before).max() < 0.1 * np.abs(before).max()
    assert made.servable_bytes(made.manifest.servables[0]) <= transformer.servable_bytes(
        transformer.manifest.servables[0]
    )


def test_int8_has_a_scale_for_each_output_of_a_matrix(transformer: Package, tmp_path: Path) -> None:
    made = apply_technique(transformer, Int8(), tmp_path / "out")
    scales = [array.size for name, array in onnx_initializers(made).items() if name.endswith("_scale")]
    assert 3 * 64 in scales, "the matrix of queries, keys and values has 192 outputs"
