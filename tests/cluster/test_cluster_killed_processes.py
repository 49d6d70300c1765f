"""Every process is killed once while requests flow: the cluster is well again by itself within 5 seconds."""

import os
import signal
import threading
import time
from collections import Counter

import grpc
import pytest

from cluster_under_test import Cluster, until
from maas.client import Client
from maas.errors import MaasError

RECOVERY_SECONDS = 5.0
SERVICES = ["registry", "rollout", "training", "compression", "gateway", "inference"]


class Traffic:
    """Four callers who ask one request after the other until they are stopped."""

    def __init__(self, cluster: Cluster, deployment: str) -> None:
        self.answered = 0
        self.failures: Counter[str] = Counter()
        self.last_failure = 0.0
        self._cluster = cluster
        self._deployment = deployment
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(4)]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        until(lambda: self.answered > 20, 10, "traffic flows")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=30)

    def _call(self) -> None:
        with Client(self._cluster.endpoint, timeout=15, retry_seconds=0) as client:
            while not self._stop.is_set():
                try:
                    client.predict(self._deployment, "a good film")
                    self.answered += 1
                except MaasError as error:
                    self.failures[f"{error.code} {error.message}"] += 1
                    self.last_failure = time.monotonic()
                    time.sleep(0.02)


def well_again(cluster: Cluster, deployment: str) -> bool:
    """Whether every service answers, and so does the deployment."""
    if not cluster.is_healthy():
        return False
    with Client(cluster.endpoint, timeout=2, retry_seconds=0) as client:
        client.predict(deployment, "a good film")
    return True


@pytest.mark.parametrize("process", SERVICES)
def test_a_killed_service_is_back_and_no_request_for_an_answer_fails(
    cluster: Cluster, reviews: str, process: str
) -> None:
    before = cluster.pids()[process]
    with Traffic(cluster, reviews) as traffic:
        os.kill(before, signal.SIGKILL)
        until(lambda: cluster.pids().get(process) not in (None, 0, before), RECOVERY_SECONDS, f"{process} runs again")
        until(lambda: well_again(cluster, reviews), RECOVERY_SECONDS, f"the cluster is well after {process} died")
        answered = traffic.answered
        until(lambda: traffic.answered > answered + 20, 10, "traffic goes on")
    assert not traffic.failures, f"{traffic.failures}\n{cluster.logs()}"


def test_a_killed_envoy_is_back_with_its_configuration(cluster: Cluster, reviews: str) -> None:
    before = cluster.pids()["envoy"]
    with Traffic(cluster, reviews) as traffic:
        killed = time.monotonic()
        os.kill(before, signal.SIGKILL)
        until(lambda: well_again(cluster, reviews), RECOVERY_SECONDS, "the cluster is well after Envoy died")
        answered = traffic.answered
        until(lambda: traffic.answered > answered + 20, 10, "traffic goes on")
    assert traffic.last_failure - killed < RECOVERY_SECONDS
    assert all(failure.startswith("UNAVAILABLE") for failure in traffic.failures), traffic.failures


def test_a_killed_engine_worker_costs_nobody_an_answer(cluster: Cluster, reviews: str) -> None:
    def worker() -> int:
        with Client(cluster.endpoint) as client:
            return max(version.pid for version in client.replica().loaded_versions)

    before = worker()
    with Traffic(cluster, reviews) as traffic:
        os.kill(before, signal.SIGKILL)
        until(lambda: worker() not in (0, before), RECOVERY_SECONDS, "the worker runs again")
        answered = traffic.answered
        until(lambda: traffic.answered > answered + 20, 10, "traffic goes on")
    assert not traffic.failures, f"{traffic.failures}\n{cluster.logs()}"


def test_processes_that_hang_are_killed_and_started_again(cluster: Cluster, reviews: str) -> None:
    before = cluster.pids()
    for process in [*SERVICES, "envoy"]:
        os.kill(before[process], signal.SIGSTOP)
    until(
        lambda: all(pid not in (0, before[name]) for name, pid in cluster.pids().items()), 60, "all are new processes"
    )
    until(lambda: well_again(cluster, reviews), 2 * RECOVERY_SECONDS, "the cluster is well after all hung")


def test_what_was_acknowledged_is_there_after_every_service_was_killed(cluster: Cluster, reviews: str) -> None:
    cluster.maas("models", "alias", "reviews@2", "kept")
    pids = cluster.pids()
    for process in SERVICES:
        os.kill(pids[process], signal.SIGKILL)
    until(lambda: well_again(cluster, reviews), 2 * RECOVERY_SECONDS, "the cluster is well after all died")
    with Client(cluster.endpoint) as client:
        versions = {version.name for version in client.versions("reviews")}
        assert versions >= {"models/reviews/versions/1", "models/reviews/versions/2"}
        assert {alias.name: alias.version for alias in client.aliases("reviews")} == {
            "models/reviews/aliases/kept": "models/reviews/versions/2"
        }


def test_unknown_calls_are_refused_by_the_gateway(cluster: Cluster) -> None:
    with grpc.insecure_channel(cluster.endpoint) as channel:
        call = channel.unary_unary("/maas.nothing.v1.Nothing/Do")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=5)
    assert caught.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND)
