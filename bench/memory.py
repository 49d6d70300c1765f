"""Memory of front and workers, what comes back after an unload, and how soon a worker answers.

All sizes are proportional set sizes. The seed's LSTM on onnxruntime.

  front + worker    Envoy with gateway and front, and the engine worker of the first model
  a further model   what the whole cluster grows by when one more is deployed
  back              the share of that which is back after it was undeployed
  cold start        from the kill of a worker to the next answer; from deploying a new version to its first answer
"""

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cluster import Cluster, running_cluster, until
from load import need_h2load, run_load
from packages import seed_package
from processes import memory_mb
from report import add_arguments, median, publish, say, table

from maas_package.package import Package

FURTHER = 4


def main() -> None:
    """Measure; print and with --write keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of the cold starts")
    add_arguments(parser)
    arguments = parser.parse_args()
    need_h2load()
    with tempfile.TemporaryDirectory() as folder, running_cluster() as cluster:
        package = seed_package(Path(folder, "seed"))
        deploy(cluster, "seed", package)
        envoy = sum(map(memory_mb, cluster.pids_of("bin/envoy")))
        worker = memory_mb(cluster.worker_pids()["seed"])
        say(f"front {envoy:.0f} MB, worker {worker:.0f} MB")
        # Once before it is measured: what the other processes need for the first change is no model's.
        deploy_further(cluster, package, 1)
        undeploy_further(cluster, 1)
        before = settled_mb(cluster)
        deploy_further(cluster, package, FURTHER)
        loaded = settled_mb(cluster)
        undeploy_further(cluster, FURTHER)
        after = settled_mb(cluster)
        further, back = (loaded - before) / FURTHER, (loaded - after) / (loaded - before)
        say(f"each further {further:.0f} MB, {back:.0%} back")
        killed = [after_kill(cluster) for _ in range(arguments.rounds)]
        deployed = [after_deploy(cluster, package, number + 2) for number in range(arguments.rounds)]
    numbers = {
        "front_mb": envoy,
        "worker_mb": worker,
        "further_mb": further,
        "back_share": back,
        "seconds_after_kill": killed,
        "seconds_after_deploy": deployed,
    }
    head = ["front + worker MB", "a further model MB", "back after unload", "answer after a kill s"]
    head.append("answer of a new version s")
    line = [f"{envoy:.0f} + {worker:.0f} = {envoy + worker:.0f}", f"{further:.0f}", f"{back:.0%}"]
    line += [f"{median(killed):.2f}", f"{median(deployed):.2f}"]
    publish("memory", table(head, [line]), numbers, arguments)


def deploy(cluster: Cluster, name: str, package: Package) -> None:
    """Deploy and load it for a moment, so that it has what it takes when it works."""
    cluster.deploy(name, package)
    question = cluster.question(name)
    _, answer_bytes = question.until_answered(cluster.ports["gateway"])
    run_load(cluster.ports["gateway"], question, answer_bytes, 64, 1.0, warm=0.2)


def deploy_further(cluster: Cluster, package: Package, count: int) -> None:
    """Deploy and load so many more models."""
    for number in range(count):
        deploy(cluster, f"seed-{number}", package)


def undeploy_further(cluster: Cluster, count: int) -> None:
    """Undeploy them and wait until their workers have ended."""
    with cluster.client as client:
        for number in range(count):
            client.undeploy(f"seed-{number}")
    until(lambda: list(cluster.worker_pids()) == ["seed"], 60, "the workers have ended")


def settled_mb(cluster: Cluster) -> float:
    """Return the size of all processes, the least of three looks."""
    sizes = []
    for _ in range(3):
        time.sleep(0.5)
        sizes.append(cluster.processes.memory_mb())
    return min(sizes)


def after_kill(cluster: Cluster) -> float:
    """Return the seconds from a worker's SIGKILL to the next answer."""

    def kill() -> None:
        os.kill(cluster.worker_pids()["seed"], signal.SIGKILL)

    return seconds_to(kill, lambda: cluster.question("seed").until_answered(cluster.ports["gateway"], 30))


def after_deploy(cluster: Cluster, package: Package, number: int) -> float:
    """Return the seconds from deploying a version that is registered to its first answer."""
    with cluster.client as client:
        version = client.push_package(package.folder, "seed").name

        def answers() -> None:
            until(lambda: client.predict("seed", "word1").version == str(number), 30, f"version {number} answers")

        return seconds_to(lambda: client.deploy("seed", [version]), answers)


def seconds_to(act: Callable[[], object], wait: Callable[[], object]) -> float:
    """Return the seconds from the act to the end of the wait."""
    begun = time.monotonic()
    act()
    wait()
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
