"""The front's own batching against fixed settings, one front, switched in turns.

First every fixed setting once for each engine, way and number in flight; then, cell by cell, the front learns for some
seconds, and its own and the best fixed settings of that cell take turns, so that what the first look found by luck does
not count. The last numbers are those of the table: the front's own beside the best fixed one.
"""

import argparse
import itertools
import json
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster, Way, running_cluster
from load import Load, need_h2load, run_load
from packages import seed_package, with_all_engines
from report import add_arguments, median, publish, say, table

OWN = "own"
FIXED = {
    f"{lanes}/{slots} x {hold:g} ms": {"lanes": lanes, "slots": slots, "hold_ms": hold}
    for (lanes, slots), hold in itertools.product(((1, 1), (1, 2), (2, 2), (2, 4)), (0.0, 1.0, 2.0, 4.0))
}
"""Lanes, batches that are at the worker at once, and how long a batch that is not full is held."""
IN_FLIGHT = (1, 4, 16, 64, 256)
WAYS: tuple[Way, ...] = ("direct", "apart")
ENGINES = ("onnxruntime", "torch")
FINALISTS = 2


@dataclass(frozen=True, slots=True)
class Cell:
    """Where settings are compared."""

    engine: str
    way: Way
    in_flight: int


def main() -> None:
    """Look at all, then compare the best; print and with --write keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of the last comparison")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one load of the last comparison")
    parser.add_argument("--look-seconds", type=float, default=0.4, help="of one load of the first look")
    parser.add_argument("--learn-seconds", type=float, default=6.0, help="before a cell's own rounds")
    parser.add_argument("--in-flight", default=IN_FLIGHT, type=lambda text: [int(word) for word in text.split(",")])
    add_arguments(parser)
    arguments = parser.parse_args()
    need_h2load()
    with tempfile.TemporaryDirectory() as folder, running_cluster() as cluster:
        package = with_all_engines(seed_package(Path(folder, "seed")))
        for engine in ENGINES:
            cluster.deploy(engine, package, engine)
        cluster.start_direct([str(Path(__file__).with_name("switchable_front.py"))])
        cluster.start_apart()
        bench = Bench(cluster)
        cells = [Cell(*cell) for cell in itertools.product(ENGINES, WAYS, arguments.in_flight)]
        looked: dict[Cell, dict[str, float]] = {cell: {} for cell in cells}
        for name in FIXED:
            bench.switch(name)
            for cell in cells:
                looked[cell][name] = bench.load(cell, arguments.look_seconds, 0.1).requests_per_second
            say(f"looked at {name}")
        last = {cell: compare(bench, cell, looked[cell], arguments) for cell in cells}
    text, numbers = describe(last)
    publish(
        "self-tuning",
        text,
        {"looked": [(str(cell), rates) for cell, rates in looked.items()], "last": numbers},
        arguments,
    )


def compare(
    bench: "Bench", cell: Cell, looked: dict[str, float], arguments: argparse.Namespace
) -> dict[str, list[Load]]:
    """Load the front's own setting and the cell's best fixed ones in turns."""
    best = sorted(looked, key=lambda name: looked[name], reverse=True)[:FINALISTS]
    loads: dict[str, list[Load]] = {name: [] for name in (OWN, *best)}
    bench.switch(OWN)
    bench.load(cell, arguments.learn_seconds, 0.1)
    for number in range(arguments.rounds):
        for name in loads if number % 2 == 0 else reversed(list(loads)):
            bench.switch(name)
            loads[name].append(bench.load(cell, arguments.seconds, 0.2))
    say(
        f"{cell}: "
        + ", ".join(f"{n} {median(x.requests_per_second for x in found):.0f}/s" for n, found in loads.items())
    )
    return loads


def describe(last: dict[Cell, dict[str, list[Load]]]) -> tuple[str, list[dict[str, object]]]:
    """Return the Markdown table and the numbers."""
    rows, numbers = [], []
    for cell, loads in last.items():
        rates = {name: median(load.requests_per_second for load in found) for name, found in loads.items()}
        best = max((name for name in rates if name != OWN), key=lambda name: rates[name])
        ratio = median(
            a.requests_per_second / b.requests_per_second for a, b in zip(loads[OWN], loads[best], strict=True)
        )
        p50 = {name: median(load.p50_ms for load in loads[name]) for name in (OWN, best)}
        failed = sum(load.failed for found in loads.values() for load in found)
        rows.append(
            [
                cell.engine,
                "gateway" if cell.way == "apart" else cell.way,
                str(cell.in_flight),
                f"{rates[OWN]:,.0f}",
                f"{rates[best]:,.0f} ({best})",
                f"{ratio:.2f}",
                f"{p50[OWN]:.2f} / {p50[best]:.2f}",
                str(failed),
            ]
        )
        numbers.append({"cell": str(cell), "best": best, "ratio": ratio, "rates": rates, "p50_ms": p50})
    head = [
        "engine",
        "way",
        "in flight",
        "own: req/s",
        "best fixed: req/s",
        "own x best",
        "p50 own / best ms",
        "failed",
    ]
    return table(head, rows), numbers


class Bench:
    """Loads a cell of the cluster, and switches its front."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._answer_bytes = {
            (engine, way): cluster.question(engine).until_answered(cluster.ports[way])[1]
            for engine in ENGINES
            for way in WAYS
        }

    def switch(self, name: str) -> None:
        """Let the front batch by one of FIXED, or as it does by itself."""
        body = json.dumps(FIXED.get(name, {})).encode()
        url = f"http://127.0.0.1:{self._cluster.ports['direct']}/bench/batching"
        with urllib.request.urlopen(url, data=body, timeout=10) as response:
            response.read()

    def load(self, cell: Cell, seconds: float, warm: float) -> Load:
        """Load once."""
        question, port = self._cluster.question(cell.engine), self._cluster.ports[cell.way]
        answer_bytes = self._answer_bytes[cell.engine, cell.way]
        return run_load(port, question, answer_bytes, cell.in_flight, seconds, warm=warm)


if __name__ == "__main__":
    main()
