"""ONNX files on OpenVINO's CPU plugin, in float32 or bfloat16."""

from collections.abc import Mapping

import openvino

from maas_engine.engine import BF16, InputsRefused, ServableBroken, check_names, first_line
from maas_package.manifest import Servable
from maas_package.package import Package
from maas_package.tensors import Array


class OpenVinoEngine:
    """One compiled model and one request of it, for batches of all sizes.

    Measured on the seed's LSTM with batches of mixed sizes: a request for each size is no faster than one for all
    (89,000 tokens/s both), since the plugin keeps what it compiled for a shape.
    """

    def __init__(self, package: Package, servable: Servable, threads: int) -> None:
        path = package.path(servable.path)
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16" if servable.precision == BF16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            # A pinned thread waits for its core while another is free: the cores are shared with who feeds it.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            core = openvino.Core()
            model = core.compile_model(core.read_model(str(path)), "CPU", settings)
        # Whatever is wrong with a file comes as RuntimeError, or as an error of the frontend that read it.
        except Exception as error:
            raise ServableBroken(f"openvino cannot load {path.name}: {_reason(error)}") from error
        # The frontend may give a tensor several names, and the one in the manifest is one of them.
        self._outputs = {
            next((spec.name for spec in package.manifest.outputs if spec.name in port.names), port.any_name): port
            for port in model.outputs
        }
        inputs = [
            next((spec.name for spec in package.manifest.inputs if spec.name in port.names), port.any_name)
            for port in model.inputs
        ]
        check_names(package.manifest, inputs, list(self._outputs), path.name)
        self._request: openvino.InferRequest | None = model.create_infer_request()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs of one batch. Raises InputsRefused."""
        if self._request is None:
            raise RuntimeError("this engine is closed")
        try:
            values = self._request.infer(dict(inputs), share_inputs=True)
        except Exception as error:
            raise InputsRefused(f"openvino cannot run these inputs: {_reason(error)}") from error
        return {name: values[port] for name, port in self._outputs.items()}

    def close(self) -> None:
        """Free the model."""
        self._request = None


def _reason(error: Exception) -> str:
    """Return the last line that says something: the ones before name places in the library."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else first_line(error)
