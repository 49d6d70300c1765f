"""A registry process that is sent everything hostile refuses each by name, in bounded memory, and goes on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from registry_hostile import ALL, MODEL, PLAIN, Answer, Hostile, Memory, attack, register, watched

from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

MORE_BYTES = 200 * 2**20


@dataclass(frozen=True)
class Attacked:
    process: "subprocess.Popen[bytes]"
    folder: Path
    endpoint: str
    answers: dict[str, Answer]
    memory: Memory


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    folder = tmp_path_factory.mktemp("attacked")
    endpoint = f"unix:{folder}/r.sock"
    environment = os.environ | {
        "MAAS_HOME": str(folder),
        "MAAS_LISTEN": endpoint,
        "MAAS_METRICS_LISTEN": f"unix:{folder}/m.sock",
        "MAAS_LOG_LEVEL": "WARNING",
    }
    with subprocess.Popen([sys.executable, "-m", "maas_registry"], env=environment, cwd=folder) as process:
        try:
            with grpc.insecure_channel(endpoint) as channel:
                stub = RegistryServiceStub(channel)
                stub.ListModels(messages.ListModelsRequest(), timeout=60, wait_for_ready=True)
            with watched(process.pid) as memory:
                answers = attack(endpoint)
            yield Attacked(process, folder, endpoint, {_id(answer.hostile): answer for answer in answers}, memory)
        finally:
            process.kill()


def _id(hostile: Hostile) -> str:
    return f"{hostile.row}: {hostile.name}"


@pytest.mark.parametrize("hostile", ALL, ids=_id)
def test_what_is_hostile_is_refused_and_named(attacked: Attacked, hostile: Hostile) -> None:
    answer = attacked.answers[_id(hostile)]
    assert answer.error is not None, "it was stored"
    assert answer.is_right, (answer.error.code, answer.error.reason, answer.error.metadata, answer.error.message)


def test_the_process_goes_on_in_bounded_memory_and_has_run_and_stored_nothing(attacked: Attacked) -> None:
    assert attacked.process.poll() is None
    assert attacked.memory.peak - attacked.memory.before < MORE_BYTES
    assert not list(attacked.folder.rglob("the-registry-ran-a-pickle"))
    with grpc.insecure_channel(attacked.endpoint) as channel:
        registry = RegistryServiceStub(channel)
        model = registry.GetModel(messages.GetModelRequest(name=f"models/{MODEL}"), timeout=30)
        assert model.version_count == 0
        register(registry, lambda: PLAIN)
        assert registry.GetModel(messages.GetModelRequest(name=model.name), timeout=30).version_count == 1
