"""ONNX files on onnxruntime's CPU provider."""

from collections.abc import Mapping
from pathlib import Path

import onnxruntime

from maas_engine.engine import InputsRefused, ServableBroken
from maas_package.manifest import Manifest
from maas_package.tensors import Array

_FATAL_ONLY = 4


class OnnxRuntimeEngine:
    """One inference session. Its memory pool is off.

    Measured on the seed's LSTM: calls of 1 and 32 rows take the same time with the pool and without, and after one
    batch of 64 x 256 tokens the process goes back from 146 to 70 MB instead of staying there. Its threads do not spin
    while they wait, since they share the cores with the processes that feed them.
    """

    def __init__(self, path: Path, manifest: Manifest, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.log_severity_level = _FATAL_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        # The library's errors have no base class of their own.
        except Exception as error:
            raise ServableBroken(f"onnxruntime cannot load {path.name}: {_first_line(error)}") from error
        _check_signature(session, manifest, path.name)
        self._session: onnxruntime.InferenceSession | None = session
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs of one batch. Raises InputsRefused."""
        if self._session is None:
            raise RuntimeError("this engine is closed")
        try:
            values = self._session.run(self._outputs, dict(inputs))
        except Exception as error:
            raise InputsRefused(f"onnxruntime cannot run these inputs: {_first_line(error)}") from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Free the session."""
        self._session = None


def _check_signature(session: onnxruntime.InferenceSession, manifest: Manifest, file_name: str) -> None:
    for kind, specs, found in (
        ("inputs", manifest.inputs, session.get_inputs()),
        ("outputs", manifest.outputs, session.get_outputs()),
    ):
        expected = {spec.name for spec in specs}
        names = {tensor.name for tensor in found}
        if names != expected:
            raise ServableBroken(f"{file_name} has the {kind} {sorted(names)} instead of {sorted(expected)}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
