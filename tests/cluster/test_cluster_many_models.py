"""Many small models on one machine, in memory that holds a tenth or a half of them. `make test-many` takes 200."""

import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cluster_under_test import Cluster, small_package, started_cluster, until
from maas.client import Client
from maas.errors import MaasError, UnavailableError
from maas.rollout.v1.deployment_pb2 import LOAD_POLICY_ON_DEMAND, ServingSettings

MODELS = int(os.environ.get("MAAS_TEST_MODELS", "24"))
BUDGET_BYTES = 800_000_000 if MODELS >= 100 else 400_000_000
"""About 20 workers, or 10."""
CALLERS = 6
CALLS_A_CALLER = MODELS // 2
WEIGHTS = 4


@pytest.fixture(scope="module")
def roomy() -> Iterator[Cluster]:
    with started_cluster(MAAS_INFERENCE_MEMORY_BYTES=str(BUDGET_BYTES)) as running:
        yield running


def proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def infer(client: Client, model: int, tokens: np.ndarray) -> np.ndarray:
    """Ask until there is an answer, as callers do who see UNAVAILABLE."""
    end = time.monotonic() + 120
    while True:
        try:
            return client.infer(f"m{model}", {"tokens": tokens}, timeout=30)["logits"]
        except UnavailableError as error:
            assert error.reason in ("NO_ROOM_TO_LOAD", "VERSION_NOT_READY"), error
            assert time.monotonic() < end
            time.sleep(0.1)


def test_many_models_answer_from_memory_that_holds_a_few(roomy: Cluster, tmp_path: Path) -> None:
    packages = [small_package(tmp_path / str(seed), seed) for seed in range(WEIGHTS)]
    tokens = np.random.default_rng(1).integers(1, 13, (2, 6))
    on_demand = ServingSettings(load_policy=LOAD_POLICY_ON_DEMAND)
    with Client(roomy.endpoint, timeout=30) as client:
        for model in range(MODELS):
            client.push_package(packages[model % WEIGHTS].folder, f"m{model}")
            client.deploy(f"m{model}", [f"m{model}"], serving=on_demand)
        for model in range(MODELS):
            client.wait_until_ready(f"m{model}")
        # One model a set of weights is asked first: what it says, all others of these weights have to say.
        expected = [infer(client, model, tokens) for model in range(WEIGHTS)]
    assert len({answer.tobytes() for answer in expected}) == WEIGHTS

    stop = threading.Event()
    used: list[int] = []
    latencies: list[float] = []

    def sample() -> None:
        with Client(roomy.endpoint) as client:
            while not stop.is_set():
                try:
                    pids = [version.pid for version in client.replica().loaded_versions if version.pid]
                except MaasError:
                    continue
                used.append(sum(map(proportional_bytes, pids)))
                stop.wait(0.1)

    def caller(seed: int) -> None:
        generator = random.Random(seed)
        with Client(roomy.endpoint, timeout=30) as client:
            for _ in range(CALLS_A_CALLER):
                model = generator.randrange(MODELS)
                asked = time.monotonic()
                answer = infer(client, model, tokens)
                latencies.append(time.monotonic() - asked)
                np.testing.assert_allclose(answer, expected[model % WEIGHTS], rtol=1e-5, atol=1e-6)

    with ThreadPoolExecutor(CALLERS + 1) as threads:
        sampling = threads.submit(sample)
        try:
            for done in [threads.submit(caller, seed) for seed in range(CALLERS)]:
                done.result()
        finally:
            stop.set()
        sampling.result()
    latencies.sort()
    print(
        f"{MODELS} models, {len(latencies)} calls: median {latencies[len(latencies) // 2]:.2f} s, "
        f"longest {latencies[-1]:.2f} s; most memory {max(used) / 1e6:.0f} of {BUDGET_BYTES / 1e6:.0f} MB"
    )
    # What grows is noticed when it is measured, every two seconds.
    assert max(used) <= BUDGET_BYTES * 1.05

    with Client(roomy.endpoint) as client:
        before = max(proportional_bytes(v.pid) for v in client.replica().loaded_versions if v.pid)
        pids = [version.pid for version in client.replica().loaded_versions if version.pid]
        for model in range(MODELS):
            client.undeploy(f"m{model}")
        until(lambda: not client.replica().loaded_versions, 60, "all are unloaded")
    until(lambda: not any(map(proportional_bytes, pids)), 60, f"workers end, the largest of {before} bytes")
