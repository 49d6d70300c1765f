"""How much of the bare engine's throughput is served, at the batch sizes that were reached.

The seed's LSTM on torch eager, direct, 64 and 256 in flight, one batch at a time: with more lanes a worker would be
compared with less than it has. In turns a load and the engine alone, in a process of its
own with the same thread count: it computes batches of the sizes that the load had reached (the histogram of rows a
batch in /metrics), and the load's rows are taken as so many batches of each. It does so twice: on a machine that does
nothing else, and while the other cores run an empty loop, as they run Envoy and the load generator under load. Where
two cores are two threads of one, the second is what a serving engine can have at most.

The histogram has buckets. How far the sizes lie above their buckets' lower ends is the same share for all buckets: the
one at which the rows add up to those that were served.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import models
from cluster import Cluster, running_cluster
from load import need_h2load, run_load
from packages import seed_package, with_all_engines
from report import add_arguments, median, publish, say, table

from maas_engine.engine import choose_servable
from maas_engine.predictor import Predictor, open_predictor
from maas_package.package import read_package

IN_FLIGHT = (64, 256)
ENGINE = "torch"
ONE_LANE = {"MAAS_ENGINE_LANES": "1"}
_METRIC = "maas_inference_batch_rows"
_REPORT_SECONDS = 1.5
"""The front tells its numbers once a second."""
_SECONDS_A_SIZE = 0.3


def main() -> None:
    """Load and compute alone, in turns; print and with --write keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--engine", default=ENGINE)
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.alone:
        compute_alone(arguments.alone, arguments.engine)
        return
    need_h2load()
    found: dict[int, list[dict[str, float]]] = {count: [] for count in IN_FLIGHT}
    with tempfile.TemporaryDirectory() as folder, running_cluster(environment=ONE_LANE) as cluster:
        package = with_all_engines(seed_package(Path(folder, "seed")))
        cluster.deploy("seed", package, arguments.engine)
        cluster.start_direct()
        with Alone(package.folder, arguments.engine) as alone:
            for number in range(arguments.rounds):
                for count in IN_FLIGHT:
                    found[count].append(one_round(cluster, alone, count, arguments.seconds))
                    say(f"round {number + 1}, {count} in flight: {found[count][-1]}")
    rows = [
        [
            str(count),
            f"{median(one['rows_a_batch'] for one in rounds):.1f}",
            f"{median(one['served'] for one in rounds):,.0f}",
            f"{median(one['bare'] for one in rounds):,.0f}",
            f"{median(one['share'] for one in rounds):.2f}",
            f"{median(one['beside'] for one in rounds):,.0f}",
            f"{median(one['share_beside'] for one in rounds):.2f}",
            f"{sum(one['failed'] for one in rounds):.0f}",
        ]
        for count, rounds in found.items()
    ]
    head = ["in flight", "rows a batch", "served rows/s", "bare engine rows/s", "served x bare"]
    head += ["bare, other cores busy", "served x that", "failed"]
    publish("bare-engine", table(head, rows), found, arguments)


def one_round(cluster: Cluster, alone: "Alone", in_flight: int, seconds: float) -> dict[str, float]:
    """Load once, then let the engine compute the same batches alone."""
    question, port = cluster.question("seed"), cluster.ports["direct"]
    _, answer_bytes = question.until_answered(port)
    time.sleep(_REPORT_SECONDS)
    before = histogram(cluster)
    load = run_load(port, question, answer_bytes, in_flight, seconds)
    time.sleep(_REPORT_SECONDS)
    sizes, rows, batches = reached(before, histogram(cluster))
    bare = rows_a_second(sizes, alone)
    with OtherCoresBusy():
        beside = rows_a_second(sizes, alone)
    served = load.requests_per_second
    return {
        "served": served,
        "bare": bare,
        "share": served / bare,
        "beside": beside,
        "share_beside": served / beside,
        "rows_a_batch": rows / batches,
        "failed": load.failed,
    }


def rows_a_second(sizes: Mapping[int, float], alone: "Alone") -> float:
    """Return what the engine alone does with so many batches of each size."""
    seconds_a_batch = alone.seconds_of(sorted(sizes))
    seconds = sum(count * seconds_a_batch[size] for size, count in sizes.items())
    return sum(size * count for size, count in sizes.items()) / seconds


def histogram(cluster: Cluster) -> dict[str, float]:
    """Return the buckets (by upper end), the sum and the count, over all fronts."""
    totals: dict[str, float] = {}
    for key, value in cluster.metrics().items():
        if key.startswith(_METRIC):
            name = key.partition("{")[0].removeprefix(f"{_METRIC}_")
            if name == "bucket":
                name = key.partition('le="')[2].partition('"')[0]
            totals[name] = totals.get(name, 0.0) + value
    return totals


def reached(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[dict[int, float], float, float]:
    """Return how many batches there were of each size, the rows and the batches between two looks."""
    more = {name: after[name] - before.get(name, 0.0) for name in after}
    ends = sorted(float(name) for name in more if name not in ("sum", "count", "+Inf"))
    lower, counted = 0.0, 0.0
    buckets = []
    for end in ends:
        count = more[f"{end}"] - counted
        counted += count
        if count > 0:
            buckets.append((lower, end, count))
        lower = end
    least = sum(count * low for low, _, count in buckets)
    most = sum(count * high for _, high, count in buckets)
    share = (more["sum"] - least) / (most - least) if most > least else 1.0
    sizes: dict[int, float] = {}
    for low, high, count in buckets:
        size = max(1, round(low + share * (high - low)))
        sizes[size] = sizes.get(size, 0.0) + count
    return sizes, more["sum"], more["count"]


class OtherCoresBusy:
    """All cores but one run an empty loop while it is open."""

    def __enter__(self) -> None:
        loop = [sys.executable, "-c", "while True: pass"]
        self._loops = [subprocess.Popen(loop) for _ in range((os.cpu_count() or 2) - 1)]

    def __exit__(self, *_: object) -> None:
        for process in self._loops:
            process.kill()
            process.wait()


class Alone:
    """The engine in a process of its own."""

    def __init__(self, package: Path, engine: str) -> None:
        command = [sys.executable, __file__, "--alone", str(package), "--engine", engine]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Alone":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=10)

    def seconds_of(self, sizes: list[int]) -> dict[int, float]:
        """Return the median time of a batch of each size."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(sizes) + "\n")
        self._process.stdin.flush()
        return dict(zip(sizes, json.loads(self._process.stdout.readline()), strict=True))


def compute_alone(folder: Path, engine: str) -> None:
    """Answer lists of sizes with their seconds, until the input ends."""
    package = read_package(folder)
    predictor = open_predictor(package, choose_servable(package, engine), threads=1)
    for line in sys.stdin:
        print(json.dumps([seconds_of_batch(predictor, size) for size in json.loads(line)]), flush=True)


def seconds_of_batch(predictor: Predictor, rows: int) -> float:
    """Return the median time of a batch of so many rows."""
    batch = {models.SIGNATURES["seed"].input: models.sample("seed", rows)}
    predictor.run(batch)
    times = []
    end = time.perf_counter() + _SECONDS_A_SIZE
    while time.perf_counter() < end:
        begun = time.perf_counter()
        predictor.run(batch)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


if __name__ == "__main__":
    main()
