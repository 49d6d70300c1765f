"""What an engine is, and which one runs a servable."""

import importlib.util
from collections.abc import Mapping
from typing import Protocol

from maas_package.manifest import Servable
from maas_package.package import Package
from maas_package.tensors import Array
from maas_runtime.failures import InvalidInput

# Engine name in a manifest -> the module that it needs.
_ENGINE_MODULES = {"onnxruntime": "onnxruntime"}


class EngineUnknown(InvalidInput):
    """No engine of this name is known, or its library is not installed here."""

    reason = "ENGINE_UNKNOWN"


class ServableMissing(InvalidInput):
    """The package has no servable that this host can run."""

    reason = "SERVABLE_MISSING"


class ServableBroken(InvalidInput):
    """The engine cannot load the servable: damaged, or with operators that it does not have."""

    reason = "SERVABLE_BROKEN"


class InputsRefused(InvalidInput):
    """The engine cannot run these inputs, though their types and shapes fit the manifest."""

    reason = "INPUTS_REFUSED"


class Engine(Protocol):
    """One loaded servable."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs of one batch. Raises InputsRefused."""

    def close(self) -> None:
        """Free what it holds; nothing may be run afterwards."""


def open_engine(package: Package, servable: Servable, threads: int = 1) -> Engine:
    """Load one servable of the package. Raises EngineUnknown or ServableBroken."""
    path = package.path(servable.path)
    match servable.engine:
        case "onnxruntime":
            from maas_engine.onnxruntime_engine import OnnxRuntimeEngine

            return OnnxRuntimeEngine(path, package.manifest, threads)
        case unknown:
            raise EngineUnknown(f"no engine {unknown!r}; there are: {', '.join(_ENGINE_MODULES)}", engine=unknown)


def choose_servable(package: Package, *, hardware: str | None = None) -> Servable:
    """Return the fastest servable that this host can run. Raises ServableMissing.

    Fastest is the most rows per second among the measurements taken on `hardware` (any, when None or when there are
    none of it). Without measurements the first in the manifest is taken.
    """
    runnable = [servable for servable in package.manifest.servables if _can_run(servable)]
    if not runnable:
        engines = sorted({servable.engine for servable in package.manifest.servables})
        raise ServableMissing(
            f"this host can run none of the package's servables (engines: {', '.join(engines) or '-'})"
        )
    here = {
        servable.path: rates
        for servable in runnable
        if (rates := [m.rows_per_second for m in servable.measurements if hardware in (None, m.hardware)])
    }
    anywhere = {servable.path: [m.rows_per_second for m in servable.measurements] for servable in runnable}
    rates_by_path = here or anywhere
    # max keeps the first of equals, so the manifest's order decides among the unmeasured.
    return max(runnable, key=lambda servable: max(rates_by_path.get(servable.path, []), default=0.0))


def _can_run(servable: Servable) -> bool:
    module = _ENGINE_MODULES.get(servable.engine)
    return module is not None and importlib.util.find_spec(module) is not None
