"""What a worker says of itself on its standard output: one line of JSON, once it is warm or cannot be."""

from dataclasses import dataclass

from maas_inference.table import Tensor


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
