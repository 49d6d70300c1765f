"""A worker pays for the library of its own engine, and for no other."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from maas_engine.engine import BUILT_IN_ENGINES
from maas_package.manifest import Servable
from maas_package.package import read_package, write_package

LIBRARIES = {"onnxruntime", "openvino", "torch", "onnx"}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LSTM on every engine."""
    import torch

    from maas_package.architectures import load_architecture
    from maas_package.text import build_word_tokenizer
    from maas_package.trainable import package_trained_model

    folder = tmp_path_factory.mktemp("engines") / "package"
    architecture = load_architecture("lstm-text-classifier")
    config = {"vocabulary_size": 40, "embedding_size": 6, "hidden_size": 8}
    with torch.random.fork_rng(devices=[]):
        made = package_trained_model(
            folder,
            architecture=architecture,
            config=config,
            module=architecture.build(config),
            tokenizer=build_word_tokenizer(["one two three"], vocabulary_size=40, max_tokens=32),
            labels=("no", "yes"),
        )
    onnx = made.manifest.servables[0]
    servables = (onnx, Servable("openvino", "fp32", onnx.path), Servable("torch", "fp32", "model.safetensors"))
    write_package(folder, replace(made.manifest, servables=servables, files=()))
    return folder


def imported(importtime: str) -> set[str]:
    return set(re.findall(r"^import time:.*\| +(\S+)$", importtime, re.MULTILINE))


@pytest.mark.parametrize("engine", BUILT_IN_ENGINES)
def test_a_worker_imports_the_library_of_its_engine_only(package: Path, tmp_path: Path, engine: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "maas_inference.worker", f"--package={package}"]
    command += [f"--engine={engine}", f"--socket={tmp_path / 'w.sock'}", f"--parent-pid={os.getpid()}"]
    with (tmp_path / "errors").open("w") as errors:
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        with worker:
            assert worker.stdout is not None
            report = json.loads(worker.stdout.readline())
            worker.terminate()
    assert (report["failure"], report["engine"], report["task"]) == ("", engine, "text-classification")
    assert imported((tmp_path / "errors").read_text()) & LIBRARIES == {engine}


@pytest.mark.parametrize("engine", BUILT_IN_ENGINES)
def test_measuring_memory_imports_the_library_of_the_engine_only(package: Path, engine: str) -> None:
    servable = next(one for one in read_package(package).manifest.servables if one.engine == engine)
    command = [sys.executable, "-X", "importtime", "-m", "maas_engine.memory_probe", str(package)]
    command += [servable.engine, servable.precision, servable.path, "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert imported(done.stderr) & LIBRARIES == {engine}


def test_a_worker_asked_for_an_engine_that_the_package_lacks_says_which_it_has(package: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "maas_inference.worker", f"--package={package}", "--engine=torch:bf16"]
    command += [f"--socket={tmp_path / 'w.sock'}", f"--parent-pid={os.getpid()}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    report = json.loads(done.stdout)
    assert (done.returncode, report["reason"]) == (1, "SERVABLE_MISSING")
    assert "onnxruntime:fp32, openvino:fp32, torch:fp32" in report["failure"]
