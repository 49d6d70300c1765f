"""What this project is compared with. The other files here run in the peers' own environments."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from load import Wire

TORCH = "torch==2.13.0"
MAX_BATCH_ROWS = 32

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Peer:
    """One server with settings of its own; `server` is a file here that is told MODEL and PORT."""

    name: str
    environment: str
    """Name of its virtual environment in the scratch folder."""
    packages: tuple[str, ...]
    server: str
    wire: Wire = "grpc"
    python: str = sys.executable
    instances: int = 1
    """How many copies of the model compute side by side, with a thread each."""
    models: tuple[str, ...] = ("seed", "minilm")
    settings: Mapping[str, str] = field(default_factory=dict)

    def setup(self, scratch: Path) -> None:
        """Make its virtual environment, once: one pip command, so that torch stays the pinned one."""
        _make_environment(scratch / self.environment, self.python, (TORCH, *self.packages))

    def versions(self, scratch: Path) -> str:
        """Return what is installed of what makes it up, as `name version`."""
        names = [package.partition("==")[0] for package in (*self.packages, TORCH)]
        code = f"from importlib.metadata import version as v; print(', '.join(f'{{n}} {{v(n)}}' for n in {names!r}))"
        python = scratch / self.environment / "bin/python"
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    def command(self, scratch: Path, model: str, port: int) -> list[str]:
        """Return the command that serves a model at the port, in the foreground."""
        return [str(scratch / self.environment / "bin/python"), str(_FOLDER / self.server), model, str(port)]

    def variables(self, scratch: Path, temporary: Path) -> dict[str, str]:
        """Return its environment variables: one thread, batches of 32, all that it writes in `temporary`."""
        return {
            "BENCH_MODELS": str(scratch / "models"),
            "BENCH_MAX_BATCH_ROWS": str(MAX_BATCH_ROWS),
            "BENCH_INSTANCES": str(self.instances),
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "PYTHONPATH": str(_FOLDER.parent),
            # An interpreter that is embedded, as Triton's, takes the Python that it finds here for its own.
            "PATH": f"{scratch / self.environment / 'bin'}{os.pathsep}{os.defpath}",
            "PYTHONWARNINGS": "ignore",
            "TMPDIR": str(temporary),
            "PYTRITON_HOME": str(temporary),
            "BENTOML_HOME": str(temporary),
            **self.settings,
        }


@dataclass(frozen=True, slots=True)
class Compressor:
    """A tool that makes models smaller; `program` is a file here."""

    environment: str
    packages: tuple[str, ...]
    program: str

    def setup(self, scratch: Path) -> None:
        """Make its virtual environment, once."""
        _make_environment(scratch / self.environment, sys.executable, self.packages)

    def command(self, scratch: Path, *arguments: object) -> list[str]:
        """Return the command that runs the program."""
        return [
            str(scratch / self.environment / "bin/python"),
            str(_FOLDER / self.program),
            *(str(argument) for argument in arguments),
        ]


def _make_environment(folder: Path, python: str, packages: tuple[str, ...]) -> None:
    if (folder / ".ready").exists():
        return
    print(f"# installing {', '.join(packages)} into {folder}", file=sys.stderr, flush=True)
    subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
    install = [str(folder / "bin/pip"), "install", "-q", "--disable-pip-version-check", *packages]
    subprocess.run(install, check=True, timeout=1800)
    (folder / ".ready").touch()


def _triton(delay_ms: int, instances: int = 1) -> Peer:
    # Its python backend needs a shared libpython of the patch release that it runs: the system's.
    return Peer(
        f"triton, delay {delay_ms} ms" + (f", {instances} instances" if instances > 1 else ""),
        "pytriton",
        ("nvidia-pytriton==0.7.0",),
        "triton_server.py",
        python="/usr/bin/python3",
        instances=instances,
        # Two threads at once are to be seen once; with a large model it takes long.
        models=("seed", "minilm") if instances == 1 else ("seed",),
        settings={"BENCH_DELAY_MS": str(delay_ms)},
    )


_DELAY = {"BENCH_DELAY_MS": "2"}
PEERS = {
    "triton": (_triton(0), _triton(0, 2), _triton(2), _triton(2, 2)),
    "pytriton": (
        Peer(
            "pytriton",
            "pytriton",
            ("nvidia-pytriton==0.7.0",),
            "pytriton_server.py",
            python="/usr/bin/python3",
            settings=_DELAY,
        ),
    ),
    "mlserver": (Peer("mlserver", "mlserver", ("mlserver==1.7.1",), "mlserver_server.py", settings=_DELAY),),
    "litserve": (
        Peer("litserve", "litserve", ("litserve==0.2.19", "numpy"), "litserve_server.py", "json", settings=_DELAY),
    ),
    "bentoml": (Peer("bentoml", "bentoml", ("bentoml==1.4.39",), "bentoml_server.py", "json"),),
}

NEURAL_COMPRESSOR = Compressor(
    "neural-compressor",
    # The last release that tunes ONNX files: 3.0 to 3.10 have PyTorch, TensorFlow and JAX only.
    (
        "neural-compressor==2.6",
        "onnx==1.17.0",
        "onnxruntime==1.20.1",
        "onnxruntime-extensions",
        "numpy<2",
        "setuptools<81",
        "six",
        "coloredlogs",
    ),
    "inc_tune.py",
)
