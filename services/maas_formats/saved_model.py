"""A TensorFlow SavedModel made into a package: tf2onnx writes ONNX of it, in a process that has TensorFlow."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from maas_engine.publish import Log
from maas_formats.onnx_files import TextOptions, import_onnx
from maas_package.package import Package
from maas_runtime.failures import InvalidInput

GRAPH_NAME = "saved_model.pb"

_OPERATORS = 18
_MOST_SECONDS = 1500.0
_MOST_GRAPH_BYTES = 2**31
# Operations that reach beyond the model's numbers; a graph runs some of them while it is being loaded.
_REACHING_OUT = (
    "EagerPyFunc",
    "LoadLibrary",
    "MatchingFiles",
    "PyFunc",
    "PyFuncStateless",
    "ReadFile",
    "RpcCall",
    "RpcClient",
    "WholeFileReader",
    "WholeFileReaderV2",
    "WriteFile",
)


class SavedModelUnreadable(InvalidInput):
    """tf2onnx cannot make ONNX of it."""

    reason = "SAVED_MODEL_UNREADABLE"


class SavedModelReachesOut(InvalidInput):
    """The graph has an operation that reads or writes files, calls others, or runs Python."""

    reason = "SAVED_MODEL_REACHES_OUT"


class ConverterMissing(InvalidInput):
    """TensorFlow or tf2onnx is not installed here."""

    reason = "CONVERTER_MISSING"


def import_saved_model(
    source: Path, folder: Path, *, text: TextOptions | None = None, labels: tuple[str, ...] = (), log: Log
) -> Package:
    """Make a package of a SavedModel's default signature in `folder`. Raises as import_onnx does, and the above."""
    _check_operations(source / GRAPH_NAME)
    with tempfile.TemporaryDirectory(prefix="maas-saved-model-") as scratch:
        converted = Path(scratch, "model.onnx")
        _convert(source, converted)
        return import_onnx(converted, folder, text=text, labels=labels, log=log)


def _check_operations(graph: Path) -> None:
    """Raise SavedModelReachesOut by what stands in the file, which nobody has loaded yet."""
    if graph.stat().st_size > _MOST_GRAPH_BYTES:
        raise SavedModelUnreadable(f"{graph.name} is larger than {_MOST_GRAPH_BYTES} bytes")
    content = graph.read_bytes()
    for name in _REACHING_OUT:
        # A node's field 2, with its length before it.
        if b"\x12" + bytes([len(name)]) + name.encode() in content:
            raise SavedModelReachesOut(
                f"{graph.name} has the operation {name}, which reaches beyond the model; export it without"
            )


def _convert(source: Path, target: Path) -> None:
    command = [sys.executable, "-m", "tf2onnx.convert", f"--saved-model={source}", f"--output={target}"]
    command += [f"--opset={_OPERATORS}"]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_MOST_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        raise SavedModelUnreadable(f"{source.name} was not converted within {_MOST_SECONDS:g} s") from None
    if done.returncode == 0 and target.is_file():
        return
    lines = done.stderr.strip().splitlines() or ["no message"]
    if "No module named" in lines[-1]:
        raise ConverterMissing(
            "a SavedModel is read by TensorFlow, which is not here: pip install 'maas[tensorflow]'. Or where it is: "
            f"python -m tf2onnx.convert --saved-model {source.name} --output model.onnx --opset {_OPERATORS}, "
            "and import model.onnx"
        )
    raise SavedModelUnreadable(f"tf2onnx makes no ONNX of {source.name}: {lines[-1][:300]}")
