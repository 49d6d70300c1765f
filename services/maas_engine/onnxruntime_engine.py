"""ONNX files on onnxruntime: on the GPU where the host has one that the installed onnxruntime can use, else the CPU."""

from collections.abc import Mapping

import numpy as np
import onnxruntime

from maas_engine.engine import InputsRefused, ServableBroken, check_names, first_line, run_failure
from maas_engine.host import has_nvidia_gpu
from maas_package.manifest import Servable
from maas_package.package import Package
from maas_package.tensors import Array

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_STRINGS = "tensor(string)"
_FATAL_ONLY = 4


class OnnxRuntimeEngine:
    """One inference session. Its memory pool is off.

    Measured on the seed's LSTM: calls of 1 and 32 rows take the same time with the pool and without, and after one
    batch of 64 x 256 tokens the process goes back from 146 to 70 MB instead of staying there. Its threads do not spin
    while they wait, since they share the cores with the processes that feed them.
    """

    def __init__(self, package: Package, servable: Servable, threads: int) -> None:
        path = package.path(servable.path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.log_severity_level = _FATAL_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=_providers())
        # The library's errors have no base class of their own.
        except Exception as error:
            raise ServableBroken(f"onnxruntime cannot load {path.name}: {first_line(error)}") from error
        inputs, outputs = session.get_inputs(), session.get_outputs()
        self._outputs = [output.name for output in outputs]
        check_names(package.manifest, [tensor.name for tensor in inputs], self._outputs, path.name)
        self._session: onnxruntime.InferenceSession | None = session
        self._string_inputs = [tensor.name for tensor in inputs if tensor.type == _STRINGS]
        self._has_string_outputs = any(tensor.type == _STRINGS for tensor in outputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs of one batch. Raises InputsRefused."""
        if self._session is None:
            raise RuntimeError("this engine is closed")
        feeds = dict(inputs)
        for name in self._string_inputs:
            feeds[name] = _to_strings(feeds[name], name)
        try:
            values = self._session.run(self._outputs, feeds)
        except Exception as error:
            raise run_failure("onnxruntime", error) from error
        if self._has_string_outputs:
            values = [_to_bytes(value) if value.dtype.kind in "OU" else value for value in values]
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Free the session."""
        self._session = None


def _providers() -> list[str]:
    on_gpu = has_nvidia_gpu() and _CUDA in onnxruntime.get_available_providers()
    return [_CUDA, _CPU] if on_gpu else [_CPU]


def _to_strings(tensor: Array, name: str) -> Array:
    """Return BYTES elements as the texts that onnxruntime takes: it would make "b'…'" of a bytes object."""
    try:
        texts = [one if isinstance(one, str) else bytes(one).decode() for one in tensor.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise InputsRefused(f"{name} holds bytes that are not UTF-8, at byte {error.start}") from error
    return np.array(texts, np.object_).reshape(tensor.shape)


def _to_bytes(tensor: Array) -> Array:
    return np.array([str(one).encode() for one in tensor.ravel().tolist()], np.object_).reshape(tensor.shape)
