"""Whatever a technique makes is served by a process that has neither torch nor anything that compresses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compression_sources import TEXTS, materials, small_package

from maas_compression.recipe import TECHNIQUES, parse_recipe
from maas_compression.techniques import apply_technique
from maas_engine.predictor import open_predictor
from maas_package.package import Package

BERT, LSTM = "bert-text-classifier", "lstm-text-classifier"
RECIPES = [
    (BERT, ["clip"]),
    (LSTM, ["clip(rule=percentile, percentile=90)"]),
    (BERT, ["fixed_point"]),
    (LSTM, ["fixed_point(fractional_bits=6)"]),
    (BERT, ["prune(structure=weights, share=0.5)"]),
    (BERT, ["prune(structure=two_of_four)"]),
    (BERT, ["prune(structure=heads, share=0.25)"]),
    (BERT, ["prune(structure=channels, share=0.5)"]),
    (BERT, ["prune(structure=layers, share=0.5)"]),
    (LSTM, ["prune(structure=hidden_units, share=0.5)"]),
    (BERT, ["int8"]),
    (LSTM, ["int8"]),
    (BERT, ["int8(mode=static, calibration_rows=16)"]),
    (BERT, ["int8(mode=static, calibration=entropy, balance=0.5, calibration_rows=16)"]),
    (BERT, ["int8(mode=static, engine=openvino, calibration_rows=16)"]),
    (BERT, ["int4(group_size=16)"]),
    (LSTM, ["int4(group_size=16)"]),
    (BERT, ["bf16"]),
    (LSTM, ["bf16"]),
    (BERT, ["codebook"]),
    (LSTM, ["codebook(bits=3)"]),
    (BERT, ["low_rank(energy=0.5)"]),
    (BERT, ["vocabulary(minimum_count=2)"]),
    (LSTM, ["vocabulary(minimum_count=2)"]),
    (BERT, ["distill(layers=1, epochs=1)"]),
    (BERT, ['distill(student="lstm-text-classifier", epochs=1)']),
    (BERT, ["qat"]),
    (BERT, ["compile(engine=openvino)"]),
    (BERT, ["prune(structure=channels, share=0.5)", "vocabulary", "int4(group_size=16, parts=embeddings)", "int8"]),
]
ABSENT = ("torch", "onnx", "onnxscript", "nncf", "optuna", "scipy", "sklearn", "maas_compression", "maas_learning")
SERVE = """
import json, sys
from pathlib import Path

class Without:
    def __init__(self, finder):
        self._finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else self._finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self._finder, name)

folder, wanted, ABSENT, texts = json.loads(sys.argv[1])
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from maas_engine.engine import choose_servable
from maas_engine.predictor import open_predictor
from maas_package.package import read_package

package = read_package(Path(folder))
predictor = open_predictor(package, choose_servable(package, wanted), 1)
logits = predictor.predict_texts(texts).outputs["logits"]
predictor.close()
assert not set(ABSENT) & set(sys.modules), sorted(sys.modules)
print(json.dumps(logits.tolist()))
"""


def serve_elsewhere(package: Package, wanted: str) -> np.ndarray:
    question = json.dumps([str(package.folder), wanted, ABSENT, TEXTS])
    done = subprocess.run(
        [sys.executable, "-c", SERVE, question],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout.splitlines()[-1]), np.float32)


@pytest.mark.parametrize(
    ("architecture", "lines"), RECIPES, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_what_a_technique_makes_is_served_without_torch_and_without_compressors(
    tmp_path: Path, architecture: str, lines: list[str]
) -> None:
    package = small_package(tmp_path / "source", architecture)
    for step, technique in enumerate(parse_recipe(lines)):
        package = apply_technique(package, technique, tmp_path / str(step), materials(tmp_path / f"materials-{step}"))
    served = [one for one in package.manifest.servables if one.engine != "torch"]
    assert served
    for servable in served:
        predictor = open_predictor(package, servable, 1)
        here = predictor.predict_texts(TEXTS).outputs["logits"]
        predictor.close()
        elsewhere = serve_elsewhere(package, f"{servable.engine}:{servable.precision}")
        np.testing.assert_allclose(elsewhere, here, rtol=0, atol=1e-6)


def test_every_technique_is_among_them() -> None:
    assert {line.partition("(")[0] for _, lines in RECIPES for line in lines} == set(TECHNIQUES)
