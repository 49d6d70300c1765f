"""Advice: what is found out about a model agrees with an independent calculation, and what is ranked first is best."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from maas_compression.advice.candidates import Candidate, Situation, WordUse, candidates, exclusions
from maas_compression.advice.host_facts import HostFacts, look_at_host
from maas_compression.advice.model_facts import (
    EMBEDDINGS,
    MATRICES,
    OTHER,
    PARTS,
    RECURRENT,
    ModelFacts,
    Part,
    look_at_model,
)
from maas_compression.advice.product_speed import Product, measure_product
from maas_compression.advice.ranking import Risk, rank
from maas_compression.advice.trials import Answers, Trial, compare_classes
from maas_compression.limits import Limits
from maas_compression.recipe import Bf16, Clip, Distill, Int8, Prune, Recipe, Vocabulary
from maas_compression.spec import recipe_text
from maas_engine.measure import Speed

RANDOM = np.random.default_rng(5)
MATRIX = RANDOM.standard_normal((24, 16)).astype(np.float32)


def graph(nodes: list[onnx.NodeProto], **tensors: NDArray[np.float32]) -> onnx.ModelProto:
    return helper.make_model(
        helper.make_graph(
            nodes,
            "any",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 24])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()],
        )
    )


def test_weights_are_counted_by_what_they_are_for() -> None:
    facts = look_at_model(
        graph(
            [
                helper.make_node("Gather", ["words", "x"], ["a"]),
                helper.make_node("Transpose", ["turned"], ["straight"]),
                helper.make_node("MatMul", ["a", "straight"], ["b"]),
                helper.make_node("Add", ["b", "bias"], ["c"]),
                helper.make_node("LSTM", ["c", "input", "recurrent"], ["y"], hidden_size=4),
            ],
            words=np.zeros((100, 24), np.float32),
            turned=np.ascontiguousarray(MATRIX.T),
            bias=np.zeros(16, np.float32),
            input=np.zeros((1, 16, 16), np.float32),
            recurrent=np.zeros((1, 16, 4), np.float32),
        )
    )
    assert {kind: part.parameters for kind, part in facts.parts.items() if part.parameters} == {
        EMBEDDINGS: 2400,
        MATRICES: 384,
        RECURRENT: 256 + 64,
        OTHER: 16,
    }
    assert facts.parameters == 3120
    assert facts.share(EMBEDDINGS) == pytest.approx(2400 / 3120)


def test_the_spread_of_a_matrix_agrees_with_its_definition() -> None:
    matrix = MATRIX.copy()
    matrix[3] *= 100
    spread = look_at_model(graph([helper.make_node("MatMul", ["x", "w"], ["y"])], w=matrix)).spread
    assert spread is not None
    bound = np.sqrt(6 / 24)
    assert spread.beyond_fan_in == pytest.approx(sum(abs(value) > bound for value in matrix.ravel()) / matrix.size)
    assert spread.outlier_channels == pytest.approx(1 / 24)
    assert spread.largest == pytest.approx(np.abs(matrix).max())
    rounded = np.empty_like(matrix)
    for column in range(16):
        scale = np.abs(matrix[:, column]).max() / 127
        for row in range(24):
            rounded[row, column] = np.round(matrix[row, column] / scale) * scale
    assert spread.int8_error == pytest.approx(np.linalg.norm(matrix - rounded) / np.linalg.norm(matrix), rel=1e-4)


def test_a_matrix_of_low_rank_needs_few_weights_and_a_random_one_all() -> None:
    thin = (RANDOM.standard_normal((40, 2)) @ RANDOM.standard_normal((2, 40))).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    low = look_at_model(graph([node], w=thin)).spread
    high = look_at_model(graph([node], w=np.eye(40, dtype=np.float32))).spread
    assert low is not None
    assert high is not None
    assert low.low_rank_weights <= 2 * 80 / 1600
    assert high.low_rank_weights == 1


def test_a_graph_without_matrices_has_facts_too() -> None:
    facts = look_at_model(graph([helper.make_node("Relu", ["x"], ["y"])]))
    assert (facts.parameters, facts.spread, facts.products, facts.layers) == (0, None, (), 0)
    assert facts.share(EMBEDDINGS) == 0


def test_products_are_measured_in_each_form() -> None:
    speed = measure_product(Product(16, 8, 1), 4, threads=1, with_bf16=True)
    assert min(speed.float_seconds, speed.int8_seconds, speed.bf16_seconds or 0) > 0
    assert measure_product(Product(16, 8, 1), 4, threads=1, with_bf16=False).bf16_gain is None


def test_this_host_has_a_processor() -> None:
    host = look_at_host()
    assert host.cores >= 1
    assert host.hardware


HOST = HostFacts("a processor", 2, ("AVX2",), multiplies_integers=False, multiplies_bf16=False)
MODEL = ModelFacts(
    parts={kind: Part(1, 500 if kind in (EMBEDDINGS, MATRICES) else 0) for kind in PARTS},
    products=(),
    spread=None,
    layers=6,
)
SITUATION = Situation(
    model=MODEL,
    host=HOST,
    architecture="bert-text-classifier",
    classifies=True,
    words=WordUse(1000, 400, 50),
    has_training_data=True,
    allow_training=True,
)


def recipes(situation: Situation) -> list[str]:
    return [" + ".join(recipe_text(candidate.recipe)) for candidate in candidates(situation)]


def test_int8_is_tried_first_and_words_that_nobody_uses_are_dropped_next() -> None:
    assert recipes(SITUATION)[:2] == ["int8", "vocabulary + int8"]
    assert "bf16" not in recipes(SITUATION)
    assert "bf16" in [exclusion.technique for exclusion in exclusions(SITUATION)]
    assert "bf16" in recipes(replace(SITUATION, host=replace(HOST, multiplies_bf16=True)))


def test_a_plain_graph_gets_only_what_rewrites_graphs() -> None:
    plain = replace(SITUATION, architecture="")
    assert not [one for one in recipes(plain) if one.startswith(("vocabulary", "distill", "prune"))]
    reasons = " ".join(exclusion.reason for exclusion in exclusions(plain))
    assert reasons.count("trainable form") == 2
    assert "int8" in recipes(plain)


@pytest.mark.parametrize(
    ("situation", "why"),
    [
        (replace(SITUATION, allow_training=False), "--allow-training"),
        (replace(SITUATION, has_training_data=False), "name a dataset"),
    ],
)
def test_what_trains_is_advised_only_where_it_may_and_can(situation: Situation, why: str) -> None:
    assert any("distill" in one for one in recipes(SITUATION))
    assert not any("distill" in one for one in recipes(situation))
    assert any(why in exclusion.reason for exclusion in exclusions(situation) if "distill" in exclusion.technique)


def test_classes_are_compared_in_pairs() -> None:
    labels = np.array([0, 0, 1, 1, 1, 0, 1, 0, 1, 0])
    before = np.array([0, 0, 1, 1, 1, 0, 1, 1, 0, 0])
    after = np.array([0, 1, 1, 1, 0, 0, 1, 0, 0, 0])
    answers = compare_classes(before, after, labels)
    assert answers.agreement == 0.7
    assert answers.loss == pytest.approx(0.1), "two right ones lost, one won"
    differences = (after == labels).astype(float) - (before == labels)
    assert answers.margin == pytest.approx(1.96 * differences.std() / np.sqrt(10), rel=1e-3)
    same = compare_classes(before, before, labels)
    assert (same.loss, same.margin) == (0, 0.3), "what was never seen in 10 rows may be in 3 of 10"
    assert compare_classes(before, after, None).loss == pytest.approx(0.3)


def trial(recipe: Recipe, size: int, faster: float, loss: float | None, margin: float = 0.001) -> Trial:
    answers = None if loss is None else Answers(1000, 1 - abs(loss), loss, margin, "accuracy")
    before, after = Speed(0.010, 0.020, 100.0), Speed(0.010 / faster, 0.020 / faster, 100.0 * faster)
    return Trial(Candidate(recipe, "it suits"), size, "onnxruntime", before, after, answers)


def test_what_keeps_to_the_limits_comes_first_then_what_wins_most() -> None:
    small, fast, lossy = (
        trial((Int8(),), 250, 2.0, 0.001),
        trial((Vocabulary(), Int8()), 150, 2.0, 0.002),
        trial((Bf16(),), 100, 4.0, 0.05),
    )
    untrained = trial((Distill(), Int8()), 100, 6.0, None)
    order, _ = rank([small, fast, lossy, untrained], 1000, Limits())
    assert [one.trial for one in order] == [untrained, fast, small, lossy]
    assert [one.risk for one in order] == [Risk.UNKNOWN, Risk.LOW, Risk.LOW, Risk.HIGH]
    order, _ = rank([small, fast, lossy], 1000, Limits(max_size_bytes=120, max_quality_loss=0.1))
    assert [one.trial for one in order] == [lossy, fast, small]
    assert "the served file" in order[1].unmet[0]
    order, _ = rank([small, lossy], 1000, Limits(max_quality_loss=0.01))
    assert order[0].trial is small
    assert "loss of quality" in order[1].unmet[0]


def test_a_loss_that_may_be_chance_is_a_medium_risk() -> None:
    order, _ = rank([trial((Int8(),), 250, 2.0, 0.005, margin=0.02)], 1000, Limits())
    assert order[0].risk is Risk.MEDIUM


def test_what_won_nothing_in_its_trial_is_excluded_with_the_figures() -> None:
    order, excluded = rank([trial((Clip(),), 1000, 1.0, 0.0), trial((Prune(),), 900, 1.0, 0.0)], 1000, Limits())
    assert [one.trial.candidate.recipe for one in order] == [(Prune(),)]
    assert "no gain here" in excluded[0].reason
