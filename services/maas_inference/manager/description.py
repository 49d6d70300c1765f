"""What a package says of a version before any worker has loaded it."""

from collections.abc import Sequence

from maas_inference.table import Tensor
from maas_inference.worker_report import WorkerReport
from maas_package.manifest import TensorSpec
from maas_package.package import Package


def described(package: Package, max_batch_rows: int) -> WorkerReport:
    """Return what a worker would report, as far as the manifest tells it."""
    manifest = package.manifest
    return WorkerReport(
        inputs=_tensors(manifest.inputs),
        outputs=_tensors(manifest.outputs),
        labels=manifest.labels,
        task=manifest.task,
        rows_apart=manifest.rows_apart,
        text_input=manifest.text.input if manifest.text else "",
        max_batch_rows=max_batch_rows,
    )


def _tensors(specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    return tuple(Tensor(spec.name, spec.datatype, spec.shape) for spec in specs)
