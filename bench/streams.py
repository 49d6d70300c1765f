"""64 requests in flight over 64 connections of one stream, 8 of 8, and one of 64: all are to be equally fast.

The seed's LSTM as int8, so that the front has more to do than the engine.
"""

import argparse
import tempfile
from pathlib import Path

from cluster import Way, running_cluster
from load import Load, need_h2load, run_load
from packages import int8_package, seed_package
from report import add_arguments, median, publish, say, table

IN_FLIGHT = 64
CONNECTIONS = (64, 8, 1)
WAYS: tuple[Way, ...] = ("direct", "gateway")


def main() -> None:
    """Measure in turns; print and with --write keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    add_arguments(parser)
    arguments = parser.parse_args()
    need_h2load()
    loads: dict[tuple[Way, int], list[Load]] = {}
    with tempfile.TemporaryDirectory() as folder, running_cluster() as cluster:
        package = int8_package(seed_package(Path(folder, "seed")), Path(folder, "int8"))
        cluster.deploy("seed", package)
        cluster.start_direct()
        question = cluster.question("seed")
        for number in range(arguments.rounds):
            for way in WAYS:
                port = cluster.ports[way]
                _, answer_bytes = question.until_answered(port)
                for connections in CONNECTIONS:
                    load = run_load(
                        cluster.ports[way],
                        question,
                        answer_bytes,
                        IN_FLIGHT,
                        arguments.seconds,
                        connections=connections,
                    )
                    loads.setdefault((way, connections), []).append(load)
                    say(f"round {number + 1} {way} {connections} connections: {load.requests_per_second:.0f}/s")
    rows = []
    for (way, connections), measured in loads.items():
        first = loads[way, CONNECTIONS[0]]
        ratios = [a.requests_per_second / b.requests_per_second for a, b in zip(measured, first, strict=True)]
        rows.append(
            [
                way,
                f"{connections} x {IN_FLIGHT // connections}",
                f"{median(load.requests_per_second for load in measured):,.0f}",
                f"{median(load.p50_ms for load in measured):.2f} / {median(load.p99_ms for load in measured):.2f}",
                f"{median(ratios):.2f}",
                str(sum(load.failed for load in measured)),
            ]
        )
    head = ["way", "connections x streams", "req/s", "p50 / p99 ms", f"x {CONNECTIONS[0]} connections", "failed"]
    publish("streams", table(head, rows), rows, arguments)


if __name__ == "__main__":
    main()
