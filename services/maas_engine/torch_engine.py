"""The trainable form itself: safetensors and an architecture, on the GPU where there is one, else on the CPU.

There is no engine for torch.export's archives: reading one runs what is written in it (docs/decisions/0009-engines.md).
"""

from collections.abc import Mapping

import torch

from maas_engine.engine import BF16, ServableBroken, run_failure
from maas_package.manifest import Servable
from maas_package.package import Package
from maas_package.tensors import Array, numpy_type
from maas_package.trainable import load_module


class TorchEngine:
    """One module in evaluation mode."""

    def __init__(self, package: Package, servable: Servable, threads: int) -> None:
        manifest = package.manifest
        if manifest.weights is None or servable.path != manifest.weights.path:
            raise ServableBroken(f"torch runs a package's weights and architecture, and {servable.path} is not that")
        module = load_module(package)
        # The number of threads is torch's, not this engine's: whoever closes it finds it as it was.
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if servable.precision == BF16 else torch.float32
        self._module: torch.nn.Module | None = module.to(self._device, dtype)
        self._dtype = dtype
        self._outputs = [(spec.name, numpy_type(spec.datatype)) for spec in manifest.outputs]
        self._inputs = [spec.name for spec in manifest.inputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs of one batch. Raises InputsRefused."""
        if self._module is None:
            raise RuntimeError("this engine is closed")
        try:
            with torch.inference_mode():
                answer = self._module(*(self._to_tensor(inputs[name]) for name in self._inputs))
        except (RuntimeError, IndexError, TypeError, ValueError, MemoryError) as error:
            raise run_failure("torch", error) from error
        values = answer if isinstance(answer, tuple) else (answer,)
        return {
            name: _to_array(value).astype(dtype, copy=False)
            for (name, dtype), value in zip(self._outputs, values, strict=True)
        }

    def close(self) -> None:
        """Free the module."""
        self._module = None
        torch.set_num_threads(self._threads_before)

    def _to_tensor(self, array: Array) -> torch.Tensor:
        # A batch's arrays are views of what was received, which torch would warn of; nothing here writes to them.
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        if tensor.is_floating_point():
            return tensor.to(self._device, self._dtype)
        return tensor.to(self._device)


def _to_array(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach().cpu()
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
