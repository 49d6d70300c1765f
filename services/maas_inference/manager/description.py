"""What a package says of a version before any worker has loaded it."""

from collections.abc import Sequence

from maas_inference.table import Tensor
from maas_inference.worker_report import WorkerReport
from maas_package.manifest import TensorSpec
from maas_package.package import Package
from maas_runtime.failures import InvalidInput


class EngineNotInPackage(InvalidInput):
    """The package has no servable of the engine and precision that the deployment asks for."""

    reason = "ENGINE_NOT_IN_PACKAGE"


def described(package: Package, max_batch_rows: int) -> WorkerReport:
    """Return what a worker would report, as far as the manifest tells it."""
    manifest = package.manifest
    return WorkerReport(
        inputs=_tensors(manifest.inputs),
        outputs=_tensors(manifest.outputs),
        labels=manifest.labels,
        text_input=manifest.text.input if manifest.text else "",
        max_batch_rows=max_batch_rows,
    )


def servable_path(package: Package, engine: str) -> str:
    """Return the path of the servable of NAME or NAME:PRECISION; empty, for the fastest, when that is empty.

    Raises EngineNotInPackage.
    """
    name, _, precision = engine.partition(":")
    if not name:
        return ""
    servables = package.manifest.servables
    for servable in servables:
        if servable.engine == name and precision in ("", servable.precision):
            return servable.path
    there = ", ".join(f"{servable.engine}:{servable.precision}" for servable in servables)
    raise EngineNotInPackage(f"the package has no servable for {engine}; it has {there or 'none'}")


def _tensors(specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    return tuple(Tensor(spec.name, spec.datatype, spec.shape) for spec in specs)
