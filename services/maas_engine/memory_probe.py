"""`python -m maas_engine.memory_probe FOLDER ENGINE PRECISION PATH THREADS`: load and run one servable, and print this
process's memory as JSON.
"""

import json
import re
import sys
from pathlib import Path

from maas_engine.engine import load_opener
from maas_engine.examples import Examples
from maas_engine.measure import BATCH_ROWS
from maas_engine.predictor import open_predictor
from maas_package.manifest import Servable
from maas_package.package import read_package
from maas_runtime.failures import Failure

_RUNS = 2


def main() -> None:
    """Measure one servable of the package in FOLDER."""
    folder, engine, precision, path, threads = sys.argv[1:]
    load_opener(engine)  # before the baseline, which is what the libraries alone take
    baseline = _proc_bytes("/proc/self/status", "VmRSS")
    package = read_package(Path(folder))
    predictor = open_predictor(package, Servable(engine, precision, path), int(threads))
    examples = Examples(predictor)
    for rows in (1, BATCH_ROWS):
        for seed in range(_RUNS):
            predictor.run(examples.batch(rows, seed))
    use = {
        "peak_bytes": _proc_bytes("/proc/self/status", "VmHWM"),
        "loaded_bytes": _proc_bytes("/proc/self/smaps_rollup", "Pss"),
        "baseline_bytes": baseline,
    }
    print(json.dumps(use))


def _proc_bytes(path: str, field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB$", Path(path).read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{path} has no {field}")
    return int(found[1]) * 1024


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(failure.message)
