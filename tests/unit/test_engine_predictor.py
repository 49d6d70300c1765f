import itertools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from maas_engine.engine import (
    EngineUnknown,
    InputsRefused,
    ServableBroken,
    ServableMissing,
    choose_servable,
    open_engine,
)
from maas_engine.host import describe_hardware
from maas_engine.measure import (
    MeasurementFailed,
    compare_speed,
    cost_curve,
    measure,
    measure_memory,
)
from maas_engine.predictor import Predictor, open_predictor, softmax
from maas_engine.quality import EvaluationInvalid, agreement, evaluate, predict_all, wilson_interval
from maas_package.inputs import InputNameInvalid
from maas_package.manifest import Measurement, Servable, TensorSpec
from maas_package.package import Package, read_package

TEXTS = ["A great story", "bore", "I don't like wooden acting, it's a mess!", "zebra"] * 20


@pytest.fixture
def package(tiny_package_folder: Path) -> Package:
    return read_package(tiny_package_folder)


@pytest.fixture
def predictor(package: Package) -> Iterator[Predictor]:
    opened = open_predictor(package)
    yield opened
    opened.close()


def broken(package: Package, folder: Path, content: bytes) -> Package:
    copy = Package(Path(shutil.copytree(package.folder, folder / "broken")), package.manifest)
    copy.path(package.manifest.servables[0].path).write_bytes(content)
    return copy


def test_texts_and_their_word_ids_get_the_same_answer(predictor: Predictor) -> None:
    by_text = predictor.predict({"text": np.array(TEXTS[:4], object)})
    by_tokens = predictor.predict(predictor.preparer.prepare_texts(TEXTS[:4]))
    assert (by_text.outputs["logits"] == by_tokens.outputs["logits"]).all()
    assert by_text.predicted.dtype == np.int64
    assert by_text.predicted.tolist() == by_text.outputs["logits"].argmax(axis=1).tolist()
    np.testing.assert_allclose(by_text.probabilities.sum(axis=1), 1, rtol=1e-6)


def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(predictor: Predictor) -> None:
    together = predictor.predict_texts(TEXTS[:4]).outputs["logits"]
    alone = np.concatenate([predictor.predict_texts([text]).outputs["logits"] for text in TEXTS[:4]])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_wrong_inputs_do_not_reach_the_engine(predictor: Predictor) -> None:
    with pytest.raises(InputNameInvalid):
        predictor.predict({"words": np.ones((1, 1), np.int64)})


def test_inputs_that_the_engine_cannot_run_are_refused(package: Package) -> None:
    engine = open_engine(package, package.manifest.servables[0])
    with pytest.raises(InputsRefused):
        engine.run({"tokens": np.full((1, 3), 1_000, np.int64)})
    engine.close()


def test_softmax_holds_for_large_logits() -> None:
    logits = np.array([[1e4, 1e4], [0.0, -1e4]])
    np.testing.assert_allclose(softmax(logits), np.array([[0.5, 0.5], [1.0, 0.0]]))


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x08\x08" * 100])
def test_a_servable_that_is_not_onnx_is_refused(package: Package, tmp_path: Path, content: bytes) -> None:
    copy = broken(package, tmp_path, content)
    with pytest.raises(ServableBroken):
        open_engine(copy, copy.manifest.servables[0])


def test_every_truncation_of_a_servable_is_refused(package: Package, tmp_path: Path) -> None:
    whole = package.path(package.manifest.servables[0].path).read_bytes()
    copy = broken(package, tmp_path, whole)
    for size in range(0, len(whole), 97):
        copy.path(copy.manifest.servables[0].path).write_bytes(whole[:size])
        with pytest.raises(ServableBroken):
            open_engine(copy, copy.manifest.servables[0])


def onnx_file(operator: str, *, domain: str = "", location: str = "") -> bytes:
    helper = onnx.helper
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1])
    if location:
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "4")):
            weight.external_data.add(key=key, value=value)
    else:
        weight.raw_data = b"\0\0\0\0"
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["tokens"], ["numbers"], to=onnx.TensorProto.FLOAT),
            helper.make_node(operator, ["numbers", "w"], ["logits"], domain=domain),
        ],
        "g",
        [helper.make_tensor_value_info("tokens", onnx.TensorProto.INT64, ["n", "t"])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", "t"])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("org.example", 1)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return model


def test_a_servable_with_an_operator_that_the_engine_lacks_is_refused(package: Package, tmp_path: Path) -> None:
    copy = broken(package, tmp_path, onnx_file("Add"))
    open_engine(copy, copy.manifest.servables[0]).close()
    copy.path(copy.manifest.servables[0].path).write_bytes(onnx_file("Surprise", domain="org.example"))
    with pytest.raises(ServableBroken):
        open_engine(copy, copy.manifest.servables[0])


def test_a_servable_that_reads_outside_its_package_is_refused(package: Package, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0\0\0\0")
    for location in ("../../../secret", str(secret)):
        shutil.rmtree(tmp_path / "broken", ignore_errors=True)
        copy = broken(package, tmp_path, onnx_file("Add", location=location))
        with pytest.raises(ServableBroken):
            open_engine(copy, copy.manifest.servables[0])


def test_a_servable_of_other_tensors_than_the_manifest_says_is_refused(package: Package) -> None:
    manifest = replace(package.manifest, inputs=(TensorSpec("words", "INT64", (-1, -1)),))
    with pytest.raises(ServableBroken):
        open_engine(replace(package, manifest=manifest), package.manifest.servables[0])


def test_an_unknown_engine_is_refused(package: Package) -> None:
    abacus = replace(package.manifest.servables[0], engine="abacus")
    with pytest.raises(EngineUnknown):
        open_engine(package, abacus)
    with pytest.raises(ServableMissing):
        choose_servable(replace(package, manifest=replace(package.manifest, servables=(abacus,))))


def servable(path: str, engine: str = "onnxruntime", *, alone: float = 0.001, **rates: float) -> Servable:
    measured = tuple(Measurement(hardware, 1, alone, alone, rate, 1) for hardware, rate in rates.items())
    return Servable(engine, "fp32", path, measurements=measured)


@pytest.mark.parametrize(
    ("servables", "hardware", "chosen"),
    [
        ((servable("a"), servable("b")), None, "a"),
        ((servable("a"), servable("b", here=1)), None, "b"),
        ((servable("a", here=1), servable("b", here=2)), "here", "b"),
        ((servable("a", here=2, there=1), servable("b", here=1, there=2)), "there", "b"),
        ((servable("a", here=1), servable("b", here=2)), "elsewhere", "b"),
        ((servable("a", "abacus", here=9), servable("b", here=2)), "here", "b"),
        ((servable("a", there=9), servable("b", here=2)), "here", "b"),
        ((servable("a", here=109, alone=0.003), servable("b", here=100)), "here", "b"),
        ((servable("a", here=109, alone=0.0019), servable("b", here=100)), "here", "a"),
        ((servable("a", here=111, alone=0.003), servable("b", here=100)), "here", "a"),
    ],
)
def test_the_fastest_measured_servable_that_the_host_can_run_is_chosen(
    package: Package, servables: tuple[Servable, ...], hardware: str | None, chosen: str
) -> None:
    candidate = replace(package, manifest=replace(package.manifest, servables=servables))
    assert choose_servable(candidate, hardware=hardware).path == chosen


def test_bfloat16_is_not_for_a_processor_without_it(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = replace(servable("a", here=9), precision="bf16")
    candidate = replace(package, manifest=replace(package.manifest, servables=(fast, servable("b", here=2))))
    for has_it, chosen in ((True, "a"), (False, "b")):
        monkeypatch.setattr("maas_engine.engine.has_bf16", lambda has_it=has_it: has_it)
        assert choose_servable(candidate, hardware="here").path == chosen
    with pytest.raises(ServableMissing, match="onnxruntime:bf16"):
        choose_servable(candidate, "onnxruntime:bf16")


def test_answers_keep_the_order_of_their_texts(predictor: Predictor) -> None:
    one_by_one = [int(predictor.predict_texts([text]).predicted[0]) for text in TEXTS]
    assert predict_all(predictor, TEXTS).tolist() == one_by_one


def test_accuracy_is_the_share_of_right_answers_within_its_interval(predictor: Predictor) -> None:
    labels = predict_all(predictor, TEXTS)
    labels[:20] = 1 - labels[:20]
    evaluation = evaluate(predictor, [(TEXTS[:1], labels[:1].tolist()), (TEXTS[1:], labels[1:].tolist())])
    assert (evaluation.metric, evaluation.value, evaluation.rows) == ("accuracy", 0.75, 80)
    assert evaluation.low < 0.75 < evaluation.high
    assert agreement(predictor, predictor, [TEXTS, TEXTS]) == 1.0


def test_nothing_to_evaluate_on_is_refused(predictor: Predictor) -> None:
    with pytest.raises(EvaluationInvalid):
        evaluate(predictor, [])
    with pytest.raises(EvaluationInvalid):
        evaluate(predictor, [(["a"], [])])
    with pytest.raises(EvaluationInvalid):
        agreement(predictor, predictor, [])


def test_the_interval_is_wilsons() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_predictors_are_timed_turn_by_turn_on_the_same_rows(predictor: Predictor) -> None:
    ticks = itertools.count()
    first, second = compare_speed(
        [predictor, predictor], TEXTS, rounds=2, calls_per_round=10, clock=lambda: float(next(ticks))
    )
    # The clock moves by one each time it is read, so each call takes one second.
    assert first == second
    assert (first.p50_seconds, first.p99_seconds, first.rows_per_second) == (1.0, 1.0, 32.0)


def test_a_servable_is_measured_in_time_and_memory(package: Package) -> None:
    candidate = (package, package.manifest.servables[0])
    measurements = measure([candidate, candidate], TEXTS, rounds=1, calls_per_round=10)
    assert len(measurements) == 2
    for measurement in measurements:
        assert measurement.hardware == describe_hardware()
        assert 0 < measurement.p50_seconds <= measurement.p99_seconds
        assert measurement.rows_per_second > 0
        assert measurement.peak_memory_bytes > 10_000_000


def test_memory_of_a_servable_that_cannot_run_is_a_failure_that_says_why(package: Package, tmp_path: Path) -> None:
    copy = broken(package, tmp_path, b"not onnx")
    with pytest.raises(MeasurementFailed, match=r"model\.onnx"):
        measure_memory(copy, copy.manifest.servables[0])


def test_the_cost_curve_has_a_time_for_each_batch_size(predictor: Predictor) -> None:
    ticks = itertools.count()
    curve = cost_curve(predictor, (1, 4), seconds=100.0, clock=lambda: float(next(ticks)))
    assert curve == {1: 1.0, 4: 1.0}


def test_the_cost_curve_of_a_slow_model_is_short(predictor: Predictor) -> None:
    ticks = itertools.count(step=10)
    # Each run takes ten seconds: one is done for a row, and no time is left for four.
    assert cost_curve(predictor, (1, 4), seconds=15.0, clock=lambda: float(next(ticks))) == {1: 10.0}
