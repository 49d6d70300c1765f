"""What each process installs and imports: torch only where a trainable form is needed."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_TORCH = ["maas_registry", "maas_rollout", "maas_gateway", "maas_gateway.envoy", "maas_inference",
                 "maas_training", "maas_compression"]  # fmt: skip


def imported_by(*arguments: str) -> tuple[int, set[str]]:
    """Start Python with no settings, and return its exit status and the names of all modules that it imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAAS_")}
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.returncode, set(re.findall(r"^import time:.*\| +(\S+)$", result.stderr, re.MULTILINE))


@pytest.mark.parametrize("process", WITHOUT_TORCH)
def test_a_process_starts_without_torch_and_says_which_settings_are_missing(process: str) -> None:
    status, modules = imported_by("-m", process)
    assert status == 78, "a process without settings ends with the status that means: a person has to help"
    assert "maas_runtime.settings" in modules
    assert modules.isdisjoint({"torch", "onnx", "pyarrow", "cryptography", "model_signing"})


@pytest.mark.parametrize("process", ["maas_registry", "maas_rollout", "maas_gateway", "maas_gateway.envoy"])
def test_a_process_that_runs_no_model_imports_no_engine(process: str) -> None:
    assert imported_by("-m", process)[1].isdisjoint({"onnxruntime", "openvino"})


def test_the_front_imports_nothing_that_computes() -> None:
    status, modules = imported_by("-c", "import maas_inference.front.application")
    assert status == 0
    assert modules.isdisjoint({"torch", "onnx", "onnxruntime", "tokenizers", "grpc", "sqlalchemy", "cryptography"})


def test_help_imports_nothing_heavy() -> None:
    status, modules = imported_by("-m", "maas.cli", "--help")
    assert status == 0
    assert modules.isdisjoint({"torch", "numpy", "pyarrow", "grpc", "onnxruntime", "cryptography"})


def requirements_of(extra: str) -> set[str]:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found: set[str] = set()
    for requirement in extras[extra]:
        own = re.fullmatch(r"maas\[(.+)\]", requirement)
        if own:
            for other in own[1].split(","):
                found |= requirements_of(other)
        else:
            found.add(re.match(r"[A-Za-z0-9_-]+", requirement)[0])  # type: ignore[index]
    return found


@pytest.mark.parametrize("extra", ["registry", "rollout", "gateway", "inference"])
def test_a_process_without_trainable_forms_installs_no_torch(extra: str) -> None:
    assert requirements_of(extra).isdisjoint({"torch", "onnx", "onnxscript"})
    assert "torch" in requirements_of("training")


def test_every_requirement_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = {re.match(r"[A-Za-z0-9_-]+", line)[0] for line in project["project"]["dependencies"]}  # type: ignore[index]
    names |= requirements_of("all") | {
        re.match(r"[A-Za-z0-9_-]+", line)[0]  # type: ignore[index]
        for line in project["dependency-groups"]["dev"]
    }
    normal = {re.sub(r"[-_.]+", "-", name).lower() for name in names}
    pinned = {
        re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert normal <= pinned, normal - pinned
