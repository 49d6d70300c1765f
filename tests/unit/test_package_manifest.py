import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maas_package.manifest import (
    ArchitectureRef,
    FileEntry,
    FixedPointStorage,
    Manifest,
    ManifestInvalid,
    ManifestVersionUnsupported,
    Measurement,
    PackagePathInvalid,
    Servable,
    StepRef,
    TensorSpec,
    TextInput,
    Weights,
)
from maas_runtime.failures import InvalidInput

MANIFEST = Manifest(
    task="text-classification",
    inputs=(TensorSpec("tokens", "INT64", (-1, -1)),),
    outputs=(TensorSpec("logits", "FP32", (-1, 2)),),
    labels=("negative", "positive"),
    text=TextInput("text", "tokens", "tokenizer.json", 256),
    architecture=ArchitectureRef("lstm-text-classifier", {"hidden_size": 8}),
    weights=Weights("model.safetensors", FixedPointStorage({"output.weight": 2.0**-10})),
    servables=(
        Servable(
            engine="onnxruntime",
            precision="int8",
            path="servables/onnxruntime/model.onnx",
            tolerance=0.1,
            max_difference=0.02,
            measurements=(Measurement("a processor", 1, 0.001, 0.002, 5000.0, 60_000_000),),
        ),
    ),
    files=(
        FileEntry("tokenizer.json", "a" * 64, 10),
        FileEntry("model.safetensors", "b" * 64, 20),
        FileEntry("servables/onnxruntime/model.onnx", "c" * 64, 30),
    ),
)


def changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(MANIFEST.to_json()) | fields).encode()


def test_a_manifest_comes_back_from_its_json() -> None:
    back = Manifest.from_json(MANIFEST.to_json())
    assert back == replace(MANIFEST, files=tuple(sorted(MANIFEST.files, key=lambda entry: entry.path)))


def test_equal_manifests_have_equal_json_whatever_the_order_of_their_files() -> None:
    assert replace(MANIFEST, files=MANIFEST.files[::-1]).to_json() == MANIFEST.to_json()
    assert Manifest.from_json(MANIFEST.to_json()).to_json() == MANIFEST.to_json()


def test_a_manifest_of_another_schema_is_refused() -> None:
    with pytest.raises(ManifestVersionUnsupported):
        Manifest.from_json(changed(schema_version=2, something_new=True))


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../model.onnx", "a/../../b", "./a", "a//b", "a/", "C:/a", "a\\b", "a/..", "a./b"],
)
def test_a_path_that_is_not_plain_and_inside_is_refused(path: str) -> None:
    files = [{"path": path, "sha256": "a" * 64, "size_bytes": 1}]
    with pytest.raises(PackagePathInvalid):
        Manifest.from_json(changed(files=files))


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "alchemy"},
        {"task": 1},
        {"schema_version": "1"},
        {"schema_version": True},
        {"inputs": []},
        {"inputs": {}},
        {"inputs": [{"name": "tokens", "datatype": "INT65", "shape": [-1, -1]}]},
        {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [-2, -1]}]},
        {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [-1, -1]}] * 2},
        {"outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]},
        {"labels": ["a", "a"]},
        {"labels": [1, 2]},
        {"text": {"input": "text", "feeds": "words", "tokenizer": "tokenizer.json", "max_tokens": 256}},
        {"text": {"input": "text", "feeds": "tokens", "tokenizer": "tokenizer.json", "max_tokens": 0}},
        {"text": {"input": "text", "feeds": "tokens", "tokenizer": "absent.json", "max_tokens": 256}},
        {"weights": {"path": "model.safetensors", "storage": {"kind": "fixed_point", "scales": {"w": 0}}}},
        {"weights": {"path": "model.safetensors", "storage": {"kind": "fixed_point", "scales": {"w": "1"}}}},
        {"weights": {"path": "model.safetensors", "storage": {"kind": "zip"}}},
        {"files": []},
        {"files": [{"path": "tokenizer.json", "sha256": "A" * 64, "size_bytes": 1}]},
        {"files": [{"path": "tokenizer.json", "sha256": "a" * 64, "size_bytes": -1}]},
        {"files": [{"path": "tokenizer.json", "sha256": "a" * 64, "size_bytes": 1.5}]},
        {"surprise": 1},
    ],
)
def test_a_field_that_is_wrong_is_refused_and_named(fields: dict[str, Any]) -> None:
    with pytest.raises(ManifestInvalid) as refused:
        Manifest.from_json(changed(**fields))
    assert refused.value.violations


def test_a_file_listed_twice_is_refused_even_in_another_case() -> None:
    files = json.loads(MANIFEST.to_json())["files"]
    with pytest.raises(ManifestInvalid):
        Manifest.from_json(changed(files=[*files, files[0] | {"path": files[0]["path"].upper()}]))


def test_a_missing_field_is_refused() -> None:
    whole = json.loads(MANIFEST.to_json())
    for name in whole:
        with pytest.raises(ManifestInvalid):
            Manifest.from_json(json.dumps({key: value for key, value in whole.items() if key != name}).encode())


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"task": 1, "task": 2}', b"[" * 100_000, b'{"schema_version": 1e999}'],
)
def test_what_is_not_a_json_object_is_refused(content: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        Manifest.from_json(content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.sampled_from(sorted(json.loads(MANIFEST.to_json()))), json_values)
def test_any_value_in_any_field_is_either_taken_or_refused(name: str, value: Any) -> None:
    try:
        Manifest.from_json(changed(**{name: value}))
    except InvalidInput as failure:
        assert failure.reason != InvalidInput.reason


def test_what_is_younger_than_a_manifest_may_be_absent_and_is_then_not_written() -> None:
    content = json.loads(MANIFEST.to_json())
    assert {"steps", "rows_apart"}.isdisjoint(content)
    assert Manifest.from_json(json.dumps(content).encode()).steps == ()


def test_steps_and_rows_that_belong_together_come_back() -> None:
    manifest = replace(
        MANIFEST, task="tensors", steps=(StepRef("pixels", {"mean": 1.5}), StepRef("classes")), rows_apart=True
    )
    back = Manifest.from_json(manifest.to_json())
    assert (back.steps, back.rows_apart, back.joins_rows) == (manifest.steps, True, False)
    assert MANIFEST.joins_rows


@pytest.mark.parametrize(
    "fields",
    [{"steps": {}}, {"steps": [{"name": "pixels"}]}, {"steps": [{"name": "", "config": {}}]}, {"rows_apart": 1}],
)
def test_steps_that_are_none_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ManifestInvalid):
        Manifest.from_json(changed(**fields))


def test_one_file_may_be_run_by_several_engines_but_not_twice_by_one() -> None:
    [servable] = MANIFEST.servables
    others = (replace(servable, engine="openvino"), replace(servable, precision="bf16"))
    both = replace(MANIFEST, servables=(servable, *others))
    assert Manifest.from_json(both.to_json()).servables == both.servables
    with pytest.raises(ManifestInvalid):
        Manifest.from_json(replace(MANIFEST, servables=(servable, servable)).to_json())


def test_a_manifest_of_tensors_needs_no_logits() -> None:
    content = changed(task="tensors", labels=[], outputs=[{"name": "y", "datatype": "BYTES", "shape": []}])
    assert not Manifest.from_json(content).joins_rows
