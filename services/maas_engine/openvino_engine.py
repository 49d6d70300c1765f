"""ONNX files and OpenVINO's own (an .xml file) on its CPU plugin, in float32, bfloat16 or with 8-bit integers."""

import os
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue

import openvino

from maas_engine.engine import BF16, ServableBroken, check_names, first_line, run_failure
from maas_package.manifest import Servable
from maas_package.package import Package
from maas_package.tensors import Array

_MOST_STREAMS = 4


class OpenVinoEngine:
    """One compiled model, and a request of it for each thread that runs it at once, for batches of all sizes.

    Measured on the seed's LSTM with batches of mixed sizes: a request for each size is no faster than one for all
    (89,000 tokens/s both), since the plugin keeps what it compiled for a shape.
    """

    def __init__(self, package: Package, servable: Servable, threads: int) -> None:
        path = package.path(servable.path)
        # A stream computes one batch at a time.
        streams = max(1, min(_MOST_STREAMS, len(os.sched_getaffinity(0)) // threads))
        settings = {
            "INFERENCE_NUM_THREADS": threads * streams,
            "INFERENCE_PRECISION_HINT": "bf16" if servable.precision == BF16 else "f32",
            "NUM_STREAMS": streams,
            # A pinned thread waits for its core while another is free: the cores are shared with who feeds it.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            core = openvino.Core()
            read = (
                core.read_model(str(path), str(weights_path(path)))
                if path.suffix == ".xml"
                else core.read_model(str(path))
            )
            model = core.compile_model(read, "CPU", settings)
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
        self._model: openvino.CompiledModel | None = model
        self._idle_requests: SimpleQueue[openvino.InferRequest] = SimpleQueue()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs of one batch. Raises InputsRefused."""
        if self._model is None:
            raise RuntimeError("this engine is closed")
        try:
            request = self._idle_requests.get_nowait()
        except Empty:
            request = self._model.create_infer_request()
        try:
            # Copied out: the request's own memory is written again by the next batch, which may begin at once.
            values = request.infer(dict(inputs), share_inputs=True, share_outputs=False)
            return {name: values[port] for name, port in self._outputs.items()}
        except Exception as error:
            raise run_failure("openvino", error, _reason(error)) from error
        finally:
            self._idle_requests.put(request)

    def close(self) -> None:
        """Free the model."""
        self._model = None
        self._idle_requests = SimpleQueue()


def weights_path(representation: Path) -> Path:
    """Return where the weights of an .xml file lie: beside it and under its name, as an ONNX file's do."""
    return representation.with_name(f"{representation.name}.data")


def _reason(error: Exception) -> str:
    """Return the last line that says something: the ones before name places in the library."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else first_line(error)
