"""Lays out a model repository for Triton's python backend and becomes tritonserver, the binary in PyTriton's wheel."""

import os
import sys
import sysconfig
import tempfile
from pathlib import Path

import models

MODEL = """
import sys

import numpy as np
import triton_python_backend_utils as utils

sys.path.append("{folder}")  # the stub does not read PYTHONPATH
import models


class TritonPythonModel:
    def initialize(self, args):
        self.network = models.load("{model}")

    def execute(self, requests):
        inputs = [utils.get_input_tensor_by_name(request, "{input}").as_numpy() for request in requests]
        answers = models.predict(self.network, np.concatenate(inputs) if len(inputs) > 1 else inputs[0])
        responses, begin = [], 0
        for tokens in inputs:
            rows = np.ascontiguousarray(answers[begin : begin + len(tokens)])
            begin += len(tokens)
            responses.append(utils.InferenceResponse([utils.Tensor("{output}", rows)]))
        return responses
"""

CONFIG = """
backend: "python"
max_batch_size: {max_batch_rows}
input [{{ name: "{input}" data_type: TYPE_INT64 dims: [ {tokens} ] }}]
output [{{ name: "{output}" data_type: TYPE_FP32 dims: [ {width} ] }}]
instance_group [{{ count: {instances} kind: KIND_CPU }}]
dynamic_batching {{ max_queue_delay_microseconds: {delay_micros} }}
"""


def main() -> None:
    model, port = sys.argv[1], int(sys.argv[2])
    signature = models.SIGNATURES[model]
    triton = Path(sysconfig.get_path("purelib"), "pytriton", "tritonserver")
    folder = Path(tempfile.mkdtemp(prefix="triton-", dir=os.environ["TMPDIR"]))
    values = {
        "model": model,
        "folder": Path(models.__file__).parent,
        "input": signature.input,
        "tokens": signature.tokens,
        "output": signature.output,
        "width": signature.width,
        "max_batch_rows": os.environ["BENCH_MAX_BATCH_ROWS"],
        "instances": os.environ["BENCH_INSTANCES"],
        "delay_micros": round(float(os.environ["BENCH_DELAY_MS"]) * 1000),
    }
    repository = folder / "models"
    (repository / model / "1").mkdir(parents=True)
    (repository / model / "1" / "model.py").write_text(MODEL.format(**values))
    (repository / model / "config.pbtxt").write_text(CONFIG.format(**values))
    lay_out_backend(triton, folder / "backends" / "python")
    libraries = [triton / "lib", triton.parent.parent / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, libraries))
    binary = triton / "bin" / "tritonserver"
    os.execv(
        binary,
        [
            str(binary),
            f"--model-repository={repository}",
            f"--backend-directory={folder / 'backends'}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={port}",
            "--allow-http=false",
            "--allow-metrics=false",
            "--log-warning=false",
            "--disable-auto-complete-config",
        ],
    )


def lay_out_backend(triton: Path, folder: Path) -> None:
    """Link the python backend's files, with the stub of this Python."""
    folder.mkdir(parents=True)
    for file in (triton / "backends" / "python").iterdir():
        if file.name != "triton_python_backend_stub":
            (folder / file.name).symlink_to(file)
    stubs = triton / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "triton_python_backend_stub").symlink_to(stubs / "triton_python_backend_stub")


if __name__ == "__main__":
    main()
