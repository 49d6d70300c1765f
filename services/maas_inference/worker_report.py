"""What a worker says of itself on its standard output: one line of JSON, once it is warm or cannot be."""

from collections.abc import Sequence
from dataclasses import dataclass

from maas_inference.table import Tensor
from maas_package.manifest import Manifest, TensorSpec


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """`failure` is empty when the worker is warm and listens."""

    failure: str = ""
    reason: str = ""
    """The failure's constant."""
    engine: str = ""
    precision: str = ""
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    labels: tuple[str, ...] = ()
    task: str = "text-classification"
    rows_apart: bool = False
    text_input: str = ""
    padded_input: str = ""
    padding_id: int = 0
    max_batch_rows: int = 0
    lanes: int = 1
    cost_curve: tuple[tuple[int, float], ...] = ()
    load_seconds: float = 0.0


def described(manifest: Manifest, max_batch_rows: int) -> WorkerReport:
    """Return what a worker reports, as far as the manifest tells it: all that is known before one has loaded it."""
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
