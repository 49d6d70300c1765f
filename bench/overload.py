"""Three times what the server can do, each request with a deadline: what is answered in time, and the memory.

Capacity is the most goodput that the same generator gets by offering step by step more. Through the gateway: the seed's
LSTM, of which refusing a request costs a tenth of answering it, and MiniLM, of which it costs next to nothing.
"""

import argparse
import tempfile
import threading
from pathlib import Path

import models
from cluster import Cluster, running_cluster
from load import infer_request, need_h2load, run_load
from open_loop import OpenLoad, offer
from packages import minilm_package, seed_package
from processes import memory_mb
from report import add_arguments, median, publish, say, table

CAPACITY_SHARES = (0.7, 0.8, 0.9, 1.0)
"""Steps up to the closed loop's rate at 64 in flight, whose generator costs less."""
DEADLINES = {"seed": 0.25, "minilm": 1.0}
"""Of each request, in seconds, by model."""


def main() -> None:
    """Find the capacity, then offer three times as much; print and with --write keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--times", type=float, default=3.0, help="offered load by capacity")
    add_arguments(parser)
    arguments = parser.parse_args()
    need_h2load()
    rows: dict[str, list[dict[str, float]]] = {model: [] for model in DEADLINES}
    with tempfile.TemporaryDirectory() as folder, running_cluster() as cluster:
        weights = models.scratch_folder() / "models"
        models.prepare(weights)
        cluster.deploy("seed", seed_package(Path(folder, "seed")))
        cluster.deploy("minilm", minilm_package(Path(folder, "minilm"), weights))
        for number in range(arguments.rounds):
            for model in DEADLINES:
                rows[model].append(one_round(cluster, model, arguments))
                say(f"round {number + 1}, {model}: {rows[model][-1]}")
    publish("overload", describe(rows), rows, arguments)


def one_round(cluster: Cluster, model: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Find what can be answered, then offer more."""
    question, port, deadline = cluster.question(model, model), cluster.ports["gateway"], DEADLINES[model]
    _, answer_bytes = question.until_answered(port)
    message = infer_request(model, models.SIGNATURES[model].input, models.sample(model))
    closed = run_load(port, question, answer_bytes, 64, arguments.seconds / 2).requests_per_second
    steps = [offer(port, message, closed * share, 2.0 + deadline, deadline) for share in CAPACITY_SHARES]
    capacity = max(step.goodput for step in steps)
    before = front_and_worker_mb(cluster)
    with Peak(cluster) as peak:
        load = offer(port, message, capacity * arguments.times, arguments.seconds, deadline)
    question.until_answered(port)
    row = numbers(load, capacity, deadline) | {"before_mb": before, "peak_mb": peak.most_mb}
    row["after_mb"] = front_and_worker_mb(cluster)
    return row


def numbers(load: OpenLoad, capacity: float, deadline: float) -> dict[str, float]:
    """Return what one overload showed."""
    return {
        "capacity": capacity,
        "offered": load.offered / load.seconds,
        "goodput": load.goodput,
        "share": load.goodput / capacity,
        "p50_ms": load.percentile_ms(0.5),
        "p99_ms": load.percentile_ms(0.99),
        "late": load.late,
        "refused": load.refused,
        "unanswered": load.unanswered,
        "deadline_ms": deadline * 1000,
        "generator_cores": load.generator_cores,
    }


def describe(rounds: dict[str, list[dict[str, float]]]) -> str:
    """Return the Markdown table of medians."""
    head = ["model", "capacity/s", "offered/s", "goodput/s", "x capacity", "accepted p50 / p99 ms", "deadline ms"]
    head += ["late", "refused", "unanswered", "MB before / peak / after", "generator's cores"]
    return table(head, [_line(model, rows) for model, rows in rounds.items()])


def _line(model: str, rows: list[dict[str, float]]) -> list[str]:
    def of(name: str) -> float:
        return median(row[name] for row in rows)

    line = [model, f"{of('capacity'):,.0f}", f"{of('offered'):,.0f}", f"{of('goodput'):,.0f}", f"{of('share'):.2f}"]
    line += [f"{of('p50_ms'):.0f} / {of('p99_ms'):.0f}", f"{of('deadline_ms'):.0f}"]
    line += [f"{of('late'):.0f}", f"{of('refused'):.0f}", f"{of('unanswered'):.0f}"]
    line.append(f"{of('before_mb'):.0f} / {of('peak_mb'):.0f} / {of('after_mb'):.0f}")
    return [*line, f"{of('generator_cores'):.2f}"]


def front_and_worker_mb(cluster: Cluster) -> float:
    """Return the proportional set size of Envoy with the front in it and of the worker."""
    return sum(map(memory_mb, [*cluster.pids_of("bin/envoy"), *cluster.worker_pids().values()]))


class Peak:
    """Looks at the memory of front and worker again and again while it is open."""

    def __init__(self, cluster: Cluster) -> None:
        self._pids = [*cluster.pids_of("bin/envoy"), *cluster.worker_pids().values()]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.most_mb = 0.0

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.5):
            self.most_mb = max(self.most_mb, sum(map(memory_mb, self._pids)))


if __name__ == "__main__":
    main()
