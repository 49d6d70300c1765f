"""`python -m maas_inference.worker --package FOLDER --engine NAME --socket PATH --threads N`."""

import argparse
import ctypes
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import msgspec

from maas_engine.engine import BUILT_IN_ENGINES, choose_servable, first_line
from maas_engine.measure import cost_curve
from maas_engine.predictor import Predictor, open_predictor
from maas_inference.worker.server import WorkerServer
from maas_inference.worker_report import WorkerReport, described
from maas_package.package import read_package
from maas_package.tensors import Array
from maas_runtime.failures import Failure
from maas_runtime.logs import configure_logging

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_BROKE = "WORKER_BROKE"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What the manager tells a worker."""

    package: Path
    engine: str
    """NAME or NAME:PRECISION of the engine to serve with; empty for the fastest that runs here."""
    socket: Path
    threads: int
    max_batch_rows: int
    lanes: int
    parent_pid: int

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> "WorkerSettings":
        """Read the command line."""
        parser = argparse.ArgumentParser(prog="maas_inference.worker", description=__doc__)
        parser.add_argument("--package", type=Path, required=True)
        parser.add_argument("--engine", default="")
        parser.add_argument("--socket", type=Path, required=True)
        parser.add_argument("--threads", type=int, default=1)
        parser.add_argument("--max-batch-rows", type=int, default=32)
        parser.add_argument("--lanes", type=int, default=1)
        parser.add_argument("--parent-pid", type=int, default=os.getppid())
        return cls(**vars(parser.parse_args(arguments)))


def main() -> None:
    """Load, warm, report, serve."""
    settings = WorkerSettings.from_arguments(sys.argv[1:])
    _end_with_parent(settings.parent_pid)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the manager decides
    configure_logging("maas_inference.worker", os.environ.get("MAAS_LOG_LEVEL", "INFO"))
    started = time.monotonic()
    try:
        package = read_package(settings.package)
        servable = choose_servable(package, settings.engine)
        predictor = open_predictor(package, servable, settings.threads)
        rows = [count for count in (1, 2, 4, 8, 16, 32, 64, 128) if count <= settings.max_batch_rows]
        curve = cost_curve(predictor, rows)
    except Failure as failure:
        _report(WorkerReport(failure=failure.message, reason=failure.reason))
        sys.exit(1)
    except Exception as error:
        # A bug, perhaps in an engine that is not ours; the traceback is in the log.
        logger.exception("loading broke")
        _report(WorkerReport(failure=f"loading broke: {type(error).__name__}: {first_line(error)}", reason=_BROKE))
        sys.exit(1)
    manifest = package.manifest
    # Code that is not ours may hold state that two batches at once would spoil.
    lanes = settings.lanes if servable.engine in BUILT_IN_ENGINES and not manifest.steps else 1
    server = WorkerServer(_Prediction(predictor), {spec.name: spec.datatype for spec in manifest.outputs}, lanes)
    listener = server.listen(settings.socket)
    _report(
        replace(
            described(manifest, settings.max_batch_rows),
            engine=servable.engine,
            precision=servable.precision,
            padded_input=manifest.text.feeds if manifest.text else "",
            padding_id=predictor.preparer.padding_id,
            lanes=lanes,
            cost_curve=tuple(sorted(curve.items())),
            load_seconds=time.monotonic() - started,
        )
    )
    gc.freeze()  # what is loaded stays: no collection needs to look at it again
    server.serve(listener)


class _Prediction:
    """A predictor as the server's computation."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def __call__(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return self._predictor.predict(inputs).outputs


def _report(report: WorkerReport) -> None:
    print(msgspec.json.encode(report).decode(), flush=True)


def _end_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit("the manager ended before its worker had begun")


def _stop(signal_number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # signal's signature
    sys.exit(0)


if __name__ == "__main__":
    main()
